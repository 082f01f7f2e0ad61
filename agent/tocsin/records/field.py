"""What a field of the event schema is: the type of the rows in the generated field table.

The rows themselves stand in `field_table.py`, generated from proto/. Nothing
here knows any particular field.
"""

from dataclasses import dataclass
from enum import IntEnum


class Wire(IntEnum):
    """How a field stands on the wire. The numbers are shared with `evaluate/project.c`."""

    VARINT = 0
    FIXED64 = 1
    BYTES = 2
    FIXED32 = 5


class Presentation(IntEnum):
    """How a value is shown as text; tocsin.api.event.v1.Presentation, shared with `evaluate/project.c`."""

    PLAIN = 0
    ARGV = 1
    IP = 2
    USER = 3
    PROTOCOL = 4
    INITIATED = 5
    HEX = 6
    FLAGS = 7
    PATH = 8
    ERRNO = 9
    ENUM = 10
    IPS = 11
    SIGNAL = 12


@dataclass(frozen=True, slots=True)
class Field:
    """A field that rules may name."""

    name: str
    """Name in Sigma's taxonomy: Image, ParentImage, DestinationPort."""
    path: tuple[int, ...]
    """Protobuf field numbers from Event down to the value: (6, 16) is process.exe."""
    event_type: int
    """EventType whose events carry it; 0: every type that has a process."""
    wire: Wire
    presentation: Presentation
