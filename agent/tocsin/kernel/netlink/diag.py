"""TCP sockets of this network namespace, from the kernel's sock_diag.

Requests are made by pyroute2; answers are read with fixed layouts, for its own
decoder takes 60 µs a socket and a host may have ten thousand.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from pyroute2.netlink import NETLINK_SOCK_DIAG, NLM_F_MATCH, NLM_F_REQUEST, NLM_F_ROOT, NLMSG_DONE, NLMSG_ERROR
from pyroute2.netlink.diag import (
    SKNLGRP_INET6_TCP_DESTROY,
    SKNLGRP_INET_TCP_DESTROY,
    SOCK_DIAG_BY_FAMILY,
    SS_CONN,
    SS_LISTEN,
    inet_diag_req,
)

from tocsin.errors import KernelError
from tocsin.kernel.netlink.connector import SO_RCVBUFFORCE

ANSWER_TIMEOUT_S: Final = 5.0
ENDINGS_BUFFER_BYTES: Final = 4 << 20
ENDINGS_AT_ONCE: Final = 4096
_STATES: Final = SS_CONN | 1 << SS_LISTEN
_INFO: Final = 2
"""INET_DIAG_INFO: struct tcp_info; as a bit of a request's extensions, 1 << (2 - 1), the same number."""
_HEADER: Final = struct.Struct("=IHHII")
_SOCKET: Final = struct.Struct("=BBxx2s2s16s16s4xQ12xII")
"""inet_diag_msg: family, state, ports, addresses, cookie, uid, inode."""
_ATTRIBUTE: Final = struct.Struct("=HH")
_ACKED_RECEIVED: Final = struct.Struct("=QQ")
_ACKED_RECEIVED_AT: Final = 120
_SENT_AGAIN: Final = struct.Struct("=QQ")
_SENT_AGAIN_AT: Final = 200
"""Of tcp_info: bytes_acked, bytes_received; bytes_sent, bytes_retrans (from Linux 4.19 on)."""


_MAPPED: Final = bytes(10) + b"\xff\xff"

Endpoint = tuple[bytes, int]
"""Address (4 or 16 bytes) and port."""


class TcpSocket(NamedTuple):
    """A socket as sock_diag tells it."""

    cookie: int
    state: int
    """SS_LISTEN, SS_ESTABLISHED, … of pyroute2.netlink.diag."""
    local: Endpoint
    remote: Endpoint
    uid: int
    inode: int
    """0: in nobody's hands, not accepted yet or closed already."""
    answered: bool
    """Whether the other side ever acknowledged or sent something."""
    sent_bytes: int
    """Payload, without what was sent again."""
    received_bytes: int
    """Payload; the other side's FIN counts as a byte."""


class Diag:
    """Two sockets: one to ask, one that is told of TCP sockets that end."""

    def __init__(self) -> None:
        """Raises KernelError when the kernel has no sock_diag."""
        try:
            self._asking = _open()
            self._asking.bind((0, 0))
            self._asking.settimeout(ANSWER_TIMEOUT_S)
            self._endings = _open()
        except OSError as error:
            raise KernelError(f"no sock_diag: {error.strerror}; this kernel needs CONFIG_INET_DIAG") from error
        self._endings.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, ENDINGS_BUFFER_BYTES)
        groups = (SKNLGRP_INET_TCP_DESTROY, SKNLGRP_INET6_TCP_DESTROY)
        self._endings.bind((0, sum(1 << (group - 1) for group in groups)))

    def sockets(self) -> list[TcpSocket]:
        """Listening and connected ones. Raises KernelError."""
        found: list[TcpSocket] = []
        for family in (socket.AF_INET, socket.AF_INET6):
            try:
                self._asking.send(_request(family))
                found += self._answer()
            except OSError as error:
                raise KernelError(
                    f"sock_diag does not list TCP sockets: {error.strerror or error}; load it: modprobe tcp_diag"
                ) from error
        return found

    def _answer(self) -> Iterator[TcpSocket]:
        while True:
            for kind, body in messages(self._asking.recv(1 << 17)):
                if kind == NLMSG_DONE:
                    return
                if kind == NLMSG_ERROR:
                    code = -int.from_bytes(body[:4], "little", signed=True)
                    raise OSError(code, os.strerror(code))
                yield parse(body)

    def endings(self) -> list[TcpSocket]:
        """Sockets that ended since the last call. Those that did not fit the buffer are seen by their absence."""
        found: list[TcpSocket] = []
        while len(found) < ENDINGS_AT_ONCE:
            try:
                datagram, sender = self._endings.recvfrom(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                continue
            if sender[0] == 0:
                found += (parse(body) for kind, body in messages(datagram) if kind == SOCK_DIAG_BY_FAMILY)
        return found

    def close(self) -> None:
        """Closes both."""
        self._asking.close()
        self._endings.close()


def _open() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG)


def _request(family: int) -> bytes:
    request = inet_diag_req()
    request["sdiag_family"], request["sdiag_protocol"] = family, socket.IPPROTO_TCP
    request["idiag_states"], request["idiag_ext"] = _STATES, _INFO
    request["header"]["type"] = SOCK_DIAG_BY_FAMILY
    request["header"]["flags"] = NLM_F_REQUEST | NLM_F_ROOT | NLM_F_MATCH
    request.encode()
    return bytes(request.data)


def messages(datagram: bytes) -> Iterator[tuple[int, memoryview]]:
    """Type and body of each netlink message."""
    view = memoryview(datagram)
    while len(view) >= _HEADER.size:
        size, kind, *_ = _HEADER.unpack_from(view)
        if not _HEADER.size <= size <= len(view):
            return
        yield kind, view[_HEADER.size : size]
        view = view[(size + 3) & ~3 :]


def parse(body: memoryview) -> TcpSocket:
    """A struct inet_diag_msg and its attributes."""
    family, state, *ends, cookie, uid, inode = _SOCKET.unpack_from(body)
    local_port, remote_port, local, remote = ends
    acked, received, sent, again = _bytes_of(body[_SOCKET.size :])
    return TcpSocket(
        cookie=cookie,
        state=state,
        local=(_address(local, family), int.from_bytes(local_port, "big")),
        remote=(_address(remote, family), int.from_bytes(remote_port, "big")),
        uid=uid,
        inode=inode,
        answered=acked > 0 or received > 0,
        sent_bytes=max(0, sent - again),
        received_bytes=received,
    )


def _bytes_of(attributes: memoryview) -> tuple[int, int, int, int]:
    """Bytes acknowledged, received, sent, sent again; zeros where the kernel does not tell."""
    while len(attributes) >= _ATTRIBUTE.size:
        size, kind = _ATTRIBUTE.unpack_from(attributes)
        if size < _ATTRIBUTE.size:
            break
        info = attributes[_ATTRIBUTE.size : size]
        if kind == _INFO and len(info) >= _SENT_AGAIN_AT + _SENT_AGAIN.size:
            return (
                *_ACKED_RECEIVED.unpack_from(info, _ACKED_RECEIVED_AT),
                *_SENT_AGAIN.unpack_from(info, _SENT_AGAIN_AT),
            )
        attributes = attributes[(size + 3) & ~3 :]
    return 0, 0, 0, 0


def _address(raw: bytes, family: int) -> bytes:
    """4 or 16 bytes; an IPv4 peer of an IPv6 socket is IPv4."""
    if family == socket.AF_INET:
        return raw[:4]
    return raw[12:] if raw.startswith(_MAPPED) else raw
