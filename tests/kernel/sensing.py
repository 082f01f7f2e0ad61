"""The sensor under test: the real programs on the running kernel, and what they said, as parsed events."""

import os
import time
from collections.abc import Callable

from tocsin.api.event.v1 import batch_pb2, event_pb2, options_pb2
from tocsin.config import SensorConfig
from tocsin.kernel.core import open_core
from tocsin.kernel.source import Drained, EventSource, SourceCounters

EXEC, FORK, EXIT = event_pb2.EVENT_TYPE_EXEC, event_pb2.EVENT_TYPE_FORK, event_pb2.EVENT_TYPE_EXIT
CONNECT, ACCEPT = event_pb2.EVENT_TYPE_TCP_CONNECT, event_pb2.EVENT_TYPE_TCP_ACCEPT
CLOSE = event_pb2.EVENT_TYPE_TCP_CLOSE
TCP_TYPES = (CONNECT, ACCEPT, CLOSE)
BODY = {
    field.GetOptions().Extensions[options_pb2.act].event_type: field.name
    for field in event_pb2.Event.DESCRIPTOR.oneofs_by_name["body"].fields
}
DEADLINE_S = 20.0
POLL_S = 0.003


def boottime_ns() -> int:
    """The clock of the events."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Sensor:
    """A source and the events that were drained from it."""

    def __init__(
        self,
        config: SensorConfig | None = None,
        kept_fds: list[int] | None = None,
        seed: bool = True,
        own_pid: int = 0,
        source: EventSource | None = None,
    ) -> None:
        self.source: EventSource = source or open_core(config or SensorConfig(), kept_fds or [], own_pid)
        self.events: list[event_pb2.Event] = []
        self.drains: list[Drained] = []
        self.seeded = self.source.seed() if seed else 0

    def drain(self) -> int:
        """Takes what is there now; returns how many events."""
        count = 0
        while True:
            drained = self.source.drain(256 << 10)
            assert drained.malformed == 0, f"{drained.malformed} records are no readable events"
            if drained.end == drained.start:
                return count
            found = batch_pb2.Batch.FromString(drained.body).events
            assert len(found) == drained.count
            self.drains.append(drained)
            self.events.extend(found)
            self.source.commit(drained.end)
            count += drained.count

    def collect(self, until: Callable[[], bool], what: str = "") -> None:
        """Drains until `until` holds."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            self.drain()
            if until():
                return
            assert time.monotonic() < deadline, f"not seen within {DEADLINE_S} s: {what or until}"
            time.sleep(POLL_S)

    def settle(self) -> None:
        """Drains until the end of a process that is made now: the ring keeps the order, so all before it is here."""
        pid = os.posix_spawn("/bin/true", ["/bin/true"], {})
        os.waitpid(pid, 0)
        self.collect(lambda: bool(self.of(pid, EXIT)), f"exit of the marker {pid}")

    def of(self, pid: int, kind: "event_pb2.EventType.ValueType") -> list[event_pb2.Event]:
        """Events of one process."""
        return [event for event in self.events if event.type == kind and event.process.pid == pid]

    def one(self, pid: int, kind: "event_pb2.EventType.ValueType", count: int = 1) -> event_pb2.Event:
        """The last of exactly `count` events of this type and process; waits for it."""
        self.collect(lambda: len(self.of(pid, kind)) >= count, f"{event_pb2.EventType.Name(kind)} of {pid}")
        found = self.of(pid, kind)
        assert len(found) == count, f"{len(found)} events of one act: {found}"
        event = found[-1]
        assert event.WhichOneof("body") == BODY[kind]
        return event

    def tcp(self, kind: "event_pb2.EventType.ValueType", cookie: int) -> list[event_pb2.Event]:
        """Events of one socket."""
        return [event for event in self.events if event.type == kind and connection(event).socket_cookie == cookie]

    def one_tcp(self, kind: "event_pb2.EventType.ValueType", cookie: int) -> event_pb2.Event:
        """The only event of this type and socket; waits for it, and for a second one that must not be."""
        name = event_pb2.EventType.Name(kind)
        self.collect(lambda: bool(self.tcp(kind, cookie)), f"{name} of socket {cookie}")
        found = self.tcp(kind, cookie)
        assert len(found) == 1, f"{len(found)} events of one socket: {found}"
        assert found[0].WhichOneof("body") == BODY[kind]
        return found[0]

    def counted(self) -> SourceCounters:
        """Counters that belong to what was drained: nothing came between the drain and the reading."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            self.drain()
            before = self.source.counters()
            if self.drain() == 0 and self.source.counters() == before:
                return before
            assert time.monotonic() < deadline, "the host does not come to rest: counters keep changing"

    def close(self) -> None:
        """Ends the source."""
        self.source.close()


def connection(event: event_pb2.Event) -> event_pb2.Connection:
    """The body of a TCP event."""
    body = event.WhichOneof("body")
    assert body in ("tcp_connect", "tcp_accept", "tcp_close"), event
    found: event_pb2.Connection = getattr(event, body)
    return found
