"""The source `replay`: a recording in a loop, at its own pace, as if it happened now.

For hosts that cannot load eBPF, and for showing the agent. Times are moved to
the present, positions go on growing from round to round; nothing outlives the
process, so a later sensor begins anew.
"""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

import tocsin
from tocsin.api.event.v1 import event_pb2
from tocsin.api.event.v1.batch_pb2 import SOURCE_REPLAY, Source, TypeCounter
from tocsin.config import SensorConfig
from tocsin.errors import KernelError, SpoolError, WireError
from tocsin.kernel.source import Drained, SourceCounters
from tocsin.records import framing, recording

PACKAGED: Final = Path(tocsin.__file__).with_name("sample.recording")
MAX_EVENTS: Final = 200_000
MAX_GAP_NS: Final = 500_000_000
"""Longer pauses of the recording are shortened to this."""
ROUND_PAUSE_NS: Final = 2_000_000_000


def boottime_ns() -> int:
    """CLOCK_BOOTTIME."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def open_replay(config: SensorConfig) -> "ReplaySource":
    """The configured recording, else the packaged one. Raises KernelError when it cannot be played."""
    path = Path(config.replay_file) if config.replay_file else PACKAGED
    try:
        return ReplaySource(read_events(path))
    except (OSError, SpoolError, WireError, DecodeError) as error:
        raise KernelError(f"{path} cannot be replayed: {error}; name another with sensor.replay_file") from error


def read_events(path: Path) -> list[event_pb2.Event]:
    """The events of a recording in order, without losses. Raises OSError, SpoolError, WireError, DecodeError."""
    events: list[event_pb2.Event] = []
    with path.open("rb") as file:
        for batch in recording.batches(file, str(path)):
            index = framing.index(batch)
            events += (event_pb2.Event.FromString(index.event(i)) for i in range(len(index)))
            if len(events) > MAX_EVENTS:
                raise SpoolError(f"more than {MAX_EVENTS} events, which is too much to be shown in a loop")
    return [event for event in events if event.type != event_pb2.EVENT_TYPE_LOSS]


class ReplaySource:
    """An EventSource on recorded events. Raises KernelError when there are none."""

    kind: Source.ValueType = SOURCE_REPLAY

    def __init__(self, events: list[event_pb2.Event], clock: Callable[[], int] = boottime_ns) -> None:
        if not events:
            raise KernelError("the recording holds no events")
        self._events = events
        self._clock = clock
        self._next = 0
        self._due_ns = clock()
        self._position = 0
        self._count = 0
        self._generated: Counter[event_pb2.EventType.ValueType] = Counter()

    def drain(self, max_bytes: int) -> Drained:
        """See EventSource."""
        start, first = self._position, self._count
        now_ns, parts, size_bytes = self._clock(), [], 0
        while self._due_ns <= now_ns and size_bytes < max_bytes:
            event = self._events[self._next]
            field = framing.event_field(moved(event, self._due_ns - event.boottime_ns).SerializeToString())
            parts.append(field)
            size_bytes += len(field)
            self._generated[event.type] += 1
            self._advance(event)
        self._position += size_bytes
        self._count += len(parts)
        return Drained(b"".join(parts), len(parts), start, self._position, first)

    def _advance(self, event: event_pb2.Event) -> None:
        self._next += 1
        if self._next < len(self._events):
            gap_ns = self._events[self._next].boottime_ns - event.boottime_ns
            self._due_ns += min(max(gap_ns, 0), MAX_GAP_NS)
        else:
            self._next = 0
            self._due_ns += ROUND_PAUSE_NS

    def commit(self, position: int) -> None:
        """See EventSource; nothing is kept."""

    def counters(self) -> SourceCounters:
        """See EventSource."""
        return SourceCounters([TypeCounter(event_type=k, generated=n) for k, n in sorted(self._generated.items())])

    def seed(self) -> int:
        """See EventSource; recorded events know their processes."""
        return 0

    def sightings(self) -> None:
        """See EventSource; there are none."""

    def handover(self) -> list[int]:
        """See EventSource; there is nothing to hand over."""
        return []

    def close(self) -> None:
        """See EventSource."""


def moved(event: event_pb2.Event, by_ns: int) -> event_pb2.Event:
    """The event at another time; times that would lie before the boot become 0."""
    copy = event_pb2.Event.FromString(event.SerializeToString())
    copy.boottime_ns = max(0, copy.boottime_ns + by_ns)
    for name in ("process", "parent"):
        if copy.HasField(name):
            process = getattr(copy, name)
            for field in ("start_boottime_ns", "exec_boottime_ns"):
                if value := getattr(process, field):
                    setattr(process, field, max(0, value + by_ns))
    if copy.HasField("fork"):
        copy.fork.child_start_boottime_ns = max(0, copy.fork.child_start_boottime_ns + by_ns)
    return copy
