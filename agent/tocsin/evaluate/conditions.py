"""Checks a release's conditions before anything walks them: limits, operators, operands.

The bytes come from outside: what passes here can be compiled by both matchers
without a further check. A ContentError names rule and file.
"""

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from tocsin.api.content.v1 import release_pb2 as pb
from tocsin.errors import ContentError
from tocsin.evaluate import semantics
from tocsin.evaluate.code import Code

MAX_DEPTH: Final = 32
"""Nested all, any and not. Protobuf's own parser stops at 100 messages, two to a level."""
MAX_NODES: Final = 200_000
"""Of a release."""
MAX_TEXT_BYTES: Final = 4096
MAX_WILDCARD_PIECES: Final = 256
MAX_REGEX_PROGRAM: Final = 10_000
"""Instructions of one expression."""
MAX_REGEX_PROGRAMS: Final = 2_000_000
"""Instructions of all expressions of a release."""

NUMERIC: Final = frozenset(
    (
        pb.OPERATOR_NUMBER_EQUALS,
        pb.OPERATOR_LESS,
        pb.OPERATOR_LESS_EQUAL,
        pb.OPERATOR_GREATER,
        pb.OPERATOR_GREATER_EQUAL,
    )
)
BETWEEN_FIELDS: Final = frozenset(
    (
        pb.OPERATOR_FIELD_EQUALS,
        pb.OPERATOR_FIELD_CONTAINS,
        pb.OPERATOR_FIELD_STARTSWITH,
        pb.OPERATOR_FIELD_ENDSWITH,
    )
)
NEEDS_FIELD: Final = BETWEEN_FIELDS | {pb.OPERATOR_NULL, pb.OPERATOR_EXISTS}
"""Operators that mean nothing for a keyword."""


@dataclass(slots=True)
class ConditionCheck:
    """Checks the conditions of one release, one rule after another; counts what they use in all."""

    field_count: int
    nodes: int = 0
    regex_instructions: int = 0
    _rule: pb.Rule = field(default_factory=pb.Rule)

    def check(self, rule: pb.Rule) -> None:
        """Raises ContentError when the rule's condition is not sound."""
        self._rule = rule
        self._expression(rule.condition, 1)

    def _refuse(self, code: Code, message: str) -> ContentError:
        return ContentError(code, f"rule {self._rule.id}: {message}", file=self._rule.file, rule_id=self._rule.id)

    def _expression(self, expression: pb.Expression, depth: int) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise self._refuse(Code.TOO_MANY_NODES, f"the release has more than {MAX_NODES} conditions; split it")
        if depth > MAX_DEPTH:
            raise self._refuse(Code.TOO_DEEP, f"the condition is nested deeper than {MAX_DEPTH} levels; flatten it")
        form = expression.WhichOneof("form")
        if form == "predicate":
            self._predicate(expression.predicate)
        elif form == "negated":
            self._expression(expression.negated, depth + 1)
        elif form is None:
            raise self._refuse(Code.MALFORMED, "a condition has no form")
        else:
            parts = getattr(expression, form).parts
            if not parts:
                raise self._refuse(Code.MALFORMED, f"`{form}` of nothing")
            for part in parts:
                self._expression(part, depth + 1)

    def _predicate(self, predicate: pb.Predicate) -> None:
        operator = predicate.operator
        if operator == pb.OPERATOR_UNSPECIFIED or operator not in pb.Operator.values():
            raise self._refuse(Code.UNKNOWN_OPERATOR, f"operator {operator} is not known to this version")
        if predicate.field > self.field_count or predicate.other_field > self.field_count:
            number = max(predicate.field, predicate.other_field)
            raise self._refuse(Code.UNKNOWN_FIELD, f"field {number} of {self.field_count}")
        if operator in NEEDS_FIELD and not predicate.field:
            raise self._refuse(Code.UNKNOWN_FIELD, f"{pb.Operator.Name(operator)} needs a field, got a keyword")
        if operator in BETWEEN_FIELDS and not predicate.other_field:
            raise self._refuse(Code.UNKNOWN_FIELD, f"{pb.Operator.Name(operator)} names no other field")
        if len(predicate.text) > MAX_TEXT_BYTES:
            raise self._too_long(len(predicate.text))
        if operator in NUMERIC:
            self._number(predicate.number)
        elif operator in _OPERANDS:
            _OPERANDS[operator](self, predicate)

    def _too_long(self, size: int) -> ContentError:
        return self._refuse(Code.TEXT_TOO_LONG, f"a value of {size} bytes; at most {MAX_TEXT_BYTES}")

    def _number(self, text: str) -> None:
        if len(text) > MAX_TEXT_BYTES:
            raise self._too_long(len(text))
        if semantics.number(text.encode()) is None:
            raise self._refuse(Code.INVALID_NUMBER, f"got {text!r}, expected a decimal number")

    def _wildcard(self, predicate: pb.Predicate) -> None:
        pieces = predicate.wildcard
        if not 0 < len(pieces) <= MAX_WILDCARD_PIECES:
            raise self._refuse(Code.TEXT_TOO_LONG, f"{len(pieces)} wildcard pieces; 1 to {MAX_WILDCARD_PIECES}")
        if sum(len(piece.literal) for piece in pieces) > MAX_TEXT_BYTES:
            raise self._too_long(sum(len(piece.literal) for piece in pieces))
        for piece in pieces:
            kind = piece.WhichOneof("piece")
            if kind is None or not getattr(piece, kind):
                raise self._refuse(Code.MALFORMED, "an empty wildcard piece")
            try:
                piece.literal.decode()
            except UnicodeDecodeError as error:  # a wildcard works on characters
                raise self._refuse(Code.MALFORMED, f"a wildcard piece is no UTF-8: {error}") from error

    def _network(self, predicate: pb.Predicate) -> None:
        try:
            ipaddress.ip_network(predicate.text.decode())
        except ValueError as error:
            raise self._refuse(Code.INVALID_NETWORK, f"{error}; expected a network such as 10.0.0.0/8") from error

    def _regex(self, predicate: pb.Predicate) -> None:
        try:
            size = semantics.regex(predicate.text).programsize
        except ValueError as error:
            shown = predicate.text.decode("utf-8", "replace")
            raise self._refuse(
                Code.INVALID_REGEX, f"RE2 does not take the regular expression {shown!r}: {error}"
            ) from error
        self.regex_instructions += size
        if size > MAX_REGEX_PROGRAM or self.regex_instructions > MAX_REGEX_PROGRAMS:
            raise self._refuse(
                Code.REGEX_TOO_BIG,
                f"a regular expression of {size} instructions, {self.regex_instructions} in the release so far; "
                f"at most {MAX_REGEX_PROGRAM} and {MAX_REGEX_PROGRAMS}",
            )


_OPERANDS: Final[dict[int, Callable[[ConditionCheck, pb.Predicate], None]]] = {
    pb.OPERATOR_WILDCARD: ConditionCheck._wildcard,  # noqa: SLF001 - the class's own table
    pb.OPERATOR_CIDR: ConditionCheck._network,  # noqa: SLF001
    pb.OPERATOR_REGEX: ConditionCheck._regex,  # noqa: SLF001
}
