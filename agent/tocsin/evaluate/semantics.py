"""What values and comparisons mean: the one definition that compiler, matchers and samples share.

Values
  * A value is bytes. A field has any number of values; none: it is absent.
  * A field of the event schema has at most one value. A number is present
    whenever the message that holds it is; bytes are present when not empty.
  * Presented text: argv joined by single spaces, one final NUL dropped; an
    address as inet_ntop writes it; a user id as the user's name, in decimal
    where it has none; protocol 6 "tcp", 17 "udp"; direction "true" or "false";
    an errno as Linux's name ("EACCES"), 0 as "success"; a path that is absolute
    without empty components, "." and ".." (by its text alone: links are not
    followed); a list of addresses joined by ";", absent when it is malformed;
    other integers in decimal, those of signals and of enums too.
  * A named event's null is no value.

Comparisons
  * A comparison holds when it holds for one value of the field. On an absent
    field every comparison is false, but NULL, which is true when each value is
    empty. `not` of a false comparison is true.
  * Field 0 (a keyword) has the values of every field of the event.
  * Case-insensitive: the ASCII letters are folded, nothing else.
  * Text operators compare bytes. The wildcard `?` is one UTF-8 character or
    one byte that is part of none.
  * A regular expression is RE2, searched in the value decoded as UTF-8, each
    bad sequence replaced by U+FFFD; it is case-sensitive unless flagged.
  * A number is `-?(0|[1-9][0-9]*)([.][0-9]+)?`, compared exactly. A value that
    is none (NaN, Infinity, 1e3, 007) satisfies no comparison of numbers.
  * CIDR: the value is an address of the network's family, as text, inside it.

Log sources
  * Each part that a rule gives equals the event's; an event's empty part is
    absent. Schema events have product "linux", the categories of their type
    and no service.
"""

import re
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Protocol

import re2
from google.protobuf.message import Message

from tocsin.api.event.v1 import event_pb2, options_pb2
from tocsin.records.field import ERROR_NAMES, Field, Presentation
from tocsin.records.field_table import CATEGORY_EVENT_TYPES, FIELDS

PRODUCT: Final = "linux"
NUMBER: Final = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?", re.ASCII)
PROTOCOL_NAMES: Final = {6: b"tcp", 17: b"udp"}
"""Shared with project.c."""

REGEX_MEMORY_BYTES: Final = 1 << 20
"""RE2's cap for one expression: program and lazily built automata."""

Users = Mapping[int, bytes]
"""User id -> name."""


class Regex(Protocol):
    """What is used of RE2's compiled expressions."""

    @property
    def programsize(self) -> int:
        """Instructions."""

    def search(self, text: bytes) -> object | None:
        """Something when the expression is found in the text."""


@dataclass(frozen=True, slots=True)
class LogSource:
    """What a rule looks at, or what an event comes from. Empty parts: any, or absent."""

    category: str = ""
    product: str = ""
    service: str = ""

    def covers(self, event: "LogSource") -> bool:
        """Whether a rule with this log source looks at events with that one."""
        return (
            self.category in ("", event.category)
            and self.product in ("", event.product)
            and self.service in ("", event.service)
        )


def fields_by_event_type() -> dict[int, dict[str, Field]]:
    """Event type -> name -> field, for every type that reports what a process did, not what was lost."""
    bodies = event_pb2.Event.DESCRIPTOR.oneofs_by_name["body"].fields
    acts = (
        b.GetOptions().Extensions[options_pb2.act] for b in bodies if b.message_type is not event_pb2.Loss.DESCRIPTOR
    )
    return {t: {f.name: f for f in FIELDS if f.event_type in (0, t)} for t in sorted(act.event_type for act in acts)}


EVENT_FIELDS: Final = fields_by_event_type()


def log_sources(event_type: int) -> tuple[LogSource, ...]:
    """The log sources that a schema event of this type belongs to."""
    categories = [c for c, types in CATEGORY_EVENT_TYPES.items() if event_type in types]
    return tuple(LogSource(c, PRODUCT) for c in categories) or (LogSource("", PRODUCT),)


def fold(value: bytes) -> bytes:
    """Lower-cases the ASCII letters."""
    return value.lower()  # bytes.lower() knows no other letters


def decoded(value: bytes) -> bytes:
    """The UTF-8 text in which a regular expression is searched."""
    return value if value.isascii() else value.decode("utf-8", "replace").encode()


def regex(pattern: bytes) -> Regex:
    """A compiled RE2 expression. Raises ValueError saying what is wrong with it."""
    options = re2.Options()
    options.max_mem = REGEX_MEMORY_BYTES
    options.log_errors = False
    try:
        compiled: Regex = re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0] if error.args else error
        raise ValueError(reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)) from error
    return compiled


def number(value: bytes) -> Decimal | None:
    """The number that a value is, None when it is none."""
    return Decimal(value.decode()) if NUMBER.fullmatch(value) else None


def address(value: bytes) -> str | None:
    """4 or 16 bytes in network order as text, None for any other size."""
    family = {4: socket.AF_INET, 16: socket.AF_INET6}.get(len(value))
    return None if family is None else socket.inet_ntop(family, value)


def argv(value: bytes) -> bytes:
    """NUL-separated arguments as one line."""
    return value.removesuffix(b"\0").replace(b"\0", b" ")


def addresses(value: bytes) -> bytes | None:
    """Addresses, each behind its size in one byte, joined by semicolons; None when the bytes are no such list."""
    found: list[str] = []
    rest = value
    while rest:
        size = rest[0]
        text = address(rest[1 : 1 + size])
        if text is None or len(rest) <= size:
            return None
        found.append(text)
        rest = rest[1 + size :]
    return ";".join(found).encode()


def path(value: bytes) -> bytes:
    """An absolute path without empty components, "." and ".."; another one as it is."""
    if not value.startswith(b"/"):
        return value
    kept: list[bytes] = []
    for part in value.split(b"/"):
        if part == b"..":
            del kept[-1:]
        elif part not in (b"", b"."):
            kept.append(part)
    return b"/" + b"/".join(kept)


def present(presentation: Presentation, raw: int | bytes, users: Users) -> bytes | None:
    """The value of a schema field as rules see it; None: absent. `raw` is what protobuf decoded."""
    if isinstance(raw, bytes):
        show = _PRESENT_BYTES.get(presentation)
        return show(raw) if raw and show else raw or None
    return _PRESENT_NUMBER.get(presentation, _decimal)(raw, users)


def _ip(raw: bytes) -> bytes | None:
    text = address(raw)
    return None if text is None else text.encode()


_PRESENT_BYTES: Final[dict[Presentation, Callable[[bytes], bytes | None]]] = {
    Presentation.ARGV: argv,
    Presentation.IP: _ip,
    Presentation.IPS: addresses,
    Presentation.PATH: path,
}


def _errno(raw: int, users: Users) -> bytes | None:
    name = ERROR_NAMES[raw] if raw < len(ERROR_NAMES) else ""
    return name.encode() or _decimal(raw, users)


def _decimal(raw: int, _users: Users) -> bytes | None:
    return b"%d" % raw


_PRESENT_NUMBER: Final[dict[Presentation, Callable[[int, Users], bytes | None]]] = {
    Presentation.USER: lambda raw, users: users.get(raw) or b"%d" % raw,
    Presentation.PROTOCOL: lambda raw, _: PROTOCOL_NAMES.get(raw) or b"%d" % raw,
    Presentation.INITIATED: lambda raw, _: {1: b"true", 2: b"false"}.get(raw),
    Presentation.HEX: lambda raw, _: b"0x%x" % raw,
    Presentation.ERRNO: _errno,
}


def _attributes() -> dict[tuple[int, ...], tuple[str, str]]:
    messages = ((f.number, f.name, f.message_type) for f in event_pb2.Event.DESCRIPTOR.fields)
    return {(n, leaf.number): (name, leaf.name) for n, name, kind in messages if kind for leaf in kind.fields}


ATTRIBUTES: Final = _attributes()
"""Field.path -> names of the message and of the leaf in it."""


def value_of(field: Field, event: event_pb2.Event, users: Users) -> bytes | None:
    """The presented value of a schema field, None where it is absent."""
    message_name, leaf = ATTRIBUTES[field.path]
    if not event.HasField(message_name):  # type: ignore[arg-type]
        return None
    message: Message = getattr(event, message_name)
    return present(field.presentation, getattr(message, leaf), users)


def values_of(event: event_pb2.Event, users: Users) -> Iterator[tuple[str, bytes]]:
    """Every present field of a schema event, by its Sigma name."""
    for name, field in EVENT_FIELDS.get(event.type, {}).items():
        value = value_of(field, event, users)
        if value is not None:
            yield name, value
