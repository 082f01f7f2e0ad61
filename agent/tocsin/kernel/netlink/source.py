"""The source `netlink`: puts proc connector, sock_diag and /proc together as an EventSource.

It sees less than eBPF does, and LIMITS says what. Nothing of it outlives its
process: a later sensor begins anew, and what happened in between is not known.
"""

import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import psutil

from tocsin.api.event.v1.batch_pb2 import SOURCE_NETLINK, Source
from tocsin.api.event.v1.event_pb2 import Event, Process
from tocsin.config import SensorConfig
from tocsin.errors import KernelError
from tocsin.kernel.netlink import lives
from tocsin.kernel.netlink.connections import Connections
from tocsin.kernel.netlink.connector import Connector
from tocsin.kernel.netlink.diag import Diag
from tocsin.kernel.netlink.ledger import Ledger
from tocsin.kernel.netlink.owners import MAX_LINKS, find_owners
from tocsin.kernel.netlink.reader import Reader
from tocsin.kernel.netlink.table import Table
from tocsin.kernel.source import Drained, SourceCounters

LIMITS: Final = (
    "no files, DNS, UDP or system calls",
    "programs that end or execute another within about 1 ms have no image; changed arguments show as changed",
    "name given to execve, script and calling thread unknown; ids before an exec concluded from the file's mode",
    "changed names, namespaces, capabilities and cgroups show from the next exec or connection on",
    "the maker of a CLONE_PARENT process unknown",
    "processes older than the agent end with their first thread",
    "connections listed at an interval: shorter ones told at their end, without a process",
    "who initiated a connection concluded from its ports",
    "connects that fail at once not seen, reasons of failures unknown",
    "received bytes may be one too many",
    "no connections of other network namespaces (containers)",
    "nothing of the time in which the sensor is restarted",
)
"""What this source cannot see or know, in words for an operator; short, for all of it goes into the status."""
OBSERVATIONS_AT_ONCE: Final = 512
RECENT_OWNERS: Final = 64
OUTBOUND_PORTS: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


def shortfall() -> str:
    """What is missing with this source, for status and doctor."""
    return f"reduced, no eBPF: {'; '.join(LIMITS)}"


def open_netlink(config: SensorConfig) -> "NetlinkSource":
    """Subscribes. Raises KernelError that says what is missing and what to do."""
    connector = Connector(config.ring_bytes)
    try:
        diag = Diag()
    except KernelError:
        connector.close()
        raise
    return NetlinkSource(connector, diag, config.connection_interval_ms * 1_000_000)


class NetlinkSource:
    """An EventSource without eBPF."""

    kind: Source.ValueType = SOURCE_NETLINK

    def __init__(self, connector: Connector, diag: Diag, interval_ns: int) -> None:
        """`interval_ns`: from the end of one look at the connections to the next."""
        self._connector = connector
        self._diag = diag
        self._interval_ns = interval_ns
        self._reader = Reader(connector)
        self._table = Table()
        self._ledger = Ledger()
        self._recent_owners: deque[int] = deque(maxlen=RECENT_OWNERS)
        self._connections = Connections(self._owners, self._describe, outbound_ports())
        self._next_look_ns = 0
        self._pending: deque[bytes] = deque()
        self._position = 0
        self._count = 0

    def drain(self, max_bytes: int) -> Drained:
        """See EventSource. Raises KernelError when a netlink socket fails for good."""
        self._gather(max_bytes)
        start, first, parts, size_bytes = self._position, self._count, [], 0
        while self._pending and size_bytes < max_bytes:
            parts.append(self._pending.popleft())
            size_bytes += len(parts[-1])
        self._position += size_bytes
        self._count += len(parts)
        return Drained(b"".join(parts), len(parts), start, self._position, first)

    def _gather(self, max_bytes: int) -> None:
        """Asks the three places for news, as much as about `max_bytes` hold."""
        size_bytes = sum(map(len, self._pending))
        while size_bytes < max_bytes and (observed := self._reader.take(OBSERVATIONS_AT_ONCE)):
            lost = 0
            for each in observed:
                lost += each.lost_before
                self._ledger.lose(each.notice.cpu, each.lost_before)
            for cpu, event in lives.events(observed, self._table, _offset_ns()):
                self._ledger.number(event, cpu)
                size_bytes += self._append(event)
            if lost:
                self._table.keep(psutil.pids())
        self._look()

    def _look(self) -> None:
        now_ns = _boottime_ns()
        if now_ns >= self._next_look_ns:
            for event in self._connections.look(self._diag.sockets(), now_ns):
                self._append(event)
            self._next_look_ns = _boottime_ns() + self._interval_ns
        for event in self._connections.endings(self._diag.endings(), now_ns):
            self._append(event)

    def _append(self, event: Event) -> int:
        self._pending.append(self._ledger.finish(event))
        return len(self._pending[-1])

    def _owners(self, inodes: Iterable[int]) -> dict[int, int]:
        """Those that had connections before, then the youngest first."""
        recent = list(dict.fromkeys(self._recent_owners))
        others = sorted(set(psutil.pids()).difference(recent), reverse=True)
        found = find_owners(set(inodes), [*recent, *others], MAX_LINKS)
        self._recent_owners.extendleft(found.values())
        return found

    def _describe(self, pid: int) -> tuple[Process, Process] | None:
        process = self._table.look_again(pid)
        if process is None:
            return None
        return process, self._table.find(process.ppid) or Process(pid=process.ppid)

    def commit(self, position: int) -> None:
        """See EventSource; nothing is kept."""

    def counters(self) -> SourceCounters:
        """See EventSource; lost datagrams are of unknown type."""
        dropped = self._table.dropped + self._connections.dropped
        return SourceCounters(self._ledger.types(), self._ledger.images_missing, dropped)

    def seed(self) -> int:
        """See EventSource."""
        seeded = self._table.seed(psutil.pids())
        self._connections.seed(self._diag.sockets(), _boottime_ns())
        return seeded

    def sightings(self) -> None:
        """See EventSource; there are none."""

    def handover(self) -> list[int]:
        """See EventSource; a later sensor cannot go on where this one ended."""
        return []

    def close(self) -> None:
        """See EventSource."""
        self._reader.stop()
        self._connector.close()
        self._diag.close()


def outbound_ports() -> range:
    """Ports that the kernel gives to sockets that ask for none."""
    try:
        low, high = OUTBOUND_PORTS.read_text().split()
    except (OSError, ValueError):
        return range(32768, 61000)
    return range(int(low), int(high) + 1)


def _boottime_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _offset_ns() -> int:
    return _boottime_ns() - time.monotonic_ns()
