"""TCP connections from one look to the next: which are new, which are gone.

A look is a list of all sockets. What lives and ends between two looks is told
at its end, by the kernel's word that the socket ended; whose it was is then not
known. Nobody tells who initiated a connection: it is the other side when the
local port is one that listens, or an ordinary one while the other is from the
range for outbound ports.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from pyroute2.netlink.diag import SS_LISTEN, SS_SYN_SENT

from tocsin.api.event.v1 import event_pb2
from tocsin.api.event.v1.event_pb2 import (
    CONNECT_OUTCOME_ESTABLISHED,
    CONNECT_OUTCOME_PENDING,
    DIRECTION_INBOUND,
    DIRECTION_OUTBOUND,
    EVENT_TYPE_TCP_ACCEPT,
    EVENT_TYPE_TCP_CLOSE,
    EVENT_TYPE_TCP_CONNECT,
    Event,
    EventType,
    Process,
)
from tocsin.kernel.netlink.diag import TcpSocket

MAX_CONNECTIONS: Final = 65_536
LOOKS_FOR_AN_OWNER: Final = 3
"""Then a connection is told without one."""
LOOKS_UNTIL_GONE: Final = 2
"""A list that the kernel makes while sockets come and go may miss one that is there."""
IPPROTO_TCP: Final = 6
_BODY: Final = {
    EVENT_TYPE_TCP_CONNECT: "tcp_connect",
    EVENT_TYPE_TCP_ACCEPT: "tcp_accept",
    EVENT_TYPE_TCP_CLOSE: "tcp_close",
}

Owners = Callable[[Collection[int]], Mapping[int, int]]
"""Finds the pid for each socket inode, or not."""
Describe = Callable[[int], tuple[Process, Process] | None]
"""The process and its parent; None when it is gone."""


@dataclass(slots=True)
class Followed:
    """A connection that is followed."""

    socket: TcpSocket
    """As it was last seen in somebody's hands."""
    inbound: bool
    since_ns: int
    """First look at it, CLOCK_BOOTTIME."""
    owner: tuple[Process, Process] | None = None
    told: bool = False
    looks: int = 0
    """In search of its owner."""
    absent: int = 0
    """Looks that did not find it any more."""


class Connections:
    """All connections that are known."""

    def __init__(self, find_owners: Owners, describe: Describe, outbound_ports: range) -> None:
        self._find_owners = find_owners
        self._describe = describe
        self._outbound_ports = outbound_ports
        self._known: dict[int, Followed] = {}
        self._listening: set[int] = set()
        self.dropped = 0
        """Connections that were too many to be followed."""

    def seed(self, sockets: Iterable[TcpSocket], now_ns: int) -> None:
        """Those that exist are known and not told, only their ends will be."""
        self.look(sockets, now_ns)
        for connection in self._known.values():
            connection.told = bool(connection.socket.inode)

    def look(self, sockets: Iterable[TcpSocket], now_ns: int) -> list[Event]:
        """What is new since the last look; and ends of which the kernel said nothing."""
        sockets = list(sockets)
        listening = {each.local[1] for each in sockets if each.state == SS_LISTEN}
        self._listening |= listening  # one that stopped since the last look accepted until then
        seen = {each.cookie for each in sockets if each.remote[1] and self._follow(each, now_ns)}
        self._listening = listening
        self._search()
        events = [event for cookie in sorted(seen) for event in self._begin(self._known[cookie], now_ns)]
        for cookie in sorted(self._known.keys() - seen):
            events += self._absent(cookie, now_ns)
        return events

    def endings(self, sockets: Iterable[TcpSocket], now_ns: int) -> list[Event]:
        """The kernel says that these ended."""
        events: list[Event] = []
        for each in sockets:
            known = self._known.pop(each.cookie, None)
            if known is None and each.remote[1]:
                known = Followed(each, self._is_inbound(each), now_ns, told=False)
            if known is not None:
                events += self._end(known, each, now_ns)
        return events

    def _follow(self, found: TcpSocket, now_ns: int) -> bool:
        connection = self._known.get(found.cookie)
        if connection is None:
            if len(self._known) >= MAX_CONNECTIONS:
                self.dropped += 1
                return False
            connection = self._known[found.cookie] = Followed(found, self._is_inbound(found), now_ns)
        if found.inode:
            connection.socket = found
        connection.absent = 0
        return True

    def _is_inbound(self, found: TcpSocket) -> bool:
        if found.state == SS_SYN_SENT:
            return False
        local, remote = found.local[1], found.remote[1]
        if local in self._listening:
            return True
        if remote in self._listening and found.local[0] == found.remote[0]:
            return False
        return local not in self._outbound_ports and remote in self._outbound_ports

    def _search(self) -> None:
        """Owners of what is in somebody's hands. An inbound connection without an inode was not accepted yet."""
        wanted = {
            each.socket.inode: each
            for each in self._known.values()
            if not each.told and each.owner is None and each.socket.inode and each.looks < LOOKS_FOR_AN_OWNER
        }
        if not wanted:
            return
        owners = self._find_owners(wanted)
        for inode, connection in wanted.items():
            connection.looks += 1
            if inode in owners:
                connection.owner = self._describe(owners[inode])

    def _begin(self, connection: Followed, now_ns: int) -> list[Event]:
        """Tells a connection once it stands and its owner is known, or was looked for long enough."""
        found = connection.socket
        if connection.told or not found.inode or found.state == SS_SYN_SENT:
            return []
        if connection.owner is None and connection.looks < LOOKS_FOR_AN_OWNER:
            return []
        connection.told = True
        return [_event(_beginning(connection), connection, CONNECT_OUTCOME_ESTABLISHED, now_ns)]

    def _absent(self, cookie: int, now_ns: int) -> list[Event]:
        connection = self._known[cookie]
        connection.absent += 1
        if connection.absent < LOOKS_UNTIL_GONE:
            return []
        del self._known[cookie]
        return self._end(connection, connection.socket, now_ns)

    def _end(self, connection: Followed, last: TcpSocket, now_ns: int) -> list[Event]:
        """The end, after the beginning where that was not told."""
        events = []
        if not connection.told:
            outcome = CONNECT_OUTCOME_ESTABLISHED if _stood(connection, last) else CONNECT_OUTCOME_PENDING
            events.append(_event(_beginning(connection), connection, outcome, now_ns))
            if outcome == CONNECT_OUTCOME_PENDING:
                return events
        close = _event(EVENT_TYPE_TCP_CLOSE, connection, CONNECT_OUTCOME_ESTABLISHED, now_ns)
        close.tcp_close.duration_ns = now_ns - connection.since_ns
        close.tcp_close.sent_bytes, close.tcp_close.received_bytes = last.sent_bytes, last.received_bytes
        return [*events, close]


def _stood(connection: Followed, last: TcpSocket) -> bool:
    """Whether the connection was ever established: an initiator's SYN was acknowledged."""
    return connection.inbound or last.answered


def _beginning(connection: Followed) -> EventType.ValueType:
    return EVENT_TYPE_TCP_ACCEPT if connection.inbound else EVENT_TYPE_TCP_CONNECT


def _event(kind: EventType.ValueType, connection: Followed, outcome: int, now_ns: int) -> Event:
    found = connection.socket
    source, destination = (found.remote, found.local) if connection.inbound else (found.local, found.remote)
    body = event_pb2.Connection(
        direction=DIRECTION_INBOUND if connection.inbound else DIRECTION_OUTBOUND,
        outcome=outcome,  # type: ignore[arg-type]
        protocol=IPPROTO_TCP,
        source_port=source[1],
        destination_port=destination[1],
        socket_cookie=found.cookie,
        source_ip=source[0],
        destination_ip=destination[0],
    )
    event = Event(boottime_ns=now_ns, type=kind)
    if connection.owner is not None:
        event.process.CopyFrom(connection.owner[0])
        event.parent.CopyFrom(connection.owner[1])
    getattr(event, _BODY[kind]).CopyFrom(body)
    return event
