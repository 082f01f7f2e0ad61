"""JSON lines with events described by field names: from text to the evaluator's messages.

    {"category": "process_creation", "product": "linux", "service": null, "event": {"Image": "/bin/sh"}}

A number or a boolean stands as its text, null for no value, a list for a field
with several values.
"""

import json
from typing import Any, Final

from tocsin.api.content.v1 import release_pb2 as pb
from tocsin.errors import WireError

KEYS: Final = frozenset({"category", "product", "service", "event"})


def parse(line: bytes, number: int) -> pb.NamedEvent:
    """The event on a line. Raises WireError that tells what is wrong with it."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise WireError(f"is no JSON: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("event"), dict):
        raise WireError('is no object with an object "event"')
    unknown = sorted(record.keys() - KEYS)
    if unknown:
        raise WireError(f"has an unknown key {unknown[0]!r}, expected {', '.join(sorted(KEYS))}")
    source = pb.LogSource(**{key: _name(record, key) for key in ("category", "product", "service")})
    return pb.NamedEvent(log_source=source, values=_values(record["event"]), line=number)


def _name(record: dict[str, Any], key: str) -> str:
    value = record.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise WireError(f"{key}: got {type(value).__name__}, expected a text or null")
    return _encodable(value, key)


def _values(event: dict[str, Any]) -> list[pb.NamedValue]:
    return [
        pb.NamedValue(name=_encodable(name, "a field's name"), value=text_of(one, name))
        for name, value in event.items()
        for one in (value if isinstance(value, list) else [value])
    ]


def text_of(value: Any, name: str) -> bytes | None:
    """A JSON value as the value of a field. Raises WireError for an object or a list in a list."""
    if value is None:
        return None
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, str | int | float):
        return _encodable(str(value), name).encode()
    raise WireError(f"field {name}: got {type(value).__name__}, expected a text, a number, a boolean, null or a list")


def _encodable(text: str, name: str) -> str:
    """JSON can write half a surrogate pair, which is no text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise WireError(f"{name}: is no Unicode text: {error.reason}") from error
    return text
