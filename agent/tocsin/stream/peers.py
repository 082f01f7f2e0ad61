"""Who is at the other end of a local connection, and what that allows.

The kernel tells: SO_PEERCRED and SO_PEERGROUPS hold what the peer was when it
connected, and it cannot choose them.
"""

import array
import socket
import struct
from dataclasses import dataclass
from enum import Enum
from typing import Final

_SO_PEERGROUPS: Final = 59
_UCRED: Final = struct.Struct("3i")


class Access(Enum):
    """What a local caller may do."""

    OPERATOR = "operator"
    """Everything."""
    READER = "reader"
    """Look."""
    DENIED = "denied"


@dataclass(frozen=True, slots=True)
class Peer:
    """A process as the kernel knows it."""

    pid: int
    uid: int
    gids: frozenset[int]


@dataclass(frozen=True, slots=True)
class Policy:
    """Who may do what."""

    operator_uids: frozenset[int]
    reader_gid: int | None
    """None: no such group on this host."""

    def access(self, peer: Peer) -> Access:
        """What a peer may do."""
        if peer.uid in self.operator_uids:
            return Access.OPERATOR
        if self.reader_gid is not None and self.reader_gid in peer.gids:
            return Access.READER
        return Access.DENIED


def identify(sock: socket.socket) -> Peer:
    """The peer of a connected unix socket. Raises OSError."""
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Peer(pid, uid, frozenset({gid, *_groups(sock)}))


def _groups(sock: socket.socket) -> "array.array[int]":
    """Python's getsockopt takes at most 1024 bytes: 256 groups. A peer with more is known by its primary group."""
    groups = array.array("I")
    try:
        groups.frombytes(sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024))
    except OSError:
        return array.array("I")
    return groups
