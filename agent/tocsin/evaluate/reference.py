"""The plain matcher: every rule against every event, by a walk over the condition's tree.

Slow and obvious on purpose. It is what the fast matcher is compared with; its
comparisons are written independently of the fast ones.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from itertools import pairwise

from google.protobuf.message import DecodeError

from tocsin.api.content.v1 import release_pb2 as pb
from tocsin.api.event.v1 import event_pb2
from tocsin.errors import WireError
from tocsin.evaluate import semantics
from tocsin.evaluate.match import Match, NamedEvent, NamedMatch
from tocsin.evaluate.release import Release
from tocsin.records import framing

Values = Mapping[str, Sequence[bytes]]


class ReferenceMatcher:
    """A Matcher for tests. Holds nothing but the release and the users."""

    def __init__(self, release: Release) -> None:
        self._release = release
        self._users: dict[int, bytes] = {}

    def set_users(self, users: Mapping[int, bytes]) -> None:
        """Names of the host's users."""
        self._users = dict(users)

    def match_batch(self, batch: bytes) -> list[Match]:
        """Matches of a serialised Batch. Raises WireError."""
        index = framing.index(batch)
        found: list[Match] = []
        for position in range(len(index)):
            raw = index.event(position)
            try:
                event = event_pb2.Event.FromString(raw)
            except DecodeError as error:
                raise WireError(f"event {position} of the batch is malformed") from error
            if event.type not in semantics.EVENT_FIELDS:
                continue
            values = {name: [value] for name, value in semantics.values_of(event, self._users)}
            sources = semantics.log_sources(event.type)
            found += [
                Match(position, raw, rule)
                for rule in self._release.rules
                if any(rule.log_source.covers(source) for source in sources) and self._holds(rule.condition, values)
            ]
        return found

    def match_named(self, events: Sequence[NamedEvent]) -> list[NamedMatch]:
        """Matches of named events."""
        found: list[NamedMatch] = []
        for position, event in enumerate(events):
            values: dict[str, list[bytes]] = {}
            for name, value in event.values:
                if value is not None:
                    values.setdefault(name, []).append(value)
            found += [
                NamedMatch(position, event, rule)
                for rule in self._release.rules
                if rule.log_source.covers(event.log_source) and self._holds(rule.condition, values)
            ]
        return found

    def _holds(self, expression: pb.Expression, values: Values) -> bool:
        form = expression.WhichOneof("form")
        if form == "all":
            return all(self._holds(part, values) for part in expression.all.parts)
        if form == "any":
            return any(self._holds(part, values) for part in expression.any.parts)
        if form == "negated":
            return not self._holds(expression.negated, values)
        return self._compare(expression.predicate, values)

    def _compare(self, predicate: pb.Predicate, values: Values) -> bool:
        if predicate.field == 0:
            candidates = [value for of_field in values.values() for value in of_field]
        else:
            candidates = list(values.get(self._release.fields[predicate.field - 1], ()))
        if predicate.operator == pb.OPERATOR_NULL:
            return not any(candidates)
        if predicate.operator == pb.OPERATOR_EXISTS:
            return len(candidates) > 0
        others: Sequence[bytes] = [b""]
        if predicate.other_field:
            others = values.get(self._release.fields[predicate.other_field - 1], ())
        return any(compare(predicate, value, other) for value in candidates for other in others)


def compare(predicate: pb.Predicate, value: bytes, other: bytes) -> bool:
    """One comparison of one value, for the operators that need one."""
    name = pb.Operator.Name(predicate.operator).removeprefix("OPERATOR_")
    if name == "REGEX":
        return semantics.regex(predicate.text).search(semantics.decoded(value)) is not None
    if name == "CIDR":
        return in_network(value, predicate.text)
    if name == "WILDCARD":
        return wildcard(predicate, value)
    if name in ("NUMBER_EQUALS", "LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL"):
        return compare_numbers(name, value, predicate.number)
    operand = other if name.startswith("FIELD_") else predicate.text
    if not predicate.case_sensitive:
        value, operand = ascii_lower(value), ascii_lower(operand)
    return compare_text(name.removeprefix("FIELD_"), value, operand)


def ascii_lower(value: bytes) -> bytes:
    """A to Z become a to z, byte by byte."""
    return bytes(byte + 32 if 65 <= byte <= 90 else byte for byte in value)


def compare_text(name: str, value: bytes, operand: bytes) -> bool:
    """EQUALS, CONTAINS, STARTSWITH, ENDSWITH by slices."""
    size = len(operand)
    if name == "EQUALS":
        return value == operand
    if name == "STARTSWITH":
        return value[:size] == operand
    if name == "ENDSWITH":
        return value[max(0, len(value) - size) :] == operand
    return any(value[start : start + size] == operand for start in range(len(value) - size + 1))


def compare_numbers(name: str, value: bytes, operand: str) -> bool:
    """The five comparisons of numbers."""
    left, right = semantics.number(value), semantics.number(operand.encode())
    if left is None or right is None:
        return False
    return {
        "NUMBER_EQUALS": left == right,
        "LESS": left < right,
        "LESS_EQUAL": left <= right,
        "GREATER": left > right,
        "GREATER_EQUAL": left >= right,
    }[name]


def in_network(value: bytes, network: bytes) -> bool:
    """Whether the value is an address in the network."""
    try:
        return ipaddress.ip_address(value.decode()) in ipaddress.ip_network(network.decode())
    except ValueError:
        return False


def characters(value: bytes) -> list[bytes]:
    """UTF-8 characters; a byte that is part of none stands alone."""
    text = value.decode("utf-8", "surrogateescape")
    return [character.encode("utf-8", "surrogateescape") for character in text]


def wildcard(predicate: pb.Predicate, value: bytes) -> bool:
    """The whole value fits the pattern: a set of reached positions, advanced piece by piece."""
    if not predicate.case_sensitive:
        value = ascii_lower(value)
    ends = [0]
    for character in characters(value):
        ends.append(ends[-1] + len(character))
    following = dict(pairwise(ends))
    reached = {0}
    for piece in predicate.wildcard:
        kind = piece.WhichOneof("piece")
        if kind == "any":
            reached = {end for end in range(len(value) + 1) if reached and end >= min(reached)}
        elif kind == "one":
            reached = {following[start] for start in reached if start in following}
        else:
            literal = piece.literal if predicate.case_sensitive else ascii_lower(piece.literal)
            reached = {s + len(literal) for s in reached if value[s : s + len(literal)] == literal}
    return len(value) in reached
