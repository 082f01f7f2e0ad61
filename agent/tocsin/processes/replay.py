"""A real evaluator process for tools: this process plays its monitor, sensor and courier.

The evaluator is the one that hosts run, in the sandbox that hosts put it in;
content is tried here exactly as there. One request is under way at a time.
"""

import hashlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from google.protobuf.message import DecodeError

from tocsin.api.content.v1 import content_service_pb2 as content
from tocsin.api.content.v1 import release_pb2 as pb
from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.api.event.v1 import batch_pb2
from tocsin.config import Config
from tocsin.errors import ContentError, PeerError, WireError
from tocsin.processes.channel import HEADER, MAX_MESSAGE_BYTES, Channel, Kind, Message, pair

START_TIMEOUT_S: Final = 120.0
"""A release of the greatest size compiles and runs its samples in less."""
SEND_RETRY_S: Final = 0.001
LOG_TAIL_BYTES: Final = 4096
MAX_PAYLOAD_BYTES: Final = MAX_MESSAGE_BYTES - HEADER.size


class ReplayEvaluator:
    """An evaluator with one release. A context: leaving it ends the process."""

    def __init__(self, config: Config, release: bytes) -> None:
        """Raises ContentError when the evaluator refuses the release, or dies of it."""
        self._timeout_s = config.evaluator.hang_timeout_s
        self._ticket = 0
        self._position = 0
        ours, theirs = pair()
        self._control = Channel(ours)
        command = [sys.executable, "-P", "-m", "tocsin.processes.evaluator"]
        command += ["--control-fd", str(theirs.fileno()), "--config", config.to_json()]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        pass_fds = [theirs.fileno()]
        self._process = subprocess.Popen(command, pass_fds=pass_fds, stdin=subprocess.DEVNULL, stderr=self._log)
        theirs.close()
        try:
            self.rules, self.inert_rules = self._load(release)
            self._sensor = self._attach(control.ROLE_SENSOR)
            self._courier = self._attach(control.ROLE_COURIER)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._control.close()
        self._log.close()

    def match_named(self, events: Sequence[pb.NamedEvent]) -> list[pb.NamedMatch]:
        """The rules that named events match. Raises ContentError, WireError; ValueError when it is too much at once."""
        self._ticket += 1
        payload = pb.NamedEventBatch(events=events).SerializeToString()
        self._send(self._sensor, Message(Kind.NAMED, a=self._ticket, payload=payload))
        answer = self._expect(self._sensor, {Kind.MATCHES}, self._timeout_s)
        if answer.a != self._ticket:
            raise WireError(f"got MATCHES for ticket {answer.a}, expected {self._ticket}")
        try:
            return list(pb.NamedMatches.FromString(answer.payload).matches)
        except DecodeError as error:
            raise WireError(f"{len(answer.payload)} bytes are no NamedMatches: {error}") from error

    def match_batch(self, serialised: bytes, end_position: int) -> list[batch_pb2.Detection]:
        """The detections of a serialised Batch. Raises ContentError, WireError; ValueError when it is too big."""
        start, self._position = self._position, max(self._position + 1, end_position)
        self._send(self._sensor, Message(Kind.BATCH, a=start, b=self._position, payload=serialised))
        self._expect(self._sensor, {Kind.ACK}, self._timeout_s)
        found: list[batch_pb2.Detection] = []
        while (message := self._courier.receive()) is not None:  # what came before the ACK is here by now
            if message.kind is Kind.DETECTIONS:
                found += _detections(message.payload)
        return found

    def _load(self, release: bytes) -> tuple[int, int]:
        fd = os.memfd_create("release", os.MFD_CLOEXEC)
        try:
            with os.fdopen(os.dup(fd), "wb") as file:
                file.write(release)
            os.lseek(fd, 0, os.SEEK_SET)
            digest = hashlib.sha256(release).digest()
            self._send(self._control, Message(Kind.RELEASE, digest=digest, fds=(fd,)))
            answer = self._expect(self._control, {Kind.READY, Kind.REFUSED}, START_TIMEOUT_S)
        finally:
            os.close(fd)
        if answer.kind is Kind.REFUSED:
            raise refusal_of(answer.payload)
        return answer.a, answer.b

    def _attach(self, role: int) -> Channel:
        ours, theirs = pair()
        self._send(self._control, Message(Kind.ATTACH, code=role, fds=(theirs.fileno(),)))
        theirs.close()
        return Channel(ours)

    def _send(self, channel: Channel, message: Message) -> None:
        deadline = time.monotonic() + self._timeout_s
        try:
            while not channel.send(message):
                if time.monotonic() > deadline:
                    raise self._failure(f"took nothing for {self._timeout_s} s")
                time.sleep(SEND_RETRY_S)
        except PeerError as error:
            raise self._failure(str(error)) from error

    def _expect(self, channel: Channel, kinds: set[Kind], timeout_s: float) -> Message:
        """The next message of one of the kinds; heartbeats and the like are passed over."""
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            if not select.select([channel], [], [], left_s)[0]:
                continue
            try:
                message = channel.receive()
            except PeerError as error:
                raise self._failure(str(error)) from error
            if message is not None and message.kind in kinds:
                return message
        raise self._failure(f"did not answer in {timeout_s} s")

    def _failure(self, words: str) -> ContentError:
        """It died or hangs: on a host the release would be taken back."""
        self._log.seek(0)
        last_words = self._log.read()[-LOG_TAIL_BYTES:].decode(errors="replace").strip().rpartition("\n")[2]
        return ContentError("EVALUATOR_FAILED", f"the evaluator failed on this content: {words}: {last_words}")


def refusal_of(payload: bytes) -> ContentError:
    """A REFUSED message's payload as an error."""
    try:
        refusal = content.Refusal.FromString(payload)
    except DecodeError:
        return ContentError("UNREADABLE_REFUSAL", "refused, and the evaluator's reason is not readable")
    return ContentError(refusal.code, refusal.message, rule_id=refusal.rule_id)


def _detections(payload: bytes) -> list[batch_pb2.Detection]:
    try:
        return list(batch_pb2.DetectionBatch.FromString(payload).detections)
    except DecodeError as error:
        raise WireError(f"{len(payload)} bytes are no DetectionBatch: {error}") from error
