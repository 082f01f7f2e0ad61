"""What a source of events is, whatever stands behind it: eBPF or a recording.

The sensor drains a source, hands the bytes on, and commits the position up to
which they were handed on; what is not committed is drained again by the next
sensor. Positions are bytes since the source was opened and never go back.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tocsin.api.event.v1.batch_pb2 import Source, TypeCounter


@dataclass(frozen=True, slots=True)
class Drained:
    """Events taken from a source. `body` is the events part of a serialised Batch."""

    body: bytes
    count: int
    start: int
    """Position of the first byte."""
    end: int
    """Position behind the last byte."""
    first_index: int
    """Events drained since the source was opened, before these."""
    malformed: int = 0
    """Records that were no readable event and are left out."""


@dataclass(frozen=True, slots=True)
class SourceCounters:
    """What the source has counted since it was opened."""

    types: Sequence[TypeCounter]
    images_missing: int = 0
    images_dropped: int = 0


class EventSource(Protocol):
    """A source of events. Not thread-safe; one owner."""

    kind: Source.ValueType
    """What Batch.header.source says."""

    def drain(self, max_bytes: int) -> Drained:
        """Takes what is there, at most about `max_bytes`; an empty body when there is nothing."""

    def commit(self, position: int) -> None:
        """Everything before `position` (a Drained.end) has been handed on."""

    def counters(self) -> SourceCounters:
        """Reads the counters."""

    def seed(self) -> int:
        """Makes running processes and open connections known; returns how many processes."""

    def sightings(self) -> tuple[int, int] | None:
        """A ring of executables and control groups that somebody new has not seen: descriptor (borrowed), bytes.

        None: this source does not see them.
        """

    def handover(self) -> list[int]:
        """Descriptors that keep the source alive when this process dies; borrowed, not to be closed."""

    def close(self) -> None:
        """Ends the source, if nobody else holds its descriptors."""
