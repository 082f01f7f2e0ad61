"""Conditions as Python closures: the exact check of the fast matcher.

`closure` turns a checked condition into a function of a View. No content is
ever evaluated as code. An `any` of the same text operator on one field becomes
one comparison with a tuple of operands.
"""

import ipaddress
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from decimal import Decimal
from functools import lru_cache
from typing import Final

from tocsin.api.content.v1 import release_pb2 as pb
from tocsin.evaluate import semantics
from tocsin.evaluate.view import View

Condition = Callable[[View], bool]
Test = Callable[[bytes], bool]

_GROUPED: Final = (pb.OPERATOR_EQUALS, pb.OPERATOR_STARTSWITH, pb.OPERATOR_ENDSWITH, pb.OPERATOR_CONTAINS)


def closure(expression: pb.Expression) -> Condition:
    """The function that says whether a view satisfies the condition."""
    form = expression.WhichOneof("form")
    if form == "predicate":
        return predicate_closure(expression.predicate)
    if form == "negated":
        inner = closure(expression.negated)
        return lambda view: not inner(view)
    parts = getattr(expression, str(form)).parts
    return all_of([closure(part) for part in parts]) if form == "all" else any_of(list(grouped(parts)))


def all_of(conditions: list[Condition]) -> Condition:
    """True when each one is."""
    if len(conditions) == 1:
        return conditions[0]

    def every(view: View) -> bool:
        for condition in conditions:  # noqa: SIM110 - a generator costs more than the comparisons
            if not condition(view):
                return False
        return True

    return every


def any_of(conditions: list[Condition]) -> Condition:
    """True when one is."""
    if len(conditions) == 1:
        return conditions[0]

    def some(view: View) -> bool:
        for condition in conditions:  # noqa: SIM110 - a generator costs more than the comparisons
            if condition(view):
                return True
        return False

    return some


def grouped(parts: Iterable[pb.Expression]) -> Iterable[Condition]:
    """Closures of the parts of an `any`; text comparisons of one field with one operator are taken together."""
    groups: dict[tuple[int, int, bool], list[bytes]] = defaultdict(list)
    for part in parts:
        predicate = part.predicate
        if part.WhichOneof("form") == "predicate" and predicate.operator in _GROUPED:
            groups[predicate.field, predicate.operator, predicate.case_sensitive].append(predicate.text)
        else:
            yield closure(part)
    for (field, operator, case_sensitive), texts in groups.items():
        yield text_closure(field, operator, case_sensitive, texts)


def predicate_closure(predicate: pb.Predicate) -> Condition:
    """The function for one comparison."""
    field, operator = predicate.field, predicate.operator
    if operator in _GROUPED:
        return text_closure(field, operator, predicate.case_sensitive, [predicate.text])
    if operator == pb.OPERATOR_NULL:
        return lambda view: not any(view[field])
    if operator == pb.OPERATOR_EXISTS:
        return lambda view: bool(view[field])
    if predicate.other_field:
        return between_fields(predicate)
    if operator == pb.OPERATOR_WILDCARD and not predicate.case_sensitive:
        return over_values(~field, _TESTS[operator](predicate))
    return over_values(field, _TESTS[operator](predicate))


def over_values(key: int, test: Test) -> Condition:
    """True when one value passes the test."""

    def one_passes(view: View) -> bool:
        for value in view[key]:  # noqa: SIM110 - a generator costs more than the test
            if test(value):
                return True
        return False

    return one_passes


def text_closure(field: int, operator: int, case_sensitive: bool, texts: list[bytes]) -> Condition:
    """One of the plain text operators with one or more operands."""
    key = field if case_sensitive else ~field
    operands = tuple(texts) if case_sensitive else tuple([semantics.fold(text) for text in texts])
    if operator == pb.OPERATOR_EQUALS:
        return over_values(key, frozenset(operands).__contains__)
    if operator == pb.OPERATOR_STARTSWITH:
        return over_values(key, lambda value: value.startswith(operands))
    if operator == pb.OPERATOR_ENDSWITH:
        return over_values(key, lambda value: value.endswith(operands))
    if len(operands) == 1:
        (operand,) = operands
        return over_values(key, lambda value: operand in value)
    return over_values(key, lambda value: any(operand in value for operand in operands))


def between_fields(predicate: pb.Predicate) -> Condition:
    """A comparison with the values of another field."""
    sign = 1 if predicate.case_sensitive else -1
    key, other = (n if sign > 0 else ~n for n in (predicate.field, predicate.other_field))
    compare = _FIELD_COMPARISONS[predicate.operator]
    return lambda view: any(compare(value, operand) for value in view[key] for operand in view[other])


def regex_test(predicate: pb.Predicate) -> Test:
    """An RE2 expression is found."""
    search = semantics.regex(predicate.text).search
    return lambda value: search(semantics.decoded(value)) is not None


def network_test(predicate: pb.Predicate) -> Test:
    """An address lies in the network."""
    network = ipaddress.ip_network(predicate.text.decode())

    def inside(value: bytes) -> bool:
        found = _address(value)
        return found is not None and found in network

    return inside


@lru_cache(maxsize=1024)
def _address(value: bytes) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(value.decode())
    except ValueError:
        return None


def number_test(predicate: pb.Predicate) -> Test:
    """A comparison of numbers."""
    operand = Decimal(predicate.number)
    compare = _NUMBER_COMPARISONS[predicate.operator]

    def holds(value: bytes) -> bool:
        found = semantics.number(value)
        return found is not None and compare(found, operand)

    return holds


def wildcard_test(predicate: pb.Predicate) -> Test:
    """The whole value fits. The caller folds it when case does not matter.

    Between two `*` stands a run of fixed length in characters; taking the
    leftmost place of each run is right, and linear in value times run.
    """
    runs: list[str] = [""]
    for piece in predicate.wildcard:
        if piece.WhichOneof("piece") == "any":
            runs.append("")
        elif piece.WhichOneof("piece") == "one":
            runs[-1] += "."
        else:
            literal = piece.literal if predicate.case_sensitive else semantics.fold(piece.literal)
            runs[-1] += re.escape(literal.decode())
    if len(runs) == 1:
        whole = re.compile(runs[0], re.DOTALL)
        return lambda value: whole.fullmatch(_characters(value)) is not None
    first, *middle = (re.compile(run, re.DOTALL) for run in runs[:-1])
    tail = re.compile(rf"(?:{runs[-1]})\Z", re.DOTALL)
    tail_size = sum(1 for _ in re.finditer(r"\\.|.", runs[-1], re.DOTALL))

    def fits(value: bytes) -> bool:
        text = _characters(value)
        found = first.match(text)
        for run in middle:
            if found is None:
                return False
            found = run.search(text, found.end())
        start = len(text) - tail_size
        return found is not None and start >= found.end() and tail.match(text, start) is not None

    return fits


def _characters(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


_TESTS: Final[dict[int, Callable[[pb.Predicate], Test]]] = {
    pb.OPERATOR_WILDCARD: wildcard_test,
    pb.OPERATOR_REGEX: regex_test,
    pb.OPERATOR_CIDR: network_test,
    pb.OPERATOR_NUMBER_EQUALS: number_test,
    pb.OPERATOR_LESS: number_test,
    pb.OPERATOR_LESS_EQUAL: number_test,
    pb.OPERATOR_GREATER: number_test,
    pb.OPERATOR_GREATER_EQUAL: number_test,
}
_NUMBER_COMPARISONS: Final[dict[int, Callable[[Decimal, Decimal], bool]]] = {
    pb.OPERATOR_NUMBER_EQUALS: Decimal.__eq__,
    pb.OPERATOR_LESS: Decimal.__lt__,
    pb.OPERATOR_LESS_EQUAL: Decimal.__le__,
    pb.OPERATOR_GREATER: Decimal.__gt__,
    pb.OPERATOR_GREATER_EQUAL: Decimal.__ge__,
}
_FIELD_COMPARISONS: Final[dict[int, Callable[[bytes, bytes], bool]]] = {
    pb.OPERATOR_FIELD_EQUALS: bytes.__eq__,
    pb.OPERATOR_FIELD_CONTAINS: bytes.__contains__,
    pb.OPERATOR_FIELD_STARTSWITH: bytes.startswith,
    pb.OPERATOR_FIELD_ENDSWITH: bytes.endswith,
}
