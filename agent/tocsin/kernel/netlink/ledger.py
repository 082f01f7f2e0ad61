"""The books of the source: what was told, what was lost, what was not known. Finishes each event for its batch."""

from collections import Counter
from typing import Final

from tocsin.api.event.v1.batch_pb2 import LossCounter, TypeCounter
from tocsin.api.event.v1.event_pb2 import (
    EVENT_FLAG_PARENT_IMAGE_MISSING,
    EVENT_FLAG_PROCESS_IMAGE_MISSING,
    EVENT_TYPE_UNSPECIFIED,
    IMAGE_FLAG_EXE_TRUNCATED,
    LOSS_REASON_RING_FULL,
    Event,
    EventType,
    Process,
)
from tocsin.records import framing

_IMAGES: Final = (
    ("process", EVENT_FLAG_PROCESS_IMAGE_MISSING),
    ("parent", EVENT_FLAG_PARENT_IMAGE_MISSING),
)


class Ledger:
    """Counts from the opening of the source."""

    def __init__(self) -> None:
        self._told: Counter[EventType.ValueType] = Counter()
        self._sequences: Counter[int] = Counter()
        self._lost = 0
        self.images_missing = 0

    def lose(self, cpu: int, count: int) -> None:
        """Datagrams of a CPU did not fit the socket's buffer; what they would have told is not known."""
        self._lost += count
        self._sequences[cpu] += count

    def number(self, event: Event, cpu: int) -> None:
        """Gives the event of a CPU its number, so that a gap shows. Connections are looked up, and have none."""
        self._sequences[cpu] += 1
        event.cpu, event.cpu_sequence = cpu, self._sequences[cpu]

    def finish(self, event: Event) -> bytes:
        """Flags what is missing and counts; the event as it stands in a batch."""
        for name, flag in _IMAGES:
            if not _has_image(getattr(event, name)):
                event.flags |= flag
                self.images_missing += 1
        self._told[event.type] += 1
        return framing.event_field(event.SerializeToString())

    def types(self) -> list[TypeCounter]:
        """By type; what was lost is of no known type."""
        counters = [TypeCounter(event_type=kind, generated=count) for kind, count in sorted(self._told.items())]
        if self._lost:
            lost = LossCounter(reason=LOSS_REASON_RING_FULL, count=self._lost)
            counters.append(TypeCounter(event_type=EVENT_TYPE_UNSPECIFIED, generated=self._lost, lost=[lost]))
        return counters


def _has_image(process: Process) -> bool:
    return bool(process.exe or process.image_flags & IMAGE_FLAG_EXE_TRUNCATED)
