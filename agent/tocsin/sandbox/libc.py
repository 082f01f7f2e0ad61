"""The system calls of a sandbox that Python does not offer, through ctypes.

Each raises OSError with the kernel's errno; what an errno means is known to
the callers only.
"""

import ctypes
import os
from typing import Final

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long


def syscall(number: int, *arguments: "int | ctypes.Array[ctypes.c_char] | None") -> int:
    """A system call by number. Raises OSError."""
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = int(_LIBC.syscall(ctypes.c_long(number), *converted))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def prctl(option: int, second: int = 0, third: int = 0) -> int:
    """prctl(2); unused arguments are zero, as the newer options demand. Raises OSError."""
    result = int(_LIBC.prctl(*(ctypes.c_ulong(a) for a in (option, second, third, 0, 0))))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
