"""Resource limits, soft and hard alike: what a process may use of the host.

RLIMIT_FSIZE 0 forbids to extend any regular file. Standard output or error may
be one, and then the log must go on: in that case the limit is what that file
has now plus LOG_RESERVE_BYTES. (The limit counts offsets, for every file alike.)
"""

import os
import resource
import stat
from collections.abc import Mapping
from typing import Final

from tocsin.sandbox.report import Outcome, Step

LOG_RESERVE_BYTES: Final = 16 << 20
_NAMES: Final = {
    resource.RLIMIT_AS: "AS",
    resource.RLIMIT_CORE: "CORE",
    resource.RLIMIT_FSIZE: "FSIZE",
    resource.RLIMIT_NOFILE: "NOFILE",
    resource.RLIMIT_NPROC: "NPROC",
}


def file_size_limit() -> int:
    """0, or enough for the log where standard output or error is a regular file. Bytes."""
    largest = -1
    for fd in (1, 2):
        try:
            state = os.fstat(fd)
        except OSError:
            continue
        if stat.S_ISREG(state.st_mode):
            largest = max(largest, state.st_size)
    return largest + LOG_RESERVE_BYTES if largest >= 0 else 0


def limit(values: Mapping[int, int]) -> Step:
    """Sets each limit, never above the hard limit that is in force."""
    lowered = []
    for kind, value in values.items():
        hard = resource.getrlimit(kind)[1]
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (bound, bound))
        lowered.append(f"{_NAMES[kind]} {bound}")
    return Step("limits", Outcome.DONE, ", ".join(lowered))
