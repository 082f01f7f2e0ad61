"""What a subscriber asked for, checked, and what of a batch fits it.

Without a filter the bytes go through as they came. With one, whole events are
cut out of the batch by their place and type; only a filter on users reads
inside an event. Losses always go through.
"""

from dataclasses import dataclass
from typing import Final

from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.api.event.v1 import batch_pb2, event_pb2
from tocsin.errors import WireError
from tocsin.records import framing

LOSS: Final = event_pb2.EVENT_TYPE_LOSS
MAX_RULE_IDS: Final = 10_000
MAX_UIDS: Final = 10_000
_EVENT_TYPES: Final = frozenset(event_pb2.EventType.values()) - {event_pb2.EVENT_TYPE_UNSPECIFIED}
_LEVELS: Final = frozenset(batch_pb2.Level.values())


@dataclass(frozen=True, slots=True)
class Subscription:
    """A checked SubscribeRequest. Empty sets: everything."""

    events: bool = True
    detections: bool = True
    event_types: frozenset[int] = frozenset()
    uids: frozenset[int] = frozenset()
    min_level: int = 0
    rule_ids: frozenset[str] = frozenset()

    @property
    def takes_whole_batches(self) -> bool:
        """Whether batches go through unread."""
        return not self.event_types and not self.uids

    @property
    def takes_whole_detections(self) -> bool:
        """Whether detection batches go through unread."""
        return not (self.event_types or self.uids or self.min_level or self.rule_ids)


def checked(request: control.SubscribeRequest) -> Subscription:
    """A Subscription. Raises WireError naming the field at fault."""
    if not request.events and not request.detections:
        raise WireError("events, detections: both are false, expected at least one to be true")
    unknown = sorted(set(request.event_types) - _EVENT_TYPES)
    if unknown:
        known = f"{min(_EVENT_TYPES)} to {max(_EVENT_TYPES)}"
        raise WireError(f"event_types: {unknown[0]} is no event type, expected {known}")
    if request.min_level not in _LEVELS:
        raise WireError(f"min_level: {request.min_level} is no level, expected 0 to {max(_LEVELS)}")
    if len(request.rule_ids) > MAX_RULE_IDS:
        raise WireError(f"rule_ids: got {len(request.rule_ids)}, expected at most {MAX_RULE_IDS}")
    if len(request.uids) > MAX_UIDS:
        raise WireError(f"uids: got {len(request.uids)}, expected at most {MAX_UIDS}")
    return Subscription(
        request.events,
        request.detections,
        frozenset(request.event_types),
        frozenset(request.uids),
        request.min_level,
        frozenset(request.rule_ids),
    )


@dataclass(frozen=True, slots=True)
class Selected:
    """The part of a batch that fits."""

    count: int
    """How many events or detections it holds."""
    serialised: bytes


def select_events(index: framing.Index, wanted: Subscription, *, keep_header: bool = False) -> Selected | None:
    """The events that fit, with the batch's header; None when none fits.

    `keep_header`: the header alone goes out too, for it tells what is told once.
    """
    if wanted.takes_whole_batches:
        return Selected(len(index), index.batch)
    parts = [index.event(at) for at, kind in enumerate(index.types) if _event_fits(index, at, kind, wanted)]
    if not parts and not keep_header:
        return None
    fields = [framing.event_field(part) for part in parts]
    return Selected(len(parts), b"".join((*fields, framing.header_field(index.header))))


def _event_fits(index: framing.Index, at: int, kind: int, wanted: Subscription) -> bool:
    if kind == LOSS:
        return True
    if wanted.event_types and kind not in wanted.event_types:
        return False
    if not wanted.uids:
        return True
    return event_pb2.Event.FromString(index.event(at)).process.euid in wanted.uids


def select_detections(batch: batch_pb2.DetectionBatch, serialised: bytes, wanted: Subscription) -> Selected | None:
    """The detections that fit, with the batch's losses; None when there is nothing to tell."""
    if wanted.takes_whole_detections:
        return Selected(len(batch.detections), serialised)
    fitting = [detection for detection in batch.detections if _detection_fits(detection, wanted)]
    if not fitting and not batch.losses:
        return None
    kept = batch_pb2.DetectionBatch(detections=fitting, end_position=batch.end_position, losses=batch.losses)
    return Selected(len(fitting), kept.SerializeToString())


def _detection_fits(detection: batch_pb2.Detection, wanted: Subscription) -> bool:
    return (
        detection.level >= wanted.min_level
        and (not wanted.rule_ids or detection.rule_id in wanted.rule_ids)
        and (not wanted.event_types or detection.event.type in wanted.event_types)
        and (not wanted.uids or detection.event.process.euid in wanted.uids)
    )
