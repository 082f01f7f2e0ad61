"""The evaluator: holds content, has nothing else.

Its life: import everything, enter the sandbox, wait for one release on the
control channel, load it or refuse it, then match batches until the monitor says
SHUTDOWN or is gone. It never takes a second release: another one comes with
another process.

What it found in a batch is with the courier before the batch is acknowledged.
While the courier does not take it, no further batch is read.
"""

import argparse
import encodings.idna  # noqa: F401 - nothing can be imported later
import logging
import os
import selectors
import signal
import socket
import sys
import time
import traceback  # noqa: F401 - the same
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import hyperscan
from google.protobuf.message import DecodeError

from tocsin import config as configuration
from tocsin.api.content.v1 import content_service_pb2 as content
from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.api.event.v1 import batch_pb2, event_pb2
from tocsin.errors import ContentError, PeerError, TocsinError, WireError
from tocsin.evaluate import engine
from tocsin.evaluate.code import Code
from tocsin.processes.channel import HEADER, MAX_MESSAGE_BYTES, Channel, Kind, Message
from tocsin.records import framing
from tocsin.records.field_table import SCHEMA_DIGEST
from tocsin.sandbox.profiles import enter_evaluator

log = logging.getLogger("evaluator")

HEARTBEAT_S: Final = 1.0
BLOCKED_RETRY_S: Final = 0.005
MESSAGES_AT_ONCE: Final = 16
MAX_RELEASE_BYTES: Final = 64 << 20
MAX_PAYLOAD_BYTES: Final = MAX_MESSAGE_BYTES - HEADER.size
SAMPLE_CODES: Final = frozenset({Code.SAMPLE_MATCHED, Code.SAMPLE_NOT_MATCHED})


def main(argv: Sequence[str] | None = None) -> int:
    """Runs until the monitor ends it; 1 when it cannot start."""
    parser = argparse.ArgumentParser(prog="tocsin.processes.evaluator")
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--config", required=True)
    arguments = parser.parse_args(argv)
    level = os.environ.get("TOCSIN_LOG_LEVEL", "INFO")
    logging.basicConfig(stream=sys.stderr, level=level, format="%(name)s: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        config = configuration.from_json(arguments.config)
        selector = selectors.DefaultSelector()
        evaluator = Evaluator(Channel(socket.socket(fileno=arguments.control_fd)), selector)
        framing.index(b"")  # opens the native library, which the sandbox hides
        hyperscan.Database().compile(expressions=[b"warm"], ids=[1], flags=[0])
        uid = configuration.process_uid("tocsin-evaluator")
        log.info("%s", enter_evaluator(uid, config.evaluator.memory_bytes))
    except (TocsinError, OSError) as error:
        log.error("cannot start: %s", error)  # noqa: TRY400 - an operator's error, not the program's
        return 1
    try:
        evaluator.run()
    except PeerError as error:
        log.info("monitor: %s", error)
    return 0


class Evaluator:
    """The loop over the channels."""

    def __init__(self, monitor: Channel, selector: selectors.BaseSelector) -> None:
        self._monitor = monitor
        self._selector = selector
        self._engine: engine.Engine | None = None
        self._sensor: Channel | None = None
        self._courier: Channel | None = None
        self._answers: deque[tuple[Message | None, Message]] = deque()
        """For the courier and, after it, for the sensor."""
        self._expected_index = 0
        self._sensor_is_new = False
        self._seen_any = False
        self._events = 0
        self._batches = 0
        self._ended = False
        selector.register(monitor, selectors.EVENT_READ, self._from_monitor)

    def run(self) -> None:
        """Until SHUTDOWN. Raises PeerError when the monitor is gone."""
        next_beat = time.monotonic()
        while not self._ended:
            timeout_s = BLOCKED_RETRY_S if self._answers else max(0.0, next_beat - time.monotonic())
            for key, _ in self._selector.select(timeout_s):
                if key.fileobj in (self._monitor, self._sensor, self._courier):
                    self._read(key.fileobj, key.data)
            self._give_answers()
            if self._engine is not None and time.monotonic() >= next_beat:
                waits = int(bool(self._answers))
                self._monitor.send(Message(Kind.HEARTBEAT, code=waits, a=self._events, b=self._batches))
                next_beat = time.monotonic() + HEARTBEAT_S
            elif self._engine is None:
                next_beat = time.monotonic() + HEARTBEAT_S

    def _read(self, channel: Channel, take: Callable[[Message], None]) -> None:
        try:
            for _ in range(MESSAGES_AT_ONCE):
                if (self._answers and channel is self._sensor) or (message := channel.receive()) is None:
                    return
                take(message)
        except PeerError as error:
            if channel is self._monitor:
                raise
            self._drop(channel, str(error))

    def _drop(self, channel: Channel | None, reason: str) -> None:
        if channel is None:
            return
        log.info("%s: %s", "sensor" if channel is self._sensor else "courier", reason)
        self._selector.unregister(channel)
        channel.close()
        if channel is self._sensor:
            self._sensor = None
            self._answers = deque((found, Message(Kind.HEARTBEAT)) for found, _ in self._answers if found)
        else:
            self._courier = None

    def _from_monitor(self, message: Message) -> None:
        match message.kind:
            case Kind.RELEASE if len(message.fds) == 1 and self._engine is None:
                self._load(message.fds[0], message.digest)
            case Kind.ATTACH if len(message.fds) == 1:
                self._attach(message.code, Channel(socket.socket(fileno=message.fds[0])))
            case Kind.SHUTDOWN:
                self._ended = True
            case _:
                raise _unexpected(message)

    def _load(self, fd: int, digest: bytes) -> None:
        with os.fdopen(fd, "rb", closefd=True) as file:
            raw = os.pread(file.fileno(), MAX_RELEASE_BYTES + 1, 0)
        try:
            loaded = engine.load(raw, SCHEMA_DIGEST)
        except ContentError as error:
            self._refuse(error)
            return
        except MemoryError:
            self._refuse(ContentError(Code.TOO_LARGE, "the release needs more memory than an evaluator may have"))
            return
        if loaded.digest != digest:
            words = f"got the bytes of {loaded.digest.hex()}, expected those of {digest.hex()}"
            self._refuse(ContentError(Code.MALFORMED, words))
            return
        self._engine = loaded
        rules, inert = len(loaded.rules), len(loaded.inert)
        name = loaded.name.encode(errors="replace")
        self._monitor.send(Message(Kind.READY, a=rules, b=inert, digest=loaded.digest, payload=name))

    def _refuse(self, error: ContentError) -> None:
        stage = content.STAGE_SAMPLES if error.code in SAMPLE_CODES else content.STAGE_COMPILE
        refusal = content.Refusal(stage=stage, code=error.code, rule_id=error.rule_id, message=error.message)
        self._monitor.send(Message(Kind.REFUSED, code=stage, payload=refusal.SerializeToString()))

    def _attach(self, role: int, channel: Channel) -> None:
        if role == control.ROLE_SENSOR:
            self._drop(self._sensor, "replaced")
            self._sensor, self._sensor_is_new = channel, True
            self._selector.register(channel, selectors.EVENT_READ, self._from_sensor)
        elif role == control.ROLE_COURIER:
            self._drop(self._courier, "replaced")
            self._courier = channel
            self._selector.register(channel, selectors.EVENT_READ, self._from_courier)
        else:
            channel.close()
            raise PeerError(f"ATTACH of a peer with role {role}, expected sensor or courier")

    def _from_courier(self, message: Message) -> None:
        raise _unexpected(message)

    def _from_sensor(self, message: Message) -> None:
        if self._engine is None or message.fds:
            raise _unexpected(message)
        match message.kind:
            case Kind.BATCH:
                self._take_batch(self._engine, message)
            case Kind.NAMED:
                found = self._engine.match_named(message.payload)
                self._answers.append((None, Message(Kind.MATCHES, a=message.a, payload=found)))
            case _:
                raise _unexpected(message)
        self._give_answers()

    def _take_batch(self, loaded: engine.Engine, message: Message) -> None:
        losses: list[event_pb2.Loss] = []
        found = b""
        try:
            header = batch_pb2.BatchHeader.FromString(framing.index(message.payload).header)
            losses = self._gap(header)
            found = loaded.match_batch(message.payload)
            self._events += header.event_count
        except (WireError, DecodeError) as error:
            log.warning("batch that ends at %d: %s", message.b, error)
            losses.append(event_pb2.Loss(reason=event_pb2.LOSS_REASON_MALFORMED, count=1, total=1))
        self._batches += 1
        detections = None
        if losses or found.startswith(engine.DETECTIONS_TAG):
            found += batch_pb2.DetectionBatch(end_position=message.b, losses=losses).SerializeToString()
            detections = Message(Kind.DETECTIONS, a=self._events, b=message.b, payload=cut_to_size(found))
        self._answers.append((detections, Message(Kind.ACK, b=message.b)))

    def _gap(self, header: batch_pb2.BatchHeader) -> list[event_pb2.Loss]:
        """Events that a dead sensor had taken and not given to this process. Other gaps the sensor counts itself."""
        missing = header.first_event_index - self._expected_index
        told = self._sensor_is_new and self._seen_any and missing > 0
        self._expected_index = header.first_event_index + header.event_count
        self._sensor_is_new, self._seen_any = False, True
        if not told:
            return []
        return [event_pb2.Loss(reason=event_pb2.LOSS_REASON_SENSOR_RESTART, count=missing, total=missing)]

    def _give_answers(self) -> None:
        while self._answers:
            found, answer = self._answers[0]
            if found is not None:
                if not self._sent(self._courier, found):
                    return
                self._answers[0] = (None, answer)
            if answer.kind is not Kind.HEARTBEAT and self._sensor and not self._sent(self._sensor, answer):
                return
            if self._answers:
                self._answers.popleft()

    def _sent(self, channel: Channel | None, message: Message) -> bool:
        if channel is None:
            return False
        try:
            return channel.send(message)
        except PeerError as error:
            self._drop(channel, str(error))
            return False


def cut_to_size(serialised: bytes) -> bytes:
    """A DetectionBatch that fits a message: the most serious detections, and the rest counted as lost."""
    if len(serialised) <= MAX_PAYLOAD_BYTES:
        return serialised
    batch = batch_pb2.DetectionBatch.FromString(serialised)
    kept: list[batch_pb2.Detection] = []
    room = MAX_PAYLOAD_BYTES - 4096
    for detection in sorted(batch.detections, key=lambda d: -d.level):
        size_bytes = detection.ByteSize() + 8
        if size_bytes > room:
            break
        room -= size_bytes
        kept.append(detection)
    lost = len(batch.detections) - len(kept)
    loss = event_pb2.Loss(reason=event_pb2.LOSS_REASON_EVALUATOR_BACKLOG, count=lost, total=lost)
    losses = [*batch.losses, loss]
    return batch_pb2.DetectionBatch(detections=kept, end_position=batch.end_position, losses=losses).SerializeToString()


def _unexpected(message: Message) -> PeerError:
    for fd in message.fds:
        os.close(fd)
    return PeerError(f"got {message.kind.name} with {len(message.fds)} file descriptors, which this peer may not send")


if __name__ == "__main__":
    sys.exit(main())
