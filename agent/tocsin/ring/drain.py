"""The kernel's ring buffer, drained in bulk by `drain.c`.

Reading and freeing are two steps: `drain` moves a cursor of its own, `commit`
gives the space back to the kernel. Positions are bytes since the map was made.
"""

import ctypes
import os
from ctypes import POINTER, Structure, byref, c_char_p, c_int, c_uint32, c_uint64, c_void_p
from typing import Final

from tocsin.errors import KernelError
from tocsin.native import library

MAX_RECORD_BYTES: Final = 20480
"""The eBPF side's RECORD_BYTES: no record is longer."""


class _Drained(Structure):
    _fields_ = [("end", c_uint64), ("length", c_uint64), ("count", c_uint32), ("malformed", c_uint32)]


class Ring:
    """A mapped ring. Not thread-safe. `fd` stays the caller's."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        """Raises KernelError when the ring cannot be mapped."""
        self._library = _declare(library())
        self._ring = self._library.tocsin_ring_open(fd, size_bytes)
        if not self._ring:
            code = ctypes.get_errno()
            raise KernelError(f"cannot map a ring buffer of {size_bytes} bytes: {os.strerror(code)}")
        self.size_bytes = size_bytes
        self._result = _Drained()
        self._buffer = ctypes.create_string_buffer(MAX_RECORD_BYTES + 64)

    def consumer(self) -> int:
        """Position up to which space was given back."""
        return int(self._library.tocsin_ring_consumer(self._ring))

    def producer(self) -> int:
        """Position up to which the kernel has reserved space."""
        return int(self._library.tocsin_ring_producer(self._ring))

    def drain(self, start: int, max_bytes: int) -> tuple[bytes, int, int, int]:
        """Framed records from `start`: (body, end position, count, malformed); room for one record at least."""
        capacity = max(max_bytes, MAX_RECORD_BYTES + 64)
        if len(self._buffer) < capacity:
            self._buffer = ctypes.create_string_buffer(capacity)
        result = self._result
        self._library.tocsin_ring_drain(self._ring, start, self._buffer, capacity, byref(result))
        body = ctypes.string_at(self._buffer, result.length) if result.length else b""
        return body, result.end, result.count, result.malformed

    def commit(self, position: int) -> None:
        """Gives the space before `position` back."""
        self._library.tocsin_ring_commit(self._ring, position)

    def close(self) -> None:
        """Unmaps the ring."""
        self._library.tocsin_ring_close(self._ring)


def _declare(native: ctypes.CDLL) -> ctypes.CDLL:
    for name, result, arguments in (
        ("open", c_void_p, [c_int, c_uint64]),
        ("close", None, [c_void_p]),
        ("consumer", c_uint64, [c_void_p]),
        ("producer", c_uint64, [c_void_p]),
        ("commit", None, [c_void_p, c_uint64]),
        ("drain", None, [c_void_p, c_uint64, c_char_p, c_uint64, POINTER(_Drained)]),
    ):
        function = getattr(native, f"tocsin_ring_{name}")
        function.restype, function.argtypes = result, arguments
    return native
