"""A network of a test's own: every port is free in it, and nobody else's packets pass."""

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tocsin.kernel.core import cgroup_root

CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
SO_COOKIE = 57
LIBC = ctypes.CDLL(None, use_errno=True)


@contextmanager
def own_network() -> Iterator[None]:
    """Moves this thread into a new network namespace with a loopback device, and back."""
    with open("/proc/thread-self/ns/net", "rb") as before:
        if LIBC.unshare(CLONE_NEWNET) != 0:
            why = os.strerror(ctypes.get_errno())
            pytest.skip(f"DNS IS NOT TESTED: no network namespace can be made here: {why}")
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
                fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
            yield
        finally:
            assert LIBC.setns(before.fileno(), CLONE_NEWNET) == 0


def cookie(sock: socket.socket) -> int:
    """The kernel's own number of a socket, which it makes when it is asked."""
    found: int = struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0]
    return found


def needs_cgroup_hooks() -> None:
    """Skips the test where there is no hierarchy to attach to."""
    if cgroup_root() is None:
        pytest.skip("UDP AND DNS ARE NOT TESTED: no cgroup2 hierarchy is mounted here")
