"""SubscribeResponse messages made by hand, so that a batch's bytes are passed on and not encoded again.

Each function gives the serialised message. A protobuf message with one field is
that field's tag, its length and its bytes.
"""

from typing import Final

from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.api.event.v1 import event_pb2
from tocsin.errors import WireError
from tocsin.records.framing import varint

BATCH_TAG: Final = bytes((control.SubscribeResponse.BATCH_FIELD_NUMBER << 3 | 2,))
DETECTIONS_TAG: Final = bytes((control.SubscribeResponse.DETECTIONS_FIELD_NUMBER << 3 | 2,))


def batch(serialised: bytes) -> bytes:
    """A response with a serialised Batch."""
    return b"".join((BATCH_TAG, varint(len(serialised)), serialised))


def detections(serialised: bytes) -> bytes:
    """A response with a serialised DetectionBatch."""
    return b"".join((DETECTIONS_TAG, varint(len(serialised)), serialised))


def backlog_loss(count: int, total: int) -> bytes:
    """A response that tells that this stream misses `count` events, `total` since it began."""
    loss = event_pb2.Loss(reason=event_pb2.LOSS_REASON_SUBSCRIBER_BACKLOG, count=count, total=total)
    return control.SubscribeResponse(loss=loss).SerializeToString()


def part(serialised: bytes) -> tuple[int, bytes]:
    """Field number and bytes of the part that a response made here holds. Raises WireError."""
    size, at = 0, 1
    for shift in range(0, 35, 7):
        if at >= len(serialised):
            break
        byte = serialised[at]
        size |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            if serialised[0] & 7 != 2 or len(serialised) != at + size:
                break
            return serialised[0] >> 3, serialised[at:]
    raise WireError(f"response of {len(serialised)} bytes is not one field with its length")
