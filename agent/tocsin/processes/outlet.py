"""What one peer of the sensor has still to be given: bounded, in order, sent again after the peer died.

No socket is known here. A batch stays until it is acknowledged. A new peer gets
everything that its predecessor did not acknowledge; a batch that was first in
flight at two deaths is poison and is skipped. A switch draws a line: what was
pushed before it is for the old peer, and nothing passes the line before the old
peer has acknowledged all of that, so that order holds and no batch is judged twice.
"""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final

from tocsin.api.event.v1 import event_pb2
from tocsin.processes.told import Key

POISON_DEATHS: Final = 2


@dataclass(eq=False, slots=True)
class Queued:
    """A serialised batch on its way."""

    start: int
    end: int
    count: int
    """Events in it."""
    payload: bytes
    told: Counter[Key] = field(default_factory=Counter)
    """Losses in the kernel that subscribers are told of by this batch and those before it."""
    deaths: int = 0
    """How often a peer died while this was the first that it had not acknowledged."""


class Outlet:
    """The queue toward one peer. Not thread-safe."""

    def __init__(self, limit_bytes: int, *, lossy: bool) -> None:
        """`lossy`: drops unsent batches above the limit, skips poison; else the caller looks at `full`."""
        self._limit_bytes = limit_bytes
        self._lossy = lossy
        self._sent: deque[Queued] = deque()
        self._unsent: deque[Queued] = deque()
        self._before_line: int | None = None
        self.size_bytes = 0
        self.sent_position = 0
        """End of the last batch that was sent."""
        self._losses: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._sent) + len(self._unsent)

    @property
    def in_flight(self) -> int:
        """Batches that were sent and not acknowledged."""
        return len(self._sent)

    @property
    def full(self) -> bool:
        """Whether more is queued than the limit allows."""
        return self.size_bytes >= self._limit_bytes

    @property
    def switching(self) -> bool:
        """Whether a line was drawn and the old peer has not acknowledged everything before it."""
        return self._before_line is not None

    def push(self, batch: Queued) -> None:
        """Takes a batch; may drop the oldest that was not sent."""
        self._unsent.append(batch)
        self.size_bytes += len(batch.payload)
        while self._lossy and self.size_bytes > self._limit_bytes and len(self._unsent) > 1:
            if self._before_line is not None and self._before_line > len(self._sent):
                self._before_line -= 1
            self._count_out(self._unsent.popleft(), event_pb2.LOSS_REASON_EVALUATOR_BACKLOG)

    def next(self) -> Queued | None:
        """The batch to be sent now; None when there is none, or when it is not this peer's."""
        if not self._unsent or (self._before_line is not None and len(self._sent) >= self._before_line):
            return None
        return self._unsent[0]

    def sent(self) -> None:
        """What `next` gave was sent."""
        batch = self._unsent.popleft()
        self._sent.append(batch)
        self.sent_position = batch.end

    def acknowledge(self, end_position: int) -> None:
        """The peer has dealt with every batch that it was sent up to there."""
        while self._sent and self._sent[0].end <= end_position:
            self.size_bytes -= len(self._sent.popleft().payload)
            if self._before_line is not None:
                self._before_line -= 1

    def peer_died(self) -> None:
        """What was not acknowledged is sent again, to whoever comes next; a line is void."""
        self._before_line = None
        if self._sent:
            first = self._sent[0]
            first.deaths += 1
            if self._lossy and first.deaths >= POISON_DEATHS:
                self._sent.popleft()
                self._count_out(first, event_pb2.LOSS_REASON_EVALUATOR_CRASH)
        self._unsent.extendleft(reversed(self._sent))
        self._sent.clear()

    def draw_line(self) -> None:
        """What is pushed from now on is for another peer."""
        self._before_line = len(self)

    def erase_line(self) -> None:
        """Everything is for whoever is there."""
        self._before_line = None

    def cross_line(self) -> bool:
        """True, once, when the old peer has acknowledged everything before the line: `next` is for the new one."""
        if self._before_line is None or self._before_line > 0:
            return False
        self._before_line = None
        return True

    def take_losses(self) -> dict[int, int]:
        """Events that the peer will never see, by LossReason, since the last call."""
        losses = dict(self._losses)
        self._losses.clear()
        return losses

    def _count_out(self, batch: Queued, reason: int) -> None:
        self.size_bytes -= len(batch.payload)
        if batch.count:
            self._losses[reason] += batch.count
