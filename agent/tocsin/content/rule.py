"""A Sigma rule as a rule of a release.

pySigma parses detections, modifiers and conditions. Whatever it or the
release's format does not take is a ContentError at the line of its cause; all
errors of a rule are collected.
"""

from typing import Final
from uuid import UUID

from sigma.conditions import (
    ConditionAND,
    ConditionFieldEqualsValueExpression,
    ConditionNOT,
    ConditionOR,
    ConditionValueExpression,
)
from sigma.exceptions import SigmaError, SigmaRegularExpressionError
from sigma.rule import SigmaRule
from sigma.rule.detection import SigmaDetection, SigmaDetectionItem

from tocsin.api.content.v1 import release_pb2 as pb
from tocsin.api.event.v1 import batch_pb2
from tocsin.content.document import Document, Node, ambiguous_errors
from tocsin.content.policy import POLICY
from tocsin.content.value import LINEAR_ONLY, all_of, any_of, comparison
from tocsin.errors import ContentError
from tocsin.evaluate.code import Code
from tocsin.evaluate.conditions import MAX_DEPTH, ConditionCheck
from tocsin.evaluate.release import check_rule

MAX_CONDITION_CHARS: Final = 4096
DEFAULT_LEVEL: Final = batch_pb2.LEVEL_MEDIUM
"""Of a rule that gives none."""
OTHER_KINDS: Final = {
    "correlation": "correlations (counting over time) are not evaluated on hosts yet",
    "filter": "Sigma filters are not applied yet; write the exception into the rule's condition",
    "action": "rule collections with `action` are obsolete; write one rule a file",
}
KEY_OF_ERROR: Final = {
    "SigmaIdentifierError": "id",
    "SigmaTitleError": "title",
    "SigmaLevelError": "level",
    "SigmaStatusError": "status",
    "SigmaTagError": "tags",
    "SigmaDateError": "date",
    "SigmaModifiedError": "modified",
    "SigmaAuthorError": "author",
    "SigmaDescriptionError": "description",
    "SigmaReferencesError": "references",
    "SigmaFieldsError": "fields",
    "SigmaFalsePositivesError": "falsepositives",
    "SigmaRelatedError": "related",
    "SigmaLogsourceError": "logsource",
}


class RuleCompiler:
    """Compiles rules; `fields` grows by the names that they use, in the order of their first use."""

    def __init__(self) -> None:
        self.fields: dict[str, int] = {}

    def number_of(self, name: str) -> int:
        """Provisional number of a field, from 1."""
        return self.fields.setdefault(name, len(self.fields) + 1)

    def compile(self, document: Document) -> pb.Rule:
        """The rule of a document. Raises RuleErrors with everything that is wrong with it."""
        data = _mapping(document)
        rule_id = str(data.get("id") or "")
        errors = [*_missing(document, data), *ambiguous_errors(document, ("detection",))]
        errors += _detection_errors(document, data.get("detection"))
        if errors:
            raise RuleErrors(errors)
        sigma = _parsed(document, data)
        try:
            rule = _described(sigma, document)
            rule.condition.CopyFrom(self._condition(sigma, document))
            check_rule(rule, ConditionCheck(len(self.fields)))
        except ContentError as error:
            line = error.line or document.line("detection")
            located = ContentError(error.code, error.message, file=document.file, line=line, rule_id=rule_id)
            raise RuleErrors([located]) from error
        return rule

    def _condition(self, sigma: SigmaRule, document: Document) -> pb.Expression:
        conditions = []
        for position, condition in enumerate(sigma.detection.parsed_condition):
            where = ("detection", "condition", position)
            if not isinstance(condition.condition, str) or len(condition.condition) > MAX_CONDITION_CHARS:
                message = f"a condition is a text of at most {MAX_CONDITION_CHARS} characters"
                raise document.error(Code.INVALID_CONDITION, message, *where)
            try:
                tree = condition.parse()
            except Exception as error:  # the parser raises what it likes on bad text
                message = f"the condition cannot be read: {_words(error)}"
                raise document.error(Code.INVALID_CONDITION, message, *where) from error
            conditions.append(self._expression(tree, document, 1))
        return any_of(conditions)

    def _expression(self, tree: object, document: Document, depth: int) -> pb.Expression:
        if depth > 4 * MAX_DEPTH:
            raise document.error(
                Code.TOO_DEEP, "the condition is nested too deep; flatten it", "detection", "condition"
            )
        if isinstance(tree, ConditionAND | ConditionOR):
            parts = [self._expression(part, document, depth + 1) for part in tree.args]
            return all_of(parts) if isinstance(tree, ConditionAND) else any_of(parts)
        if isinstance(tree, ConditionNOT):
            return pb.Expression(negated=self._expression(tree.args[0], document, depth + 1))
        if isinstance(tree, ConditionFieldEqualsValueExpression):
            try:
                return comparison(self.number_of(tree.field), tree.value, self.number_of)
            except ContentError as error:
                path = _path_of_field(document, tree.field)
                raise document.error(Code(error.code), f"field {tree.field}: {error.message}", *path) from error
        if isinstance(tree, ConditionValueExpression):
            return comparison(0, tree.value, self.number_of)
        raise document.error(
            Code.INVALID_CONDITION, f"a condition of kind {type(tree).__name__}", "detection", "condition"
        )


class RuleErrors(Exception):  # noqa: N818 - several errors, not one
    """What is wrong with a rule."""

    def __init__(self, errors: list[ContentError]) -> None:
        super().__init__(f"{len(errors)} errors")
        self.errors = errors


def _mapping(document: Document) -> dict[str, Node]:
    data = document.value
    if not isinstance(data, dict):
        raise RuleErrors([document.error(Code.NOT_A_RULE, "not a map: a Sigma rule has title, id, logsource, ...")])
    for key, reason in OTHER_KINDS.items():
        if key in data and "detection" not in data:
            raise RuleErrors([document.error(Code.UNSUPPORTED, reason, key)])
    if not {"detection", "logsource", "title", "id"} & data.keys():
        raise RuleErrors(
            [document.error(Code.NOT_A_RULE, "not a Sigma rule: neither title, id, logsource nor detection")]
        )
    return data


def _missing(document: Document, data: dict[str, Node]) -> list[ContentError]:
    errors = []
    if not data.get("id"):
        errors.append(document.error(Code.MISSING_ID, "the rule has no id; add `id:` with a new UUID", "id"))
    if not data.get("title"):
        errors.append(document.error(Code.MISSING_TITLE, "the rule has no title; add `title:`", "title"))
    detection = data.get("detection")
    if not isinstance(detection, dict):
        errors.append(
            document.error(Code.INVALID_RULE, "the rule has no detection; add a map `detection:`", "detection")
        )
    elif "condition" not in detection:
        errors.append(document.error(Code.INVALID_CONDITION, "the detection has no condition", "detection"))
    if not isinstance(data.get("logsource"), dict):
        errors.append(
            document.error(Code.INVALID_RULE, "the rule has no logsource; add a map `logsource:`", "logsource")
        )
    return errors


def _detection_errors(document: Document, detection: Node) -> list[ContentError]:
    """Each item of each detection that pySigma does not take, at its line."""
    if not isinstance(detection, dict):
        return []
    errors: list[ContentError] = []
    for name, definition in detection.items():
        if name in ("condition", "timeframe"):
            continue
        maps = (
            definition
            if isinstance(definition, list) and any(isinstance(d, dict) for d in definition)
            else [definition]
        )
        for position, part in enumerate(maps):
            path = ("detection", name) if maps is not definition else ("detection", name, position)
            errors += _item_errors(document, part, path)
    if "timeframe" in detection:
        message = "`timeframe` needs a correlation, which is not evaluated on hosts yet"
        errors.append(document.error(Code.UNSUPPORTED, message, "detection", "timeframe"))
    return errors


def _item_errors(document: Document, part: Node, path: tuple[str | int, ...]) -> list[ContentError]:
    errors = []
    items = part.items() if isinstance(part, dict) and part else [(None, part)]
    for key, value in items:
        try:
            if key is None:
                SigmaDetection.from_definition(value, policy=POLICY)
            else:
                SigmaDetectionItem.from_mapping(key, value, policy=POLICY)
        except SigmaRegularExpressionError as error:
            message = f"{key or path[-1]}: {_words(error)}. {LINEAR_ONLY}"
            errors.append(document.error(Code.INVALID_REGEX, message, *_item_path(path, key)))
        except Exception as error:  # noqa: BLE001 - the parser raises what it likes on bad values
            message = f"{key or path[-1]}: {_words(error)}"
            errors.append(document.error(Code.INVALID_VALUE, message, *_item_path(path, key)))
    return errors


def _item_path(path: tuple[str | int, ...], key: str | None) -> tuple[str | int, ...]:
    return path if key is None else (*path, key)


def _parsed(document: Document, data: dict[str, Node]) -> SigmaRule:
    try:
        sigma = SigmaRule.from_dict(data, collect_errors=True, policy=POLICY)
    except Exception as error:
        raise RuleErrors([document.error(Code.INVALID_RULE, f"not a Sigma rule: {_words(error)}")]) from error
    if sigma.errors:
        raise RuleErrors(
            [
                document.error(Code.INVALID_RULE, _words(error), KEY_OF_ERROR.get(type(error).__name__, "detection"))
                for error in sigma.errors
            ]
        )
    return sigma


def _words(error: Exception) -> str:
    if isinstance(error, SigmaError | ValueError | TypeError) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _described(sigma: SigmaRule, document: Document) -> pb.Rule:
    """Everything but the condition."""
    if not isinstance(sigma.id, UUID):
        raise document.error(Code.MISSING_ID, f"the id {sigma.id!r} is no UUID", "id")
    level = batch_pb2.Level.Value(f"LEVEL_{sigma.level.name}") if sigma.level is not None else DEFAULT_LEVEL
    source = sigma.logsource
    return pb.Rule(
        id=str(sigma.id),
        title=sigma.title,
        author=(sigma.author or "").strip(),
        level=level,
        tags=[str(tag) for tag in sigma.tags],
        log_source=pb.LogSource(
            category=source.category or "", product=source.product or "", service=source.service or ""
        ),
        file=document.file,
    )


def _path_of_field(document: Document, field: str) -> tuple[str | int, ...]:
    """Where a detection first names a field."""
    for path in document.lines:
        if path[:1] == ("detection",) and len(path) > 2 and str(path[-1]).split("|")[0] == field:
            return path
    return ("detection",)
