"""Which literals must stand in an event for a condition to be true.

For each rule a necessary set: where none of its literals is in the scan
buffer, the rule is false. all: the cheapest part's set; any: the union; not:
nothing can be said. Literals only, never a pattern: Hyperscan finds thousands
of them at once at the price of one.

A set's cost is how often it is expected to be found in an event of no
interest, learnt from a text of commonplace command lines.
"""

import ipaddress
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tocsin.api.content.v1 import release_pb2 as pb
from tocsin.evaluate import marker, semantics
from tocsin.evaluate.commonplace import COMMONPLACE
from tocsin.evaluate.regex import necessary_texts

MAX_LITERAL_BYTES: Final = 48
"""A part of a necessary literal is necessary too; longer ones only cost memory."""
USELESS_COST: Final = 1.5
"""A set found more often than this in an event costs more than checking the rule outright."""


@dataclass(frozen=True, slots=True)
class Literal:
    """Bytes to look for. `text` is folded when `case_sensitive` is not set."""

    text: bytes
    case_sensitive: bool


@dataclass(frozen=True, slots=True)
class Necessary:
    """One of the literals must be there."""

    literals: frozenset[Literal]
    cost: float


def necessary(expression: pb.Expression, useless_cost: float = USELESS_COST) -> Necessary | None:
    """The cheapest necessary set of a condition, None where every event has to be checked."""
    found = _of_expression(expression)
    return None if found is None or found.cost > useless_cost else found


def _of_expression(expression: pb.Expression) -> Necessary | None:
    form = expression.WhichOneof("form")
    if form == "predicate":
        return _of_predicate(expression.predicate)
    if form == "negated":
        return None
    parts = [_of_expression(part) for part in getattr(expression, str(form)).parts]
    known = [part for part in parts if part is not None]
    if form == "all":
        return min(known, key=lambda part: (part.cost, len(part.literals)), default=None)
    return union(known) if len(known) == len(parts) else None


def union(sets: list[Necessary]) -> Necessary:
    """What is necessary when one of several conditions has to hold."""
    literals = frozenset(literal for part in sets for literal in part.literals)
    return Necessary(literals, sum(cost(literal) for literal in literals))


def _of_predicate(predicate: pb.Predicate) -> Necessary | None:
    operator, field, sensitive = predicate.operator, predicate.field, predicate.case_sensitive
    if operator == pb.OPERATOR_WILDCARD:
        return _of_wildcard(predicate)
    if operator == pb.OPERATOR_REGEX:
        found = [_one_of(texts, sensitive) for texts, sensitive in necessary_texts(predicate.text)]
        return min(found, key=lambda part: (part.cost, len(part.literals)), default=None)
    if operator == pb.OPERATOR_NUMBER_EQUALS and field:
        texts = [marker.start(field) + text for text in number_prefixes(predicate.number, marker.end(field))]
        return union([Necessary(frozenset((Literal(text, True),)), 0.0) for text in texts])
    if operator == pb.OPERATOR_CIDR:
        return _of_network(predicate)
    if operator not in (pb.OPERATOR_EQUALS, pb.OPERATOR_CONTAINS, pb.OPERATOR_STARTSWITH, pb.OPERATOR_ENDSWITH):
        return None
    at_start = operator in (pb.OPERATOR_EQUALS, pb.OPERATOR_STARTSWITH)
    at_end = operator in (pb.OPERATOR_EQUALS, pb.OPERATOR_ENDSWITH)
    return _cheapest([_anchored(predicate.text, sensitive, field, at_start, at_end)])


def _cheapest(literals: "list[Literal | None]") -> Necessary | None:
    priced = [(cost(one), one.text, one) for one in literals if one is not None]
    if not priced:
        return None
    price, _, best = min(priced, key=lambda item: item[:2])
    return Necessary(frozenset((best,)), price)


def literal(text: bytes, case_sensitive: bool) -> Literal | None:
    """A literal, None for the empty one."""
    if not text:
        return None
    return Literal(text if case_sensitive else semantics.fold(text), case_sensitive)


def _one_of(texts: Iterable[bytes], case_sensitive: bool) -> Necessary:
    cut = (text[:MAX_LITERAL_BYTES] for text in texts)
    literals = frozenset(one for text in cut if (one := literal(text, case_sensitive)) is not None)
    return Necessary(literals, sum(cost(one) for one in literals))


def _anchored(text: bytes, sensitive: bool, field: int, at_start: bool, at_end: bool) -> Literal | None:
    if not text and not (at_start and at_end):
        return None
    head = marker.start(field) if at_start and field else b""
    tail = marker.end(field) if at_end and field else b""
    if head and len(text) > MAX_LITERAL_BYTES:
        return literal(head + text[:MAX_LITERAL_BYTES], sensitive)
    return literal(head + text[-MAX_LITERAL_BYTES:] + tail, sensitive)


def _of_wildcard(predicate: pb.Predicate) -> Necessary | None:
    pieces = list(predicate.wildcard)
    last = len(pieces) - 1
    found = [
        _anchored(piece.literal, predicate.case_sensitive, predicate.field, i == 0, i == last)
        for i, piece in enumerate(pieces)
        if piece.WhichOneof("piece") == "literal"
    ]
    return _cheapest(found)


def number_prefixes(number: str, end: bytes) -> list[bytes]:
    """What the text of a value that equals the number begins with. The grammar has no leading zeros."""
    digits = number.rstrip("0").rstrip(".") if "." in number else number
    if digits in ("0", "-0", "", "-"):
        return [b"0" + end, b"0.", b"-0" + end, b"-0."]
    text = digits.encode()
    return [text] if "." in digits else [text + end, text + b"."]


def _of_network(predicate: pb.Predicate) -> Necessary | None:
    """The whole octets of an IPv4 network; its text has no leading zeros."""
    network = ipaddress.ip_network(predicate.text.decode())
    octets = network.prefixlen // 8
    if network.version != 4 or not octets or not predicate.field:
        return None
    text = ".".join(str(network.network_address).split(".")[:octets]).encode()
    tail = marker.end(predicate.field) if octets == 4 else b"."
    return _cheapest([Literal(marker.start(predicate.field) + text + tail, True)])


def cost(one: Literal) -> float:
    """How often the literal is expected in an event of no interest."""
    text = _MARK.sub(b"\n", semantics.fold(one.text))
    places = 1 if text != one.text.lower() else PLACES
    bits = sum(_BITS[byte] for byte in text if byte != 10)
    return COMMONPLACE_FOLDED.count(text) / COMMONPLACE_EVENTS + places * math.pow(2.0, -bits)


PLACES: Final = 200
"""Bytes of an event at which an unanchored literal may stand."""
COMMONPLACE_EVENTS: Final = len(COMMONPLACE)
COMMONPLACE_FOLDED: Final = semantics.fold(b"".join(b"\n" + value + b"\n" for event in COMMONPLACE for value in event))
_MARK: Final = re.compile(rb"\x00[\x80-\xff]{2}")


def _byte_bits() -> tuple[float, ...]:
    """Surprise of each byte, in bits, by its frequency in the commonplace text; at most 7."""
    total = len(COMMONPLACE_FOLDED) + 256
    return tuple(min(7.0, -math.log2((COMMONPLACE_FOLDED.count(bytes((b,))) + 1) / total)) for b in range(256))


_BITS: Final = _byte_bits()
