"""A YAML file as plain values, each with its line.

The file may come from anyone. Its size is capped before it is read; the parser
runs as a stream of events, which has no recursion to overflow; depth, anchors,
tags, merge keys, second documents and duplicate keys are refused on the way.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import yaml
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from tocsin.errors import ContentError
from tocsin.evaluate.code import Code

MAX_FILE_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 24
"""Nested lists and maps; Sigma needs five."""

KeyPath = tuple[str | int, ...]
"""Keys and positions from the top of the document down to a value."""
Scalar = str | int | float | bool | None
Node = object
"""dict[str, Node], list[Node], Scalar, or a date."""

_UNAMBIGUOUS: Final = {
    "tag:yaml.org,2002:bool": re.compile("true|false", re.IGNORECASE),
    "tag:yaml.org,2002:int": re.compile("-?(?:0|[1-9][0-9]{0,18})", re.ASCII),
    "tag:yaml.org,2002:float": re.compile(r"-?(?:0|[1-9][0-9]{0,14})\.[0-9]{1,6}", re.ASCII),
    "tag:yaml.org,2002:null": re.compile(".*"),
    "tag:yaml.org,2002:str": re.compile("", re.DOTALL),
}
"""What a plain scalar of each tag looks like when nobody can mistake it for something else."""


@dataclass(slots=True)
class Document:
    """A parsed file."""

    file: str
    """Name for messages and for the release."""
    value: Node = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    """Line of each value, from 1; of a map's value: the line of its key."""
    ambiguous: dict[KeyPath, str] = field(default_factory=dict)
    """Plain scalars that YAML reads as something else than they look: no, 0777, 12:30, 2024-01-01, .nan."""

    def line(self, *path: str | int) -> int:
        """Line of the value at a path, or of the closest one above it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def error(self, code: Code, message: str, *path: str | int, rule_id: str = "") -> ContentError:
        """An error at a path of this document."""
        return ContentError(code, message, file=self.file, line=self.line(*path), rule_id=rule_id)


class _Scalars(SafeConstructor, Resolver):
    """YAML's reading of plain scalars."""

    def __init__(self) -> None:
        SafeConstructor.__init__(self)
        Resolver.__init__(self)

    def read(self, event: yaml.ScalarEvent) -> tuple[str, object]:
        """Tag and value. Raises ValueError or YAMLError."""
        tag: str = self.resolve(yaml.ScalarNode, event.value, event.implicit)  # type: ignore[no-untyped-call]
        node = yaml.ScalarNode(tag, event.value)
        construct = self.yaml_constructors.get(tag, SafeConstructor.construct_yaml_str)
        return tag, construct(self, node)


def read(path: Path, file: str) -> Document:
    """Reads and parses a file. Raises ContentError with file and line."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ContentError(Code.UNREADABLE, f"cannot be read: {error.strerror}", file=file) from error
    return parse(raw, file)


def parse(raw: bytes, file: str) -> Document:
    """Parses a file's bytes. Raises ContentError with file and line."""
    if len(raw) > MAX_FILE_BYTES:
        raise ContentError(Code.TOO_LARGE, f"more than {MAX_FILE_BYTES} bytes: split the file", file=file)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ContentError(
            Code.NOT_UTF8, f"is not UTF-8: {error.reason}; save it as UTF-8", file=file, line=line
        ) from error
    if text.startswith("\ufeff"):
        raise ContentError(Code.NOT_UTF8, "begins with a byte order mark; save it without", file=file, line=1)
    document = Document(file)
    try:
        _Reader(document, yaml.parse(text, Loader=yaml.CSafeLoader)).document()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        line = mark.line + 1 if mark is not None else 1
        raise ContentError(Code.YAML_SYNTAX, f"YAML: {problem}", file=file, line=line) from error
    return document


class _Reader:
    """Turns the parser's events into values. Recursion is bounded by MAX_DEPTH."""

    def __init__(self, document: Document, events: Iterator[yaml.Event]) -> None:
        self._document = document
        self._events = events
        self._scalars = _Scalars()

    def document(self) -> None:
        """Reads the only document."""
        documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self._refuse(event, Code.YAML_FEATURE, "a second document; one rule a file")
                self._document.value = self._value(next(self._events), ())
        if not documents:
            raise ContentError(Code.NOT_A_RULE, "the file is empty", file=self._document.file, line=1)

    def _refuse(self, event: yaml.Event, code: Code, message: str) -> ContentError:
        return ContentError(code, message, file=self._document.file, line=_line(event))

    def _value(self, event: yaml.Event, path: KeyPath) -> Node:
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise self._refuse(event, Code.YAML_FEATURE, "anchors and aliases are not allowed; write the value out")
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise self._refuse(event, Code.YAML_FEATURE, f"the tag {tag} is not allowed; leave it out")
        if len(path) > MAX_DEPTH:
            raise self._refuse(event, Code.YAML_NESTING, f"nested deeper than {MAX_DEPTH} levels")
        self._document.lines.setdefault(path, _line(event))
        if isinstance(event, yaml.MappingStartEvent):
            return self._map(path)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._list(path)
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, path)
        raise self._refuse(event, Code.YAML_SYNTAX, f"got {type(event).__name__}, expected a value")

    def _list(self, path: KeyPath) -> list[Node]:
        values: list[Node] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            values.append(self._value(event, (*path, len(values))))
        return values

    def _map(self, path: KeyPath) -> dict[str, Node]:
        values: dict[str, Node] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._key(event)
            if key in values:
                raise self._refuse(event, Code.DUPLICATE_KEY, f"the key {key!r} stands twice; only one can count")
            self._document.lines[*path, key] = _line(event)
            values[key] = self._value(next(self._events), (*path, key))
        return values

    def _key(self, event: yaml.Event) -> str:
        if not isinstance(event, yaml.ScalarEvent) or event.anchor is not None or event.tag is not None:
            raise self._refuse(event, Code.YAML_FEATURE, "a key has to be a plain text")
        if event.value == "<<" and not event.style:
            raise self._refuse(event, Code.YAML_FEATURE, "merge keys are not allowed; write the values out")
        key: str = event.value
        return key

    def _scalar(self, event: yaml.ScalarEvent, path: KeyPath) -> Node:
        try:
            tag, value = self._scalars.read(event)
        except (ValueError, TypeError, OverflowError) as error:
            raise self._refuse(event, Code.YAML_SYNTAX, f"{event.value[:40]!r} is no valid value: {error}") from error
        plain = _UNAMBIGUOUS.get(tag)
        if event.implicit[0] and (
            plain is None or (tag != "tag:yaml.org,2002:str" and not plain.fullmatch(event.value))
        ):
            self._document.ambiguous[path] = event.value
        return value


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark is not None else 1


def ambiguous_errors(document: Document, within: Sequence[str | int]) -> list[ContentError]:
    """An error for each scalar below a path that YAML reads as something else than it looks."""
    return [
        document.error(
            Code.AMBIGUOUS_SCALAR, f"{text[:40]!r} is read by YAML as a date, a number or a boolean: quote it", *path
        )
        for path, text in document.ambiguous.items()
        if path[: len(within)] == tuple(within)
    ]
