"""All necessary literals of a release in one Hyperscan database; one scan tells where they stand.

A database and its scratch space belong to one thread.
"""

from collections.abc import Callable, Iterable
from typing import Final

import hyperscan

from tocsin.api.content.v1 import release_pb2 as pb
from tocsin.errors import ContentError
from tocsin.evaluate.code import Code
from tocsin.evaluate.literal import USELESS_COST, Literal, necessary

Hit = tuple[int, int]
"""Offset behind the literal in the scanned bytes, number of the literal."""
NO_LITERAL: Final = -1


class Prefilter:
    """Says which rules an event may satisfy. `rules[i]`: numbers of the rules that literal i is necessary for."""

    def __init__(self, conditions: Iterable[pb.Expression], useless_cost: float = USELESS_COST) -> None:
        """Raises ContentError when Hyperscan does not take the literals."""
        users: dict[Literal, list[int]] = {}
        always = []
        for number, condition in enumerate(conditions):
            found = necessary(condition, useless_cost)
            if found is None:
                always.append(number)
                continue
            for literal in found.literals:
                users.setdefault(literal, []).append(number)
        self.always = tuple(always)
        """Rules without a usable literal: each event has to be checked."""
        self.rules = tuple(tuple(numbers) for numbers in users.values())
        self._scan = _compiled(list(users)) if users else None

    def scan(self, buffer: bytes | memoryview) -> list[Hit]:
        """Every place of every literal, in the order of places."""
        hits: list[Hit] = []
        if self._scan is None or not buffer:
            return hits
        add = hits.append

        def on_hit(number: int, _start: int, end: int, _flags: int, _context: object) -> None:
            add((end, number))

        self._scan(buffer, match_event_handler=on_hit)
        hits.sort()  # they come in order, but Hyperscan does not promise it
        return hits


def _compiled(literals: list[Literal]) -> Callable[..., None]:
    database = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
    try:
        database.compile(
            expressions=[b"".join(b"\\x%02x" % byte for byte in literal.text) for literal in literals],
            ids=list(range(len(literals))),
            elements=len(literals),
            flags=[0 if literal.case_sensitive else hyperscan.HS_FLAG_CASELESS for literal in literals],
        )
    except hyperscan.error as error:
        raise ContentError(Code.PREFILTER, f"Hyperscan does not take the {len(literals)} literals: {error}") from error
    scan: Callable[..., None] = database.scan
    return scan
