"""The kernel's proc connector: one datagram for each fork, exec, exit and change of ids, of every thread.

Requests are made by pyroute2; datagrams are read with one fixed layout, for
they come by the ten thousand. Whether some are missing is known from their
numbers: the kernel counts per CPU what it sends.
"""

import contextlib
import errno
import os
import socket
import struct
from enum import IntEnum
from typing import Final, NamedTuple

from pyroute2.netlink import NETLINK_CONNECTOR, NLMSG_DONE
from pyroute2.netlink.connector import cn_proc

from tocsin.errors import KernelError

SO_RCVBUFFORCE: Final = 33
ACK_TIMEOUT_S: Final = 2.0
RECEIVE_TIMEOUT_US: Final = 200_000
"""A waiting `receive` comes back after this, so that its thread can end."""
DATAGRAM_BYTES: Final = 4096
_LAYOUT: Final = struct.Struct("=16xIII4xHxxIIQ4I")
"""nlmsghdr; cn_msg: idx, val, seq, ack, len, flags; proc_event: what, cpu, timestamp_ns, four numbers."""
_ACK: Final = struct.Struct("=I")
_ACK_AT: Final = 52
_SEQUENCES: Final = 1 << 32


class What(IntEnum):
    """Kinds of datagrams that matter here."""

    ACK = cn_proc.PROC_EVENT_NONE
    FORK = cn_proc.PROC_EVENT_FORK
    EXEC = cn_proc.PROC_EVENT_EXEC
    UID = cn_proc.PROC_EVENT_UID
    GID = cn_proc.PROC_EVENT_GID
    EXIT = cn_proc.PROC_EVENT_EXIT


class Notice(NamedTuple):
    """One datagram."""

    what: int
    """A What, or another kind."""
    cpu: int
    sequence: int
    """Of this CPU, modulo 2**32."""
    monotonic_ns: int
    tid: int
    """The thread that acted; of a fork, the parent's."""
    pid: int
    """Its process."""
    first: int
    """FORK: thread id of the child; UID, GID: real id; EXIT: wait status."""
    second: int
    """FORK: process id of the child; UID, GID: effective id."""


def parse(datagram: bytes) -> Notice | None:
    """The datagram's content; None when it is none of the proc connector's."""
    if len(datagram) < _LAYOUT.size:
        return None
    index, value, sequence, _, *rest = _LAYOUT.unpack_from(datagram)
    if (index, value) != (cn_proc.CN_IDX_PROC, cn_proc.CN_VAL_PROC):
        return None
    what, cpu, monotonic_ns, *numbers = rest
    return Notice(what, cpu, sequence, monotonic_ns, *numbers)


class Sequences:
    """Counts what is missing between datagrams, by CPU."""

    def __init__(self) -> None:
        self._expected: dict[int, int] = {}

    def missing_before(self, notice: Notice) -> int:
        """How many datagrams of its CPU were lost since the last one; a CPU's first one tells nothing."""
        expected = self._expected.get(notice.cpu, notice.sequence)
        self._expected[notice.cpu] = (notice.sequence + 1) % _SEQUENCES
        return (notice.sequence - expected) % _SEQUENCES


class Connector:
    """A subscribed socket. One reader at a time."""

    def __init__(self, buffer_bytes: int) -> None:
        """`buffer_bytes`: the socket's buffer. Raises KernelError that says what is missing and what to do."""
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, NETLINK_CONNECTOR)
        except OSError as error:
            raise KernelError(
                f"no proc connector: {error.strerror}; this kernel needs CONFIG_PROC_EVENTS and the initial network "
                "namespace (no container of its own network)"
            ) from error
        try:
            self._subscribe(buffer_bytes)
        except OSError as error:
            self._socket.close()
            raise KernelError(_refusal(error)) from error
        except KernelError:
            self._socket.close()
            raise

    def _subscribe(self, buffer_bytes: int) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, buffer_bytes)
        self._socket.bind((0, cn_proc.CN_IDX_PROC))
        self._socket.settimeout(ACK_TIMEOUT_S)
        self._socket.sendto(_request(cn_proc.PROC_CN_MCAST_LISTEN), (0, 0))
        self._wait_for_ack()
        self._socket.setblocking(True)
        timeout = struct.pack("@ll", 0, RECEIVE_TIMEOUT_US)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)

    def _wait_for_ack(self) -> None:
        """Processes of other pid or user namespaces than the initial ones get no answer at all."""
        while True:
            datagram, sender = self._socket.recvfrom(DATAGRAM_BYTES)
            notice = parse(datagram) if sender[0] == 0 else None
            if notice is not None and notice.what == What.ACK:
                (code,) = _ACK.unpack_from(datagram, _ACK_AT)
                if code:
                    raise OSError(code, os.strerror(code))
                return

    def receive(self, *, wait: bool) -> Notice | None:
        """The next datagram; None when there is none (after RECEIVE_TIMEOUT_US, with `wait`).

        Datagrams that did not fit the socket's buffer show in the next one's number. Raises OSError.
        """
        while True:
            try:
                datagram, sender = self._socket.recvfrom(DATAGRAM_BYTES, 0 if wait else socket.MSG_DONTWAIT)
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    continue
                raise
            if sender[0] == 0 and (notice := parse(datagram)) is not None:  # a process may write here, too
                return notice

    def close(self) -> None:
        """Ends the subscription. Without CAP_NET_ADMIN the kernel is not told; it then finds no listener itself."""
        with contextlib.suppress(OSError):
            self._socket.sendto(_request(cn_proc.PROC_CN_MCAST_IGNORE), (0, 0))
        self._socket.close()


def _request(action: int) -> bytes:
    message = cn_proc.proc_event_control()
    message["idx"], message["val"], message["len"] = cn_proc.CN_IDX_PROC, cn_proc.CN_VAL_PROC, 4
    message["action"] = action
    message["header"]["type"] = NLMSG_DONE
    message.encode()
    return bytes(message.data)


def _refusal(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return (
            f"the proc connector did not answer within {ACK_TIMEOUT_S} s: it serves the initial pid and user namespace "
            "only; run the agent on the host, not in a container"
        )
    if error.errno in (errno.EPERM, errno.EACCES):
        return "no privilege for the proc connector: CAP_NET_ADMIN missing; run as root (sudo make run)"
    if error.errno == errno.ECONNREFUSED:
        return (
            "nobody answers at the proc connector: this kernel needs CONFIG_PROC_EVENTS, and the agent the initial "
            "network namespace (no container of its own network)"
        )
    return f"the proc connector cannot be used: {error.strerror}"
