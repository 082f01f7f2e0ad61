"""The channel between two processes of the agent: one message is one SOCK_SEQPACKET datagram.

A message is a fixed header (kind, code, two numbers, a digest) and an opaque
payload; file descriptors travel beside it. Who receives needs no parser to
know what to do: the monitor, which is root, reads headers only and passes
payloads on unread.

Nothing here knows what a kind means for a process. A message is never split,
never joined, and never pickled. A peer that sends garbage is a PeerError, and
the receiver drops that peer.
"""

import array
import errno
import os
import socket
import struct
from dataclasses import dataclass
from enum import IntEnum

from tocsin.errors import PeerError

HEADER = struct.Struct("<4sHHQQ32s")
MAGIC = b"TCS1"
MAX_MESSAGE_BYTES = 1 << 20
"""Largest datagram: header and payload. Batches are cut well below it."""
SOCKET_BUFFER_BYTES = 8 << 20
MAX_FDS = 64
"""Of one message: a source's maps and programs. The kernel takes 253."""
NO_DIGEST = bytes(32)


class Kind(IntEnum):
    """What a message is. A closed set; anything else is fatal to the sender's connection."""

    # every child -> monitor
    # READY of an evaluator: digest, a = rules, b = rules that cannot fire here, payload = release name;
    # of a sensor: a = Source, payload = why it is not the one that was wanted
    READY = 1
    # HEARTBEAT of an evaluator: a = events, b = batches, code = 1 while it waits for the courier;
    # of a sensor: a = events, b = batches that the evaluator has not acknowledged
    # of an enricher: payload = serialised EnrichmentStatus
    HEARTBEAT = 2
    REFUSED = 3  # evaluator: the release was refused; code = Stage, payload = serialised Refusal
    # monitor -> every child
    ATTACH = 10  # one fd: the channel to a peer; code = Role; a = epoch of positions; b = 1: it waits for SWITCH
    SHUTDOWN = 11
    # sensor <-> monitor
    # the fds of EventSource.handover and, last, of ToldLosses; the first message to a sensor gives them back
    KEEP = 20
    SWITCH = 21  # monitor -> sensor: the evaluator attached last takes over between two batches
    SWITCHED = 22  # sensor -> monitor: a = position of the first byte that the new evaluator sees
    # monitor -> evaluator
    RELEASE = 30  # one fd: the compiled release; digest
    # courier <-> monitor
    LOAD = 40  # courier -> monitor: one fd (sealed memfd) with a compiled release; a = ticket
    LOAD_RESULT = 41  # monitor -> courier: a = ticket, code = 0 accepted, 1 refused, 2 busy; digest; payload = Refusal
    STATE = 42  # monitor -> courier: payload = state.AgentState
    # sensor <-> enricher
    RING = 31  # sensor -> enricher: one fd, the ring of sightings; a = its size in bytes
    TELL_ALL = 32  # sensor -> enricher: somebody new listens
    CONTEXT = 33  # enricher -> sensor: payload = executables and containers, as fields of a BatchHeader
    # sensor -> evaluator and courier
    BATCH = 50  # a = start position, b = end position; payload = serialised Batch
    # evaluator -> sensor, courier -> sensor
    ACK = 51  # b = end position of the last batch that was dealt with
    # evaluator -> courier
    DETECTIONS = 60  # b = end position of the batch, a = events evaluated so far; payload = DetectionBatch
    # tools -> evaluator (replay)
    NAMED = 70  # a = ticket; payload = NamedEventBatch; answered by MATCHES
    MATCHES = 71  # evaluator -> tool: a = ticket; payload = NamedMatches


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `fds` belong to whoever holds the message."""

    kind: Kind
    code: int = 0
    a: int = 0
    b: int = 0
    digest: bytes = NO_DIGEST
    payload: bytes = b""
    fds: tuple[int, ...] = ()


class Channel:
    """One end of a channel. Non-blocking unless `blocking` is set; not thread-safe."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        for option, forced in ((socket.SO_SNDBUF, 32), (socket.SO_RCVBUF, 33)):  # SO_SNDBUFFORCE, SO_RCVBUFFORCE
            try:
                sock.setsockopt(socket.SOL_SOCKET, forced, SOCKET_BUFFER_BYTES)
            except PermissionError:
                sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
        sock.setblocking(False)

    def fileno(self) -> int:
        """For selectors and event loops."""
        return self.sock.fileno()

    def send(self, message: Message) -> bool:
        """Sends without waiting. False: the peer's buffer is full, nothing was sent.

        Raises PeerError when the peer is gone, ValueError when the message is too big.
        """
        if len(message.payload) > MAX_MESSAGE_BYTES - HEADER.size:
            raise ValueError(f"{message.kind.name} of {len(message.payload)} bytes: at most {MAX_MESSAGE_BYTES}")
        header = HEADER.pack(MAGIC, message.kind, message.code, message.a, message.b, message.digest)
        ancillary = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", message.fds).tobytes())] if message.fds else []
        )
        try:
            self.sock.sendmsg([header, message.payload], ancillary)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                return False
            raise PeerError(f"cannot send {message.kind.name}: {error.strerror}") from error
        return True

    def receive(self) -> Message | None:
        """The next message, None when there is none yet. Raises PeerError at the end or on garbage."""
        try:
            data, ancillary, flags, _ = self.sock.recvmsg(
                MAX_MESSAGE_BYTES, socket.CMSG_SPACE(MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        except OSError as error:
            raise PeerError(f"cannot receive: {error.strerror}") from error
        fds: list[int] = []
        for level, kind, value in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds += array.array("i", value[: len(value) // 4 * 4])
        if not data:
            raise PeerError("the peer closed the channel")
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(data) < HEADER.size:
            raise PeerError(f"got {len(data)} bytes, cut short; a message has at least {HEADER.size}")
        magic, kind, code, a, b, digest = HEADER.unpack_from(data)
        try:
            known = Kind(kind)
        except ValueError:
            known = None
        if magic != MAGIC or known is None:
            raise PeerError(f"got magic {magic!r} and kind {kind}: not a message of this version")
        return Message(known, code, a, b, digest, data[HEADER.size :], tuple(fds))

    def close(self) -> None:
        """Closes this end."""
        self.sock.close()


def unexpected(message: Message) -> PeerError:
    """The error for a message that its sender may not send. Its descriptors are closed."""
    for fd in message.fds:
        os.close(fd)
    return PeerError(f"got {message.kind.name} with {len(message.fds)} file descriptors, which this peer may not send")


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends, to be wrapped by Channel in the process that keeps each."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
