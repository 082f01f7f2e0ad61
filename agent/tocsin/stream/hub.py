"""Batches and detections in, subscribers' backlogs out: everything the courier decides, without a socket.

Invariants. A batch is taken once: one that ends at or before the last position
taken is a repetition (the sensor sends again what was not acknowledged); of one
that begins before it, only the events behind it are taken (a sensor that was
killed between sending and committing has a successor that drains them again).
Detections of a batch are taken once too, and are held back until that batch has
been taken. Positions start over only with a new epoch.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from tocsin.api.event.v1 import batch_pb2, event_pb2
from tocsin.errors import PeerError, WireError
from tocsin.records import framing
from tocsin.stream import wire
from tocsin.stream.backlog import DETECTION_RESERVE_BYTES, Backlog
from tocsin.stream.contexts import Contexts, tells_once
from tocsin.stream.subscription import LOSS, Selected, Subscription, select_detections, select_events

HELD_BACK_BYTES: Final = 8 << 20
"""No more detections are wanted from evaluators while so many wait for their batches."""
MAX_AHEAD_BYTES: Final = 2 << 30
"""Twice the largest ring: no honest evaluator is further ahead of the courier."""
USER_SPACE_REASONS: Final = frozenset(
    {
        event_pb2.LOSS_REASON_EVALUATOR_BACKLOG,
        event_pb2.LOSS_REASON_EVALUATOR_CRASH,
        event_pb2.LOSS_REASON_SENSOR_RESTART,
        event_pb2.LOSS_REASON_MALFORMED,
    }
)


@dataclass(slots=True)
class Taken:
    """How far the batches of one epoch were taken; cuts off what a later sensor sends again."""

    position: int = 0
    """End of the last batch."""
    next_index: int = 0
    """Of the first event behind it."""

    def rest(self, index: framing.Index, header: batch_pb2.BatchHeader, start: int, end: int) -> framing.Index:
        """What is new of a batch that covers the positions from `start` to `end`; then it counts as taken."""
        known = min(header.event_count, max(0, self.next_index - header.first_event_index))
        fresh = framing.without_first(index, header, known, self.position) if known and start < self.position else index
        self.next_index = max(self.next_index, header.first_event_index + header.event_count)
        self.skip(end)
        return fresh

    def skip(self, end: int) -> None:
        """A batch that ends there cannot be read, and counts as taken."""
        self.position = max(self.position, end)


@dataclass(eq=False, slots=True)
class Subscriber:
    """A stream that is open."""

    wanted: Subscription
    backlog: Backlog
    wake: Callable[[], None]
    """Called when something was added to the backlog."""


class Hub:
    """The stream as seen by the courier."""

    def __init__(self, buffer_bytes: int, max_subscribers: int) -> None:
        self._buffer_bytes = buffer_bytes
        self._max_subscribers = max_subscribers
        self._subscribers: set[Subscriber] = set()
        self._held: dict[int, bytes] = {}
        self._held_bytes = 0
        self._epoch = 0
        self._released_position = 0
        self._taken = Taken()
        self.users: tuple[batch_pb2.User, ...] = ()
        self._contexts = Contexts()
        self.header = batch_pb2.BatchHeader()
        """Of the last batch."""
        self.events_received = 0
        self.events_evaluated = 0
        self.detections = 0
        self.losses: Counter[tuple[int, int]] = Counter()
        """Events lost in user space, by event type and reason."""

    @property
    def position(self) -> int:
        """End of the last batch that was taken."""
        return self._taken.position

    @property
    def subscribers(self) -> int:
        """How many streams are open."""
        return len(self._subscribers)

    @property
    def wants_detections(self) -> bool:
        """False while too much is held back: the evaluators' channels are then left unread."""
        return self._held_bytes < HELD_BACK_BYTES

    def begin_epoch(self, epoch: int) -> None:
        """A sensor was attached. Another epoch than before: positions start over, what is held back goes out."""
        if epoch == self._epoch:
            return
        self._epoch = epoch
        self._release_up_to(max(self._held, default=0))
        self._taken, self._released_position = Taken(), 0

    def begin_evaluator(self) -> int:
        """An evaluator was attached; how many detection batches of former ones were given up to make room."""
        if self.wants_detections:
            return 0
        given_up, self._held, self._held_bytes = len(self._held), {}, 0
        return given_up

    def subscribe(self, wanted: Subscription, wake: Callable[[], None]) -> Subscriber:
        """Opens a stream. Raises PeerError when there are too many."""
        if len(self._subscribers) >= self._max_subscribers:
            raise PeerError(f"{self._max_subscribers} subscribers are connected, no more are allowed")
        subscriber = Subscriber(wanted, Backlog(self._buffer_bytes), wake)
        self._subscribers.add(subscriber)
        if wanted.events:
            for serialised in self._contexts.batches(self.position):
                self._push(subscriber, wire.batch(serialised), Selected(0, serialised))
        return subscriber

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Closes a stream; again is no error."""
        self._subscribers.discard(subscriber)

    def take_batch(self, end_position: int, serialised: bytes) -> bool:
        """Takes a Batch; False: it was taken before. Raises WireError when it is none: then it counts as taken.

        A batch without events ends where the last one did; it is taken for its header and its losses.
        """
        if end_position < self.position or (end_position == self.position and not _is_heartbeat(serialised)):
            return False
        try:
            index = framing.index(serialised)
            header = batch_pb2.BatchHeader.FromString(index.header)
            index = self._taken.rest(index, header, header.start_position, end_position)
        except (WireError, DecodeError) as error:
            self._taken.skip(end_position)
            self.losses[0, event_pb2.LOSS_REASON_MALFORMED] += 1
            self._release_up_to(self.position)
            raise WireError(f"batch that ends at {end_position}: {error}") from error
        self._note(index, header)
        self._send_events(index)
        self._release_up_to(self.position)
        return True

    def take_detections(self, end_position: int, evaluated: int, serialised: bytes) -> bool:
        """Takes a DetectionBatch; False: that of this batch was taken before. Raises WireError when it is none."""
        self.events_evaluated = max(self.events_evaluated, evaluated)
        if end_position <= self._released_position or end_position in self._held:
            return False
        if self.position and end_position > self.position + MAX_AHEAD_BYTES:
            raise WireError(
                f"detections of a batch that ends at {end_position}; batches have come up to {self.position}"
            )
        _parse(serialised)
        self._held[end_position] = serialised
        self._held_bytes += len(serialised)
        self._release_up_to(self.position)
        return True

    def _note(self, index: framing.Index, header: batch_pb2.BatchHeader) -> None:
        if header.users:
            self.users = tuple(header.users)
        self._contexts.note(header)
        self.header = header
        losses = index.types.count(LOSS)
        self.events_received += len(index) - losses
        at = -1
        for _ in range(losses):
            at = index.types.index(LOSS, at + 1)
            self._note_loss(event_pb2.Event.FromString(index.event(at)).loss)

    def _note_loss(self, loss: event_pb2.Loss) -> None:
        """The kernel's losses stand in the batch header's counters."""
        if loss.reason in USER_SPACE_REASONS:
            self.losses[loss.event_type, loss.reason] += loss.count

    def _send_events(self, index: framing.Index) -> None:
        whole: bytes | None = None
        for subscriber in self._subscribers:
            if not subscriber.wanted.events:
                continue
            selected = select_events(index, subscriber.wanted, keep_header=tells_once(self.header))
            if selected is None:
                continue
            if selected.serialised is index.batch:
                whole = message = whole or wire.batch(index.batch)
            else:
                message = wire.batch(selected.serialised)
            self._push(subscriber, message, selected)

    def _release_up_to(self, position: int) -> None:
        for end_position in sorted(end for end in self._held if end <= position):
            serialised = self._held.pop(end_position)
            self._held_bytes -= len(serialised)
            self._released_position = max(self._released_position, end_position)
            self._send_detections(serialised)

    def _send_detections(self, serialised: bytes) -> None:
        batch = _parse(serialised)
        self.detections += len(batch.detections)
        for loss in batch.losses:
            self._note_loss(loss)
        for subscriber in self._subscribers:
            if subscriber.wanted.detections:
                selected = select_detections(batch, serialised, subscriber.wanted)
                if selected is not None:
                    message = wire.detections(selected.serialised)
                    self._push(subscriber, message, selected, reserve_bytes=DETECTION_RESERVE_BYTES)

    def _push(self, subscriber: Subscriber, message: bytes, selected: Selected, *, reserve_bytes: int = 0) -> None:
        lost = subscriber.backlog.push(message, max(1, selected.count), reserve_bytes=reserve_bytes)
        if lost:
            self.losses[0, event_pb2.LOSS_REASON_SUBSCRIBER_BACKLOG] += lost
        subscriber.wake()


def _is_heartbeat(serialised: bytes) -> bool:
    """Whether it covers no bytes of the ring."""
    try:
        header = batch_pb2.BatchHeader.FromString(framing.index(serialised).header)
    except (WireError, DecodeError):
        return False
    return bool(header.host_id) and header.start_position == header.end_position and not header.event_count


def _parse(serialised: bytes) -> batch_pb2.DetectionBatch:
    try:
        return batch_pb2.DetectionBatch.FromString(serialised)
    except DecodeError as error:
        raise WireError(f"{len(serialised)} bytes are no DetectionBatch: {error}") from error
