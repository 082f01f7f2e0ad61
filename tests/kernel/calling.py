"""System calls made for the sensor to see: by number, as a 32-bit process makes them, and refused by a sandbox."""

import ctypes
import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pyseccomp

from kernel.acting import fork_and  # type: ignore[import-not-found]

LIBC: Final = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long


def number(name: str) -> int:
    """Number of a system call on this architecture."""
    found: int = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
    assert found >= 0, f"libseccomp does not know {name}"
    return found


def call(name: str, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | ctypes.Structure | None) -> int:
    """The result. Raises OSError."""
    raw = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    passed = [ctypes.byref(value) if isinstance(value, ctypes.Structure) else value for value in raw]
    result = int(LIBC.syscall(ctypes.c_long(number(name)), *passed))
    if result == -1:
        raise OSError(ctypes.get_errno(), name)
    return result


def fails_with(code: int, act: Callable[[], object]) -> None:
    """Does what has to fail, and raises when it fails with another errno or not at all."""
    try:
        act()
    except OSError as error:
        if error.errno == code:
            return
        raise
    raise AssertionError(f"it succeeded, expected {errno.errorcode[code]}")


def refuse(name: str, code: int = errno.EPERM) -> None:
    """From here on this process's calls of `name` fail: a sandbox forbids them."""
    sandbox = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    sandbox.add_rule(pyseccomp.ERRNO(code), name)
    sandbox.load()


def compat(program: Path, *calls: tuple[int | str, ...]) -> tuple[int, list[int]]:
    """Makes 32-bit calls (acts/int80.c) in a process of its own: its pid, and the results."""
    words: list[str] = []
    for numbered in calls:
        words += ["--"] * bool(words) + [str(word) for word in numbered]
    with subprocess.Popen([str(program), *words], stdout=subprocess.PIPE) as process:
        out, _ = process.communicate(timeout=10)
    assert process.returncode == 0, f"{program} {words}: {process.returncode}"
    return process.pid, [int(line) for line in out.split()]


def done(act: Callable[[], object]) -> int:
    """The pid of a process that did `act`, after its end."""
    return ended(fork_and(act))


def ended(pid: int) -> int:
    """Waits for a child that must have done its act."""
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the act in process {pid} failed: {status:#x}"
    return pid
