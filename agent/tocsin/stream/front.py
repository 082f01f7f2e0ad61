"""The public socket: each connection is identified by the kernel's word and joined to the server for its rights.

gRPC for Python does not tell the credentials of a unix peer, so the front
accepts, asks the kernel, and passes bytes both ways between the caller and one
of the inner servers. It reads none of them. A caller that does not read is not
read from either: at most one buffer per direction is in memory.
"""

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Mapping
from typing import Final

from tocsin.stream.peers import Access, Peer, Policy, identify

log = logging.getLogger(__name__)

UPSTREAM_BUFFER_BYTES: Final = 64 << 10
DOWNSTREAM_BUFFER_BYTES: Final = 256 << 10
MAX_CONNECTIONS: Final = 512
MAX_CONNECTIONS_PER_UID: Final = 128
"""So that one user cannot keep out the others."""
RETRY_S: Final = 0.1
"""Pause after accept failed for want of file descriptors."""


class Front:
    """Serves a listening socket."""

    def __init__(self, listener: socket.socket, policy: Policy, inner_paths: Mapping[Access, str]) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._policy = policy
        self._inner_paths = inner_paths
        self._connections: Counter[int] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Accepts until it is cancelled; then ends every connection."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    caller, _ = await loop.sock_accept(self._listener)
                except OSError as error:
                    log.warning("cannot accept: %s", error.strerror)
                    await asyncio.sleep(RETRY_S)
                    continue
                self._begin(caller)
        finally:
            for task in self._tasks:
                task.cancel()

    def _begin(self, caller: socket.socket) -> None:
        caller.setblocking(False)
        try:
            peer = identify(caller)
        except OSError as error:
            log.warning("connection without credentials: %s", error.strerror)
            caller.close()
            return
        if self._connections.total() >= MAX_CONNECTIONS or self._connections[peer.uid] >= MAX_CONNECTIONS_PER_UID:
            log.warning("connection uid=%d pid=%d refused: too many", peer.uid, peer.pid)
            caller.close()
            return
        access = self._policy.access(peer)
        log.info("connection uid=%d pid=%d role=%s", peer.uid, peer.pid, access.value)
        self._connections[peer.uid] += 1
        task = asyncio.get_running_loop().create_task(self._join(caller, self._inner_paths[access]))
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._end(done, peer))

    def _end(self, task: asyncio.Task[None], peer: Peer) -> None:
        self._tasks.discard(task)
        self._connections[peer.uid] -= 1
        if not self._connections[peer.uid]:
            del self._connections[peer.uid]

    async def _join(self, caller: socket.socket, inner_path: str) -> None:
        loop = asyncio.get_running_loop()
        with caller, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as inner:
            try:
                await loop.sock_connect(inner, inner_path)
            except OSError as error:
                log.warning("inner server %s: %s", inner_path, error.strerror)
                return
            await splice(caller, inner)


async def splice(caller: socket.socket, inner: socket.socket) -> None:
    """Passes bytes both ways until both ends have closed, or one has failed."""
    up = asyncio.create_task(_pump(caller, inner, UPSTREAM_BUFFER_BYTES))
    down = asyncio.create_task(_pump(inner, caller, DOWNSTREAM_BUFFER_BYTES))
    try:
        await asyncio.gather(up, down)
    except OSError:
        pass
    finally:
        up.cancel()
        down.cancel()


async def _pump(source: socket.socket, sink: socket.socket, buffer_bytes: int) -> None:
    """One direction; the end of the source is passed on, the other direction goes on."""
    loop = asyncio.get_running_loop()
    buffer = memoryview(bytearray(buffer_bytes))
    while size := await loop.sock_recv_into(source, buffer):
        await loop.sock_sendall(sink, buffer[:size])
    sink.shutdown(socket.SHUT_WR)
