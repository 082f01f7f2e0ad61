"""The last place in the queues for processor and disk, for one thread."""

import ctypes
import os
from typing import Final

NICEST: Final = 19
IOPRIO_SET: Final = 30 if os.uname().machine == "aarch64" else 251
_WHO_THREAD: Final = 1
_CLASS_IDLE: Final = 3 << 13


def stand_back() -> None:
    """The calling thread runs, and reads from disks, when nobody else wants to. Raises OSError.

    Nice values are a thread's own on Linux, whatever POSIX says: setpriority(2).
    """
    os.setpriority(os.PRIO_PROCESS, 0, NICEST)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(IOPRIO_SET, _WHO_THREAD, 0, _CLASS_IDLE) == -1:
        raise OSError(ctypes.get_errno(), "ioprio_set")
