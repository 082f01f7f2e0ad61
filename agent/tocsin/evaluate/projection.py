"""A batch as scan buffer: project.c called with what it needs of a release, made once.

The buffer is reused: what `project` gives is valid until the next call.
"""

import ctypes
from array import array
from collections.abc import Mapping, Sequence
from typing import Final

from tocsin import native
from tocsin.api.event.v1 import event_pb2
from tocsin.errors import WireError
from tocsin.evaluate import semantics
from tocsin.evaluate.memo import Memo
from tocsin.records.field import ERROR_NAMES, Field
from tocsin.records.framing import Index

FIRST_BUFFER_BYTES: Final = 256 << 10
BODIES: Final = sum(1 << f.number for f in event_pb2.Event.DESCRIPTOR.oneofs_by_name["body"].fields)


class Row(ctypes.Structure):
    """struct row."""

    _fields_ = (
        ("message", ctypes.c_uint8),
        ("leaf", ctypes.c_uint8),
        ("wire", ctypes.c_uint8),
        ("presentation", ctypes.c_uint8),
        ("number", ctypes.c_uint16),
        ("event_type", ctypes.c_uint16),
    )


class User(ctypes.Structure):
    """struct user."""

    _fields_ = (("uid", ctypes.c_uint32), ("offset", ctypes.c_uint32), ("size", ctypes.c_uint32))


class Names(ctypes.Structure):
    """struct names."""

    _fields_ = (
        ("users", ctypes.POINTER(User)),
        ("user_count", ctypes.c_size_t),
        ("user_names", ctypes.c_char_p),
        ("errors", ctypes.POINTER(ctypes.c_char_p)),
        ("error_count", ctypes.c_size_t),
    )


_ERRORS: Final = (ctypes.c_char_p * len(ERROR_NAMES))(*(name.encode() if name else None for name in ERROR_NAMES))


class Projection:
    """Projects batches for one release. Not thread-safe."""

    def __init__(
        self,
        fields: Sequence[str],
        event_types: Sequence[int],
        *,
        every_field: bool,
        table: Mapping[int, Mapping[str, Field]] = semantics.EVENT_FIELDS,
    ) -> None:
        """`fields` count from 1; `every_field`: also those that the release does not name (keywords).

        `table`: event type -> name -> field. Raises ValueError when it has more than project.c can hold.
        """
        numbers = {name: number for number, name in enumerate(fields, 1)}
        rows = [
            Row(*field.path, field.wire, field.presentation, numbers.get(name, 0), event_type)
            for event_type in event_types
            for name, field in table[event_type].items()
            if every_field or name in numbers
        ]
        self._plans = plans(rows, event_types)
        self._buffer = bytearray(FIRST_BUFFER_BYTES)
        self._function = native.library().tocsin_project
        self._function.restype = ctypes.c_int64
        self.set_users({})

    def set_users(self, users: Mapping[int, bytes]) -> None:
        """Names for the fields that show a user."""
        ordered = sorted((uid, name) for uid, name in users.items() if 0 <= uid < 1 << 32 and name)
        entries, names = (User * len(ordered))(), b""
        for entry, (uid, name) in zip(entries, ordered, strict=True):
            entry.uid, entry.offset, entry.size = uid, len(names), len(name)
            names += name
        self._names = Names(entries, len(ordered), names, _ERRORS, len(_ERRORS))

    def project(self, index: Index, memo: Memo) -> "tuple[memoryview, array[int], array[int]]":
        """The scan buffer with what `memo` does not know, and two values for each event. Raises WireError.

        They are the offset behind its last byte in the buffer, and its outcome's number in `memo` or UNKNOWN.
        """
        ends, outcomes = array("I", bytes(4 * len(index))), array("I", bytes(4 * len(index)))
        size = -2
        while size == -2:
            size = self._call(index, memo, ends, outcomes)
            if size == -2:
                self._buffer = bytearray(2 * len(self._buffer))
        return memoryview(self._buffer)[:size], ends, outcomes

    def _call(self, index: Index, memo: Memo, ends: "array[int]", outcomes: "array[int]") -> int:
        bad = ctypes.c_uint64()
        size: int = self._function(
            index.batch,
            ctypes.c_size_t(len(index.batch)),
            ctypes.c_void_p(index.offsets.buffer_info()[0]),
            ctypes.c_void_p(index.lengths.buffer_info()[0]),
            (ctypes.c_char * len(index)).from_buffer(index.types),
            ctypes.c_size_t(len(index)),
            self._plans,
            ctypes.c_uint64(BODIES),
            ctypes.byref(self._names),
            memo.table,
            (ctypes.c_char * len(self._buffer)).from_buffer(self._buffer),
            ctypes.c_size_t(len(self._buffer)),
            ctypes.c_void_p(ends.buffer_info()[0]),
            ctypes.c_void_p(outcomes.buffer_info()[0]),
            ctypes.byref(bad),
        )
        if size == -1:
            raise WireError(f"event {bad.value} of the batch is malformed")
        return size


def plans(rows: Sequence[Row], event_types: Sequence[int]) -> "ctypes.Array[ctypes.c_char]":
    """struct plans. Raises ValueError when the rows are more, or have other numbers, than it can hold."""
    library = native.library()
    library.tocsin_plans_size.restype = ctypes.c_size_t
    made = ctypes.create_string_buffer(library.tocsin_plans_size(ctypes.c_size_t(len(event_types))))
    every = (Row * len(rows))(*rows)
    types = bytes(event_types)
    if library.tocsin_make_plans(every, ctypes.c_size_t(len(rows)), types, ctypes.c_size_t(len(types)), made) != 0:
        raise ValueError(f"{len(rows)} rows of {len(types)} event types: more than project.c can hold")
    return made
