"""Where the events of a serialised Batch stand, without decoding them.

A batch is events one after another and, at the end, its header: it is made by
appending. One C call walks it once. Nothing here knows what is inside an event
besides its type.
"""

import ctypes
from array import array
from dataclasses import dataclass
from typing import Final

from tocsin import native
from tocsin.api.event.v1 import batch_pb2
from tocsin.errors import WireError

EVENT_TAG: Final = b"\x0a"
HEADER_TAG: Final = b"\x12"
SMALL_EVENT_BYTES: Final = 32
"""Room is made for events of this size; smaller ones cost a second pass."""
_REASONS: Final = {
    -1: "is not a serialised Batch: a field is cut off or of no known wire type",
    -3: "has two headers: it is two batches",
}


@dataclass(frozen=True, slots=True)
class Index:
    """Where things stand in `batch`. The four sequences have the same order; offsets and lengths are in bytes."""

    batch: bytes
    offsets: "array[int]"
    lengths: "array[int]"
    types: bytearray
    """EventType of each event; 0 where it has none."""
    header: bytes
    """The serialised BatchHeader; empty where the batch has none."""

    def __len__(self) -> int:
        return len(self.types)

    def event(self, position: int) -> bytes:
        """The serialised event at `position`."""
        start = self.offsets[position]
        return self.batch[start : start + self.lengths[position]]


def index(batch: bytes) -> Index:
    """Finds the events and the header. Raises WireError when the bytes are no Batch."""
    capacity = len(batch) // SMALL_EVENT_BYTES + 1
    found = _index(batch, capacity)
    if found is None:  # an event takes two bytes at least
        found = _index(batch, len(batch) // 2 + 1)
    if found is None:
        raise WireError("more events than a batch of this size can hold: a fault of framing.c")
    return found


def _index(batch: bytes, capacity: int) -> Index | None:
    offsets, lengths = array("I", bytes(4 * capacity)), array("I", bytes(4 * capacity))
    types, header = bytearray(capacity), array("I", bytes(8))
    count = _function()(
        batch,
        len(batch),
        offsets.buffer_info()[0],
        lengths.buffer_info()[0],
        (ctypes.c_char * capacity).from_buffer(types),
        capacity,
        header.buffer_info()[0],
    )
    if count == -2:
        return None
    if count < 0:
        raise WireError(f"batch of {len(batch)} bytes {_REASONS[count]}")
    del offsets[count:], lengths[count:], types[count:]
    return Index(batch, offsets, lengths, types, batch[header[0] : header[0] + header[1]])


def _function() -> "ctypes._NamedFuncPointer":
    function = native.library().tocsin_batch_index
    if function.argtypes is None:
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        function.argtypes = [ctypes.c_char_p, size, pointer, pointer, pointer, size, pointer]
        function.restype = ctypes.c_int64
    return function


def without_first(found: Index, header: batch_pb2.BatchHeader, count: int, start_position: int) -> Index:
    """The batch without its first `count` events, which were taken before; `header` is its own, parsed."""
    rest = batch_pb2.BatchHeader()
    rest.CopyFrom(header)
    rest.start_position = start_position
    rest.first_event_index += count
    rest.event_count -= count
    body = b"".join(event_field(found.event(i)) for i in range(count, len(found)))
    return index(body + header_field(rest.SerializeToString()))


def event_field(event: bytes) -> bytes:
    """A serialised event as it stands in a batch."""
    return EVENT_TAG + varint(len(event)) + event


def header_field(header: bytes) -> bytes:
    """A serialised BatchHeader as it stands at the end of a batch."""
    return HEADER_TAG + varint(len(header)) + header


def field(number: int, value: bytes) -> bytes:
    """A field of protobuf that holds bytes, a text or a message, serialised."""
    return varint(number << 3 | 2) + varint(len(value)) + value


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins at a place, and the place behind it. Raises WireError when it is cut off or too long."""
    value = 0
    for shift in range(0, 35, 7):
        if at >= len(data):
            break
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
    raise WireError(f"got no number that ends before byte {at} of {len(data)}")


def varint(value: int) -> bytes:
    """Protobuf's encoding of a number that is not negative."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
