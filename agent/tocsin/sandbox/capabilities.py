"""Linux capabilities: keep a named set, drop everything else from every set of the thread.

The bounding set goes first, for that takes CAP_SETPCAP, which the rest gives
away. What is dropped cannot come back, not by exec either.
"""

import ctypes
import os
import struct
from enum import IntEnum
from pathlib import Path
from typing import Final

from tocsin.sandbox.libc import prctl, syscall
from tocsin.sandbox.report import Outcome, Step, UnavailableError

_VERSION_3: Final = 0x20080522
_CAPGET, _CAPSET = (90, 91) if os.uname().machine == "aarch64" else (125, 126)
_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 23, 24, 47, 4


class Capability(IntEnum):
    """Those that Tocsin names; numbers from include/uapi/linux/capability.h."""

    DAC_READ_SEARCH = 2
    SETPCAP = 8
    SYS_PTRACE = 19
    SYS_RESOURCE = 24
    PERFMON = 38
    BPF = 39


def mask(kept: frozenset[Capability]) -> int:
    """The set as bits."""
    return sum(1 << capability for capability in kept)


def permitted() -> int:
    """The permitted set of this thread, as bits."""
    header = ctypes.create_string_buffer(struct.pack("<II", _VERSION_3, 0), 8)
    data = ctypes.create_string_buffer(24)
    syscall(_CAPGET, header, data)
    _, low, _, _, high, _ = struct.unpack("<6I", data.raw)
    return int(low | high << 32)


def _last_capability() -> int:
    try:
        return int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    except (OSError, ValueError):
        return 63


def bound(kept: frozenset[Capability]) -> str:
    """Drops everything outside `kept` from the bounding set: no exec brings it back. Raises UnavailableError."""
    for number in range(_last_capability() + 1):
        if number in kept:
            continue
        try:
            if prctl(_PR_CAPBSET_READ, number):
                prctl(_PR_CAPBSET_DROP, number)
        except OSError as error:
            raise UnavailableError(f"{error.strerror}: this process has no CAP_SETPCAP to give up the rest") from error
    return f"{len(kept)} left"


def _set(kept: int) -> None:
    header = ctypes.create_string_buffer(struct.pack("<II", _VERSION_3, 0), 8)
    low, high = kept & 0xFFFFFFFF, kept >> 32
    data = ctypes.create_string_buffer(struct.pack("<6I", low, low, 0, high, high, 0), 24)
    syscall(_CAPSET, header, data)


def keep_only(kept: frozenset[Capability]) -> Step:
    """Drops everything outside `kept`; tells which of `kept` this process never had."""
    had = permitted()
    try:
        prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
        _set(mask(kept) & had)
    except OSError as error:
        raise UnavailableError(f"capset: {error.strerror}") from error
    held = ", ".join(c.name for c in sorted(kept) if had >> c & 1) or "none"
    absent = ", ".join(c.name for c in sorted(kept) if not had >> c & 1)
    if absent:
        return Step("capabilities", Outcome.PARTIAL, f"kept {held}; without {absent}, which this process was not given")
    return Step("capabilities", Outcome.DONE, f"kept {held}")
