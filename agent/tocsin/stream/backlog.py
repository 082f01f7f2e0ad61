"""What one subscriber has still to be sent: bounded, in order, with a loss where something had to go.

A message is shared by all backlogs that hold it. When the bound is reached,
whole messages are left out and counted in one loss that stands in their place;
neighbouring losses are one. Detections may use a reserve above the bound, for
there are few and they matter more.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final

from tocsin.stream import wire

DETECTION_RESERVE_BYTES: Final = 1 << 20


@dataclass(slots=True)
class _Message:
    serialised: bytes


@dataclass(slots=True)
class _Gap:
    count: int


class Backlog:
    """Serialised SubscribeResponses that wait for one subscriber."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._waiting: deque[_Message | _Gap] = deque()
        self._total_lost = 0
        self.size_bytes = 0
        """Of the messages that wait."""

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, serialised: bytes, count: int, *, reserve_bytes: int = 0) -> int:
        """Takes a message that holds `count` events, or leaves it out; how many events were left out."""
        if self.size_bytes + len(serialised) <= self._limit_bytes + reserve_bytes:
            self._waiting.append(_Message(serialised))
            self.size_bytes += len(serialised)
            return 0
        last = self._waiting[-1] if self._waiting else None
        if isinstance(last, _Gap):
            last.count += count
        else:
            self._waiting.append(_Gap(count))
        return count

    def pop(self) -> bytes | None:
        """The next message; None when nothing waits."""
        if not self._waiting:
            return None
        first = self._waiting.popleft()
        if isinstance(first, _Message):
            self.size_bytes -= len(first.serialised)
            return first.serialised
        self._total_lost += first.count
        return wire.backlog_loss(first.count, self._total_lost)
