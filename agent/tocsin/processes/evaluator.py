"""The evaluator: holds content, has nothing else.

Its life: import everything, enter the sandbox, wait for one release on the
control channel, load it or refuse it, then match batches until the monitor says
SHUTDOWN or is gone. It never takes a second release: another one comes with
another process.

What it found in a batch is with the courier before the batch is acknowledged.
While the courier does not take it, no further batch is read. Events that a later
sensor sends again are not evaluated again.
"""

import argparse
import encodings.idna  # noqa: F401 - nothing can be imported later
import logging
import os
import signal
import socket
import sys
import time
import traceback  # noqa: F401 - the same
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
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
from tocsin.processes.channel import HEADER, MAX_MESSAGE_BYTES, Channel, Kind, Message, unexpected
from tocsin.processes.peers import Peers
from tocsin.records import framing
from tocsin.records.field_table import SCHEMA_DIGEST
from tocsin.sandbox.profiles import enter_evaluator
from tocsin.stream.hub import Taken

log = logging.getLogger("evaluator")

HEARTBEAT_S: Final = 1.0
BLOCKED_RETRY_S: Final = 0.005
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
        evaluator = Evaluator(Channel(socket.socket(fileno=arguments.control_fd)))
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


@dataclass(eq=False, slots=True)
class Answer:
    """What is to be given for one message of the sensor; None: nothing, or it was given."""

    to_courier: Message | None
    to_sensor: Message | None


class Evaluator:
    """The loop over the channels."""

    def __init__(self, monitor: Channel) -> None:
        self._monitor = monitor
        self._peers = Peers(monitor, self._from_monitor, self._gone, log)
        self._engine: engine.Engine | None = None
        self._sensor: Channel | None = None
        self._courier: Channel | None = None
        self._answers: deque[Answer] = deque()
        self._epoch = 0
        self._taken = Taken()
        self._sensor_is_new = False
        self._seen_any = False
        self._events = 0
        self._batches = 0
        self._ended = False

    def run(self) -> None:
        """Until SHUTDOWN. Raises PeerError when the monitor is gone."""
        next_beat = time.monotonic()
        while not self._ended:
            timeout_s = BLOCKED_RETRY_S if self._answers else max(0.0, next_beat - time.monotonic())
            self._peers.serve(timeout_s)
            self._give_answers()
            if self._engine is not None and time.monotonic() >= next_beat:
                waits = int(bool(self._answers))
                self._monitor.send(Message(Kind.HEARTBEAT, code=waits, a=self._events, b=self._batches))
                next_beat = time.monotonic() + HEARTBEAT_S
            elif self._engine is None:
                next_beat = time.monotonic() + HEARTBEAT_S

    def _gone(self, channel: Channel) -> None:
        if channel is self._sensor:
            self._sensor = None
            for answer in self._answers:
                answer.to_sensor = None
        else:
            self._courier = None

    def _from_monitor(self, message: Message) -> None:
        match message.kind:
            case Kind.RELEASE if len(message.fds) == 1 and self._engine is None:
                self._load(message.fds[0], message.digest)
            case Kind.ATTACH if len(message.fds) == 1:
                self._attach(message.code, Channel(socket.socket(fileno=message.fds[0])), message.a)
            case Kind.SHUTDOWN:
                self._ended = True
            case _:
                raise unexpected(message)

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

    def _attach(self, role: int, channel: Channel, epoch: int) -> None:
        if role == control.ROLE_SENSOR:
            self._sensor = self._peers.attach("sensor", channel, self._from_sensor, self._sensor)
            self._sensor_is_new = True
            if epoch != self._epoch:
                self._epoch, self._taken = epoch, Taken()
        elif role == control.ROLE_COURIER:
            self._courier = self._peers.attach("courier", channel, self._from_courier, self._courier)
        else:
            channel.close()
            raise PeerError(f"ATTACH of a peer with role {role}, expected sensor or courier")

    def _from_courier(self, message: Message) -> None:
        raise unexpected(message)

    def _from_sensor(self, message: Message) -> None:
        if self._engine is None or message.fds:
            raise unexpected(message)
        match message.kind:
            case Kind.BATCH:
                self._take_batch(self._engine, message)
            case Kind.NAMED:
                found = self._engine.match_named(message.payload)
                self._answers.append(Answer(None, Message(Kind.MATCHES, a=message.a, payload=found)))
            case _:
                raise unexpected(message)
        self._give_answers()

    def _take_batch(self, loaded: engine.Engine, message: Message) -> None:
        losses: list[event_pb2.Loss] = []
        found = b""
        try:
            index = framing.index(message.payload)
            header = batch_pb2.BatchHeader.FromString(index.header)
            losses = self._gap(header)
            fresh = self._taken.rest(index, header, message.a, message.b)
            found = loaded.match_batch(fresh.batch)
            self._events += len(fresh) - fresh.types.count(event_pb2.EVENT_TYPE_LOSS)
        except (WireError, DecodeError) as error:
            self._taken.skip(message.b)
            log.warning("batch that ends at %d: %s", message.b, error)
            losses.append(event_pb2.Loss(reason=event_pb2.LOSS_REASON_MALFORMED, count=1, total=1))
        self._batches += 1
        detections = None
        if losses or found.startswith(engine.DETECTIONS_TAG):
            found += batch_pb2.DetectionBatch(end_position=message.b, losses=losses).SerializeToString()
            detections = Message(Kind.DETECTIONS, a=self._events, b=message.b, payload=cut_to_size(found))
        self._answers.append(Answer(detections, Message(Kind.ACK, b=message.b)))

    def _gap(self, header: batch_pb2.BatchHeader) -> list[event_pb2.Loss]:
        """Events that a dead sensor had taken and not given to this process. Other gaps the sensor counts itself."""
        missing = header.first_event_index - self._taken.next_index
        told = self._sensor_is_new and self._seen_any and missing > 0
        self._sensor_is_new, self._seen_any = False, True
        if not told:
            return []
        return [event_pb2.Loss(reason=event_pb2.LOSS_REASON_SENSOR_RESTART, count=missing, total=missing)]

    def _give_answers(self) -> None:
        """The courier first. What is not taken is given later, and no further batch is read before."""
        while self._answers and self._give(self._answers[0]):
            self._answers.popleft()
        if self._sensor is not None:
            self._peers.hold(self._sensor, held=bool(self._answers))

    def _give(self, answer: Answer) -> bool:
        """Whether all of it was taken."""
        if answer.to_courier is not None:
            if self._courier is None or not self._peers.send(self._courier, answer.to_courier):
                return False
            answer.to_courier = None
        if answer.to_sensor is None or self._sensor is None:
            return True
        return self._peers.send(self._sensor, answer.to_sensor)


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


if __name__ == "__main__":
    sys.exit(main())
