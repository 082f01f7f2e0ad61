"""Landlock: from now on only these paths, and (where the kernel can) no TCP, no signals to outsiders.

It needs no privilege beyond no_new_privs, binds the calling thread and all it
starts, and never goes away. File descriptors that are open already stay
usable. Later kernels know more kinds of access; each kernel is given all that
it knows (https://docs.kernel.org/userspace-api/landlock.html).
"""

import ctypes
import errno
import os
import struct
from collections.abc import Iterable
from typing import Final

from tocsin.errors import KernelError
from tocsin.sandbox.libc import syscall
from tocsin.sandbox.report import Outcome, Step, UnavailableError

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG: Final = 1
_RULE_PATH_BENEATH: Final = 1

_FS_EXECUTE, _FS_WRITE_FILE, _FS_READ_FILE, _FS_READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_FS_DEVICES: Final = 1 << 6 | 1 << 11
"""MAKE_CHAR and MAKE_BLOCK."""
_FS_ABI_1: Final = (1 << 13) - 1
_FS_REFER, _FS_TRUNCATE, _FS_IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_FS_FILE_ONLY: Final = _FS_EXECUTE | _FS_WRITE_FILE | _FS_READ_FILE | _FS_TRUNCATE | _FS_IOCTL_DEV
_NET_BIND_AND_CONNECT_TCP: Final = 3
_SCOPE_ABSTRACT_UNIX_AND_SIGNAL: Final = 3
FULL_ABI: Final = 6
"""The first ABI with everything that the profiles ask for: files, TCP, signals."""


def abi() -> int:
    """The kernel's Landlock ABI; 0 where it has none or it is switched off."""
    try:
        return syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG)
    except OSError:
        return 0


def _file_access(version: int) -> int:
    access = _FS_ABI_1
    for since, right in ((2, _FS_REFER), (3, _FS_TRUNCATE), (5, _FS_IOCTL_DEV)):
        if version >= since:
            access |= right
    return access


def _ruleset(version: int, *, deny_tcp: bool) -> int:
    network = _NET_BIND_AND_CONNECT_TCP if version >= 4 and deny_tcp else 0
    scoped = _SCOPE_ABSTRACT_UNIX_AND_SIGNAL if version >= 6 else 0
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    attributes = struct.pack("<QQQ", _file_access(version), network, scoped)[:size]
    return syscall(_CREATE_RULESET, ctypes.create_string_buffer(attributes, size), size, 0)


def _allow(ruleset: int, path: str, access: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError(f"{path}: {error.strerror}: cannot be allowed to uid {os.geteuid()}") from error
    try:
        is_directory = os.path.isdir(path)  # noqa: PTH112 - one call on a path that was just opened
        rule = struct.pack("<Qi", access if is_directory else access & _FS_FILE_ONLY, fd)
        syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.create_string_buffer(rule, len(rule)), 0)
    finally:
        os.close(fd)


def restrict(
    read_only: Iterable[str] = (), read_write: Iterable[str] = (), *, deny_tcp: bool, required_abi: int = FULL_ABI
) -> Step:
    """Puts the rules in force.

    `read_write` allows everything below but device nodes and execution; a
    relative path also works where a parent directory is closed to this user.
    Raises UnavailableError where the kernel has no Landlock, KernelError for a
    path that cannot be opened.
    """
    version = abi()
    if version == 0:
        raise UnavailableError("this kernel has no Landlock or does not enable it (boot with lsm=landlock,...)")
    every = _file_access(version)
    try:
        ruleset = _ruleset(version, deny_tcp=deny_tcp)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            raise UnavailableError("Landlock is built in but not enabled (boot with lsm=landlock,...)") from error
        raise
    try:
        for path in read_only:
            _allow(ruleset, path, _FS_READ_FILE | _FS_READ_DIR)
        for path in read_write:
            _allow(ruleset, path, every & ~(_FS_EXECUTE | _FS_DEVICES))
        syscall(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    detail = f"ABI {version}, writes below {', '.join(map(os.path.realpath, read_write)) or 'nothing'}"
    if version < required_abi:
        lacks = "signals" if version >= 4 else "TCP and signals"
        return Step("landlock", Outcome.PARTIAL, f"{detail}; {lacks} not covered before ABI {required_abi}")
    return Step("landlock", Outcome.DONE, detail)
