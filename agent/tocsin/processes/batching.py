"""How a batch is made from what a source gave: its events as they are, losses, and the header at the end."""

import hashlib
import time
from collections import Counter
from pathlib import Path
from typing import Final

from tocsin.api.event.v1 import batch_pb2, event_pb2
from tocsin.enrich.users import Groups, Users
from tocsin.errors import WireError
from tocsin.kernel.source import Drained, EventSource, SourceCounters
from tocsin.processes.healing import Healer
from tocsin.processes.outlet import Queued
from tocsin.processes.told import Key, lost
from tocsin.records import framing
from tocsin.records.field_table import SCHEMA_DIGEST

MACHINE_ID: Final = Path("/etc/machine-id")
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
REFRESH_S: Final = 1.0
_CONTEXT_TAGS: Final = frozenset(
    number << 3 | 2
    for number in (batch_pb2.BatchHeader.EXECUTABLES_FIELD_NUMBER, batch_pb2.BatchHeader.CONTAINERS_FIELD_NUMBER)
)
NOTHING_TOLD: Final = SourceCounters(())


def tells_context(payload: bytes) -> bool:
    """Whether these are fields of a BatchHeader that tell of executables and containers, and no others.

    They are not read: whoever made them has seen what strangers wrote.
    """
    at = 0
    try:
        while at < len(payload):
            tag, at = framing.read_varint(payload, at)
            size_bytes, at = framing.read_varint(payload, at)
            if tag not in _CONTEXT_TAGS:
                return False
            at += size_bytes
    except WireError:
        return False
    return at == len(payload)


class Losses:
    """Turns counters that grow into loss events."""

    def __init__(self, told: SourceCounters) -> None:
        """`told`: what was told before does not count again."""
        self.told = lost(told)
        """Losses in the kernel, up to the last call of `take`."""
        self._fresh: Counter[Key] = Counter()
        self._total: Counter[Key] = Counter()

    def count(self, reason: int, count: int) -> None:
        """Events lost in user space, of whatever type."""
        if count:
            self._fresh[0, reason] += count
            self._total[0, reason] += count

    def take(self, counters: SourceCounters) -> list[event_pb2.Event]:
        """A loss event for each counter that grew since the last call."""
        now = lost(counters)
        fresh = self._fresh + (now - self.told)
        self.told, self._fresh = now, Counter()
        at_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        return [
            _loss_event(at_ns, kind, reason, count, now[kind, reason] or self._total[kind, reason])
            for (kind, reason), count in sorted(fresh.items())
        ]


def _loss_event(at_ns: int, kind: int, reason: int, count: int, total: int) -> event_pb2.Event:
    """What was held back on purpose is an event of its own type."""
    loss = event_pb2.Loss(event_type=kind, reason=reason, count=count, total=total)  # type: ignore[arg-type]
    if reason == event_pb2.LOSS_REASON_THROTTLED:
        return event_pb2.Event(boottime_ns=at_ns, type=event_pb2.EVENT_TYPE_THROTTLED, throttled=loss)
    return event_pb2.Event(boottime_ns=at_ns, type=event_pb2.EVENT_TYPE_LOSS, loss=loss)


class Batcher:
    """Makes batches of one source."""

    def __init__(self, source: EventSource, told: SourceCounters = NOTHING_TOLD, shortfall: str = "") -> None:
        """`told`: losses that a former sensor has told; `shortfall`: what the source cannot see."""
        self._source = source
        self._shortfall = shortfall
        self._healer = Healer(source)
        self._host_id = hashlib.sha256(_text(MACHINE_ID).encode()).hexdigest()
        self._boot_id = _text(BOOT_ID)
        self._users = Users()
        self._groups = Groups()
        self._names_due = True
        self._refreshed_s = 0.0
        self.losses = Losses(told)

    def tell_names(self) -> None:
        """Users and groups stand in the next batch: somebody new listens."""
        self._names_due = True

    def make(self, drained: Drained, context: bytes = b"") -> Queued:
        """The batch that is due. `context`: fields of a BatchHeader, which become part of this one's."""
        now_s = time.monotonic()
        if now_s - self._refreshed_s >= REFRESH_S:
            self._refreshed_s = now_s
            self._names_due |= self._users.refresh() | self._groups.refresh()
        counters = self._source.counters()
        self._healer.look(counters)
        self.losses.count(event_pb2.LOSS_REASON_MALFORMED, drained.malformed)
        losses = [framing.event_field(e.SerializeToString()) for e in self.losses.take(counters)]
        header = batch_pb2.BatchHeader(
            host_id=self._host_id,
            boot_id=self._boot_id,
            source=self._source.kind,
            start_position=drained.start,
            end_position=drained.end,
            first_event_index=drained.first_index,
            event_count=drained.count,
            realtime_offset_ns=time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            counters=counters.types,
            schema_digest=SCHEMA_DIGEST,
            users=self._users.known if self._names_due else (),
            groups=self._groups.known if self._names_due else (),
            images_missing=counters.images_missing,
            images_dropped=counters.images_dropped,
            shortfall=self._shortfall,
            heals=self._healer.heals,
        )
        self._names_due = False
        payload = b"".join((drained.body, *losses, framing.header_field(header.SerializeToString() + context)))
        return Queued(drained.start, drained.end, drained.count, payload, self.losses.told)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
