"""io_uring by its system calls: what a program that has no liburing does. Layouts: include/uapi/linux/io_uring.h."""

import ctypes
import errno
import mmap
import os
import struct
import sys
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

import pytest

from kernel.calling import call  # type: ignore[import-not-found]

NOP, POLL, ACCEPT, CONNECT, OPENAT, OPENAT2 = 0, 6, 13, 16, 18, 28
RENAMEAT, UNLINKAT, MKDIRAT, SYMLINKAT, LINKAT = 35, 36, 37, 38, 39
FSETXATTR, SETXATTR, FTRUNCATE = 41, 42, 55
SEND, SOCKET, BIND = 26, 45, 56
IO_LINK, ASYNC, CQE_SKIP = 1 << 2, 1 << 4, 1 << 6
"""Bits of Request.flags: the next one waits; a worker does it; no completion when it succeeds."""
FIXED = 1
"""The descriptor is a slot of the ring."""
SQPOLL, CQSIZE = 1 << 1, 1 << 3
ANY_SLOT: Final = -1
ACCEPT_MULTISHOT: Final = 1
_RINGS_AT, _ENTRIES_AT = 0, 0x10000000
_GETEVENTS, _WAKEUP = 1, 2
_REGISTER_FILES, _REGISTER_PROBE = 2, 8
_PROBE_OPS: Final = 64
_SINGLE_MMAP: Final = 1
_SQE: Final = struct.Struct("<BBHiQQIIQHHiQQ")
_CQE: Final = struct.Struct("<QiI")
_PARAMS: Final = struct.Struct("<7I3I10I10I")
_NEED_WAKEUP: Final = 1


class Request(NamedTuple):
    """What is asked for; the names are those of struct io_uring_sqe."""

    opcode: int
    fd: int = -100
    addr: bytes | int | None = None
    addr2: bytes | int | None = None
    len: int = 0
    op_flags: int = 0
    flags: int = 0
    ioprio: int = 0
    user_data: int = 0
    file_index: int = 0
    addr3: bytes | None = None


class Ring:
    """A ring of this process. Raises OSError where there is none."""

    def __init__(self, entries: int = 8, flags: int = 0, completions: int = 0) -> None:
        raw = ctypes.create_string_buffer(_PARAMS.size)
        size_flag = CQSIZE if completions else 0
        _PARAMS.pack_into(raw, 0, 0, completions, flags | size_flag, 0, 50, *[0] * 25)
        self.fd = call("io_uring_setup", entries, raw)
        found = _PARAMS.unpack(raw)
        self._flags = flags
        self._submit, self._complete = found[10:18], found[20:28]
        assert found[5] & _SINGLE_MMAP, "this kernel is older than the tests"
        size = max(self._submit[6] + 4 * found[0], self._complete[5] + _CQE.size * found[1])
        self._rings = mmap.mmap(self.fd, size, mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=_RINGS_AT)
        self._entries = mmap.mmap(self.fd, _SQE.size * found[0], mmap.MAP_SHARED, offset=_ENTRIES_AT)
        self.kept: list[ctypes.Array[ctypes.c_char]] = []

    def ask(self, *requests: Request) -> None:
        """Submits; the results are `results`'s."""
        tail, mask = self._word(self._submit[1]), self._word(self._submit[2])
        for request in requests:
            at = tail & mask
            self._entries[at * _SQE.size : (at + 1) * _SQE.size] = self._packed(request)
            self._set(self._submit[6] + 4 * at, at)
            tail += 1
        self._set(self._submit[1], tail)
        if self._flags & SQPOLL:
            if self._word(self._submit[4]) & _NEED_WAKEUP:
                call("io_uring_enter", self.fd, len(requests), 0, _WAKEUP, None, 0)
        else:
            assert call("io_uring_enter", self.fd, len(requests), 0, 0, None, 0) == len(requests)

    def results(self, count: int) -> list[int]:
        """The next completions, waited for."""
        call("io_uring_enter", self.fd, 0, count, _GETEVENTS, None, 0)
        head = self._word(self._complete[0])
        assert self._word(self._complete[1]) - head >= count
        mask, at = self._word(self._complete[2]), self._complete[5]
        found = [
            _CQE.unpack_from(self._rings, at + _CQE.size * (number & mask)) for number in range(head, head + count)
        ]
        self._set(self._complete[0], head + count)
        return [result for _, result, _ in found]

    def do(self, *requests: Request) -> list[int]:
        """Submits and waits: results in the order in which they came."""
        self.ask(*requests)
        return self.results(len(requests))

    def register_slots(self, count: int) -> None:
        """A table of files, all of its slots empty."""
        empty = ctypes.create_string_buffer(struct.pack("<i", -1) * count)
        call("io_uring_register", self.fd, _REGISTER_FILES, empty, count)

    def can(self, opcode: int) -> bool:
        """Whether the kernel knows the operation."""
        probe = ctypes.create_string_buffer(16 + 8 * _PROBE_OPS)
        call("io_uring_register", self.fd, _REGISTER_PROBE, probe, _PROBE_OPS)
        return bool(struct.unpack_from("<H", probe, 16 + 8 * opcode + 2)[0] & 1)

    def close(self) -> None:
        """Ends the ring."""
        self._rings.close()
        self._entries.close()
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _packed(self, request: Request) -> bytes:
        return _SQE.pack(
            request.opcode,
            request.flags,
            request.ioprio,
            request.fd,
            self._address(request.addr2),
            self._address(request.addr),
            request.len & 0xFFFFFFFF,
            request.op_flags,
            request.user_data,
            0,
            0,
            request.file_index,
            self._address(request.addr3),
            0,
        )

    def _address(self, value: bytes | int | None) -> int:
        """Of bytes that stay where they are as long as the ring."""
        if not isinstance(value, bytes):
            return value or 0
        self.kept.append(ctypes.create_string_buffer(value))
        return ctypes.addressof(self.kept[-1])

    def _word(self, at: int) -> int:
        return int.from_bytes(self._rings[at : at + 4], sys.byteorder)

    def _set(self, at: int, value: int) -> None:
        self._rings[at : at + 4] = value.to_bytes(4, sys.byteorder)


@cache
def _missing(opcode: int) -> str:
    disabled = Path("/proc/sys/kernel/io_uring_disabled")
    if disabled.exists() and disabled.read_text().strip() == "2":
        return "kernel.io_uring_disabled is 2"
    try:
        with Ring() as ring:
            return "" if ring.can(opcode) else f"this kernel has no operation {opcode}"
    except OSError as error:
        return f"io_uring_setup: {errno.errorcode.get(error.errno or 0, error.errno)}"


def need(*opcodes: int) -> None:
    """Skips the test, loudly, where the kernel has not these operations."""
    for opcode in opcodes:
        if why := _missing(opcode):
            pytest.skip(f"IO_URING IS NOT TESTED: {why}")
