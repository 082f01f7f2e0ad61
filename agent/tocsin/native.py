"""The one shared library of C code, opened by ctypes.

`make build` compiles every *.c under this package into `_native.so`. Each
module declares the functions it calls; nothing here knows any of them.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Final

from tocsin.errors import KernelError

PATH: Final = Path(__file__).with_name("_native.so")


@cache
def library() -> ctypes.CDLL:
    """The library. Raises KernelError when it is missing or not for this machine."""
    if not PATH.exists():
        raise KernelError(f"{PATH} is missing: run `make build`, or install a wheel for this machine")
    try:
        return ctypes.CDLL(str(PATH), use_errno=True)
    except OSError as error:
        raise KernelError(f"{PATH} cannot be loaded ({error}): run `make build` on this machine") from error
