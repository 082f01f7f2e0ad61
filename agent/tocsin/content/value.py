"""A Sigma value as a comparison of a release.

pySigma has applied the modifiers: what comes here is a string of literals and
wildcards, a number, a regular expression and so on. What the release's format
cannot say is a ContentError with a reason; nothing is left out. The caller adds
file and line.
"""

from collections.abc import Callable
from typing import Final

from sigma.types import (
    CompareOperators,
    Placeholder,
    SigmaBool,
    SigmaCasedString,
    SigmaCIDRExpression,
    SigmaCompareExpression,
    SigmaExists,
    SigmaExpansion,
    SigmaFieldReference,
    SigmaNull,
    SigmaNumber,
    SigmaRegularExpression,
    SigmaRegularExpressionFlag,
    SigmaString,
    SigmaTimestampPart,
    SigmaType,
    SpecialChars,
)

from tocsin.api.content.v1 import release_pb2 as pb
from tocsin.errors import ContentError
from tocsin.evaluate import semantics
from tocsin.evaluate.code import Code

ANY: Final = SpecialChars.WILDCARD_MULTI
FLAGS: Final = {
    SigmaRegularExpressionFlag.IGNORECASE: "i",
    SigmaRegularExpressionFlag.MULTILINE: "m",
    SigmaRegularExpressionFlag.DOTALL: "s",
}
COMPARISONS: Final = {
    CompareOperators.LT: pb.OPERATOR_LESS,
    CompareOperators.LTE: pb.OPERATOR_LESS_EQUAL,
    CompareOperators.GT: pb.OPERATOR_GREATER,
    CompareOperators.GTE: pb.OPERATOR_GREATER_EQUAL,
}
MAX_EXACT_INTEGER: Final = 1 << 53
"""pySigma compares integers with floats: greater ones may come out changed."""

LINEAR_ONLY: Final = (
    "Lookaround and back references have no linear-time evaluation; say the same with several conditions"
)

FieldNumber = Callable[[str], int]
"""Number of a field name; makes one for a new name."""


def comparison(field: int, value: SigmaType, number_of: FieldNumber) -> pb.Expression:
    """The condition that a field (0: any field) has a value. Raises ContentError."""
    if isinstance(value, SigmaExpansion):
        return any_of([comparison(field, one, number_of) for one in value.values])
    if isinstance(value, SigmaExists):
        found = leaf(pb.Predicate(field=field, operator=pb.OPERATOR_EXISTS))
        return found if value.exists else pb.Expression(negated=found)
    if isinstance(value, SigmaCompareExpression) and value.op is CompareOperators.NEQ:
        return pb.Expression(negated=leaf(_number(field, value.number)))
    for kind, make in _MAKERS:
        if isinstance(value, kind):
            return leaf(make(field, value, number_of))
    raise ContentError(Code.UNSUPPORTED, f"values of kind {type(value).__name__} cannot be evaluated on a host")


def leaf(predicate: pb.Predicate) -> pb.Expression:
    """A comparison as a condition."""
    return pb.Expression(predicate=predicate)


def any_of(parts: list[pb.Expression]) -> pb.Expression:
    """True when one part is; nested ones are flattened."""
    flat = [inner for part in parts for inner in (part.any.parts if part.HasField("any") else (part,))]
    return flat[0] if len(flat) == 1 else pb.Expression(any=pb.ExpressionList(parts=flat))


def all_of(parts: list[pb.Expression]) -> pb.Expression:
    """True when each part is; nested ones are flattened."""
    flat = [inner for part in parts for inner in (part.all.parts if part.HasField("all") else (part,))]
    return flat[0] if len(flat) == 1 else pb.Expression(all=pb.ExpressionList(parts=flat))


def _string(field: int, value: SigmaString, _number_of: FieldNumber) -> pb.Predicate:
    parts: list[str | SpecialChars] = []
    for part in value.s:
        if isinstance(part, Placeholder):
            raise ContentError(
                Code.UNSUPPORTED, f"the placeholder %{part.name}% has no value here: write its values into the rule"
            )
        if part is not ANY or not parts or parts[-1] is not ANY:
            parts.append(part)
    if field == 0:  # a keyword stands anywhere in a value
        parts = [*([] if parts[:1] == [ANY] else [ANY]), *parts, *([] if parts[-1:] == [ANY] else [ANY])]
    predicate = _pattern(parts)
    predicate.field = field
    predicate.case_sensitive = isinstance(value, SigmaCasedString)
    return predicate


def _pattern(parts: list[str | SpecialChars]) -> pb.Predicate:
    """The plainest operator that says the same as literals and wildcards."""
    if all(part is ANY for part in parts) and parts:
        return pb.Predicate(operator=pb.OPERATOR_EXISTS)
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) == len(parts):
        return pb.Predicate(operator=pb.OPERATOR_EQUALS, text=_encoded("".join(texts)))
    if len(texts) == 1 and SpecialChars.WILDCARD_SINGLE not in parts:
        before, after = parts[0] is ANY, parts[-1] is ANY
        operator = {
            (True, True): pb.OPERATOR_CONTAINS,
            (True, False): pb.OPERATOR_ENDSWITH,
            (False, True): pb.OPERATOR_STARTSWITH,
        }[before, after]
        return pb.Predicate(operator=operator, text=_encoded(texts[0]))
    return pb.Predicate(operator=pb.OPERATOR_WILDCARD, wildcard=[_piece(part) for part in parts])


def _piece(part: str | SpecialChars) -> pb.WildcardPiece:
    if isinstance(part, str):
        return pb.WildcardPiece(literal=_encoded(part))
    return pb.WildcardPiece(any=True) if part is ANY else pb.WildcardPiece(one=True)


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ContentError(Code.INVALID_VALUE, f"{text!r} has no UTF-8 form: {error.reason}") from error


def _number_text(value: SigmaNumber) -> str:
    number = value.number
    if abs(number) > MAX_EXACT_INTEGER:
        raise ContentError(Code.INVALID_VALUE, f"{number} is too big to compare exactly: quote it to compare text")
    text = str(number)
    if semantics.number(text.encode()) is None:
        raise ContentError(Code.INVALID_NUMBER, f"{text} is no decimal number without exponent")
    return text


def _number(field: int, value: SigmaNumber) -> pb.Predicate:
    if isinstance(value, SigmaTimestampPart):
        raise ContentError(Code.UNSUPPORTED, "modifiers on parts of a time (hour, day, ...) need a field with a time")
    text = _number_text(value)
    if field == 0:
        return pb.Predicate(operator=pb.OPERATOR_CONTAINS, text=text.encode())
    return pb.Predicate(field=field, operator=pb.OPERATOR_NUMBER_EQUALS, number=text)


def _compare(field: int, value: SigmaCompareExpression, _number_of: FieldNumber) -> pb.Predicate:
    return pb.Predicate(field=field, operator=COMPARISONS[value.op], number=_number_text(value.number))


def _regex(field: int, value: SigmaRegularExpression, _number_of: FieldNumber) -> pb.Predicate:
    flags = "".join(sorted(FLAGS[flag] for flag in value.flags))
    text = _encoded((f"(?{flags})" if flags else "") + str(value.regexp))
    try:
        semantics.regex(text)
    except ValueError as error:
        raise ContentError(
            Code.INVALID_REGEX,
            f"the regular expression {text.decode()!r} is not for RE2: {error}. {LINEAR_ONLY}",
        ) from error
    return pb.Predicate(
        field=field,
        operator=pb.OPERATOR_REGEX,
        text=text,
        case_sensitive=SigmaRegularExpressionFlag.IGNORECASE not in value.flags,
    )


def _reference(field: int, value: SigmaFieldReference, number_of: FieldNumber) -> pb.Predicate:
    operator = {
        (False, False): pb.OPERATOR_FIELD_EQUALS,
        (True, True): pb.OPERATOR_FIELD_CONTAINS,
        (True, False): pb.OPERATOR_FIELD_STARTSWITH,
        (False, True): pb.OPERATOR_FIELD_ENDSWITH,
    }[value.starts_with, value.ends_with]
    return pb.Predicate(field=field, operator=operator, other_field=number_of(value.field))


def _network(field: int, value: SigmaCIDRExpression, _number_of: FieldNumber) -> pb.Predicate:
    return pb.Predicate(field=field, operator=pb.OPERATOR_CIDR, text=str(value.network).encode())


def _bool(field: int, value: SigmaBool, _number_of: FieldNumber) -> pb.Predicate:
    operator = pb.OPERATOR_EQUALS if field else pb.OPERATOR_CONTAINS
    return pb.Predicate(field=field, operator=operator, text=b"true" if value.boolean else b"false")


def _null(field: int, _value: SigmaNull, _number_of: FieldNumber) -> pb.Predicate:
    return pb.Predicate(field=field, operator=pb.OPERATOR_NULL)


_MAKERS: Final[tuple[tuple[type, Callable[..., pb.Predicate]], ...]] = (
    (SigmaString, _string),
    (SigmaNumber, lambda field, value, _: _number(field, value)),
    (SigmaRegularExpression, _regex),
    (SigmaCIDRExpression, _network),
    (SigmaCompareExpression, _compare),
    (SigmaFieldReference, _reference),
    (SigmaBool, _bool),
    (SigmaNull, _null),
)
