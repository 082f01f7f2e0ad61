"""Plays monitor, sensor and evaluator for a real courier process, over the channels that these would use."""

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tocsin.api.content.v1 import content_service_pb2 as content
from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.api.event.v1 import batch_pb2, event_pb2
from tocsin.config import Config, CourierConfig
from tocsin.errors import PeerError
from tocsin.processes.channel import Channel, Kind, Message, pair
from tocsin.processes.state import AgentState

TIMEOUT_S = 20.0


def make_event(number: int, kind: int = event_pb2.EVENT_TYPE_EXEC, euid: int = 0) -> event_pb2.Event:
    """An event that can be told from others by its cpu_sequence."""
    event = event_pb2.Event(boottime_ns=10**9 + number, cpu_sequence=number, type=kind)  # type: ignore[arg-type]
    event.process.pid, event.process.euid, event.process.exe = 1000 + number, euid, b"/bin/true"
    if kind == event_pb2.EVENT_TYPE_EXEC:
        event.exec.argc = 1
    return event


def make_batch(
    start: int, end: int, events: list[event_pb2.Event], users: dict[int, str] | None = None
) -> batch_pb2.Batch:
    """A batch as the sensor makes it: the header last."""
    header = batch_pb2.BatchHeader(start_position=start, end_position=end, event_count=len(events))
    header.users.extend(batch_pb2.User(uid=uid, name=name) for uid, name in (users or {}).items())
    return batch_pb2.Batch(events=events, header=header)


def make_detections(end: int, events: list[event_pb2.Event], level: int = 4) -> batch_pb2.DetectionBatch:
    """Detections of one batch, one for each event."""
    found = [
        batch_pb2.Detection(rule_id=f"rule-{e.cpu_sequence}", rule_title="A rule", level=level, event=e)  # type: ignore[arg-type]
        for e in events
    ]
    return batch_pb2.DetectionBatch(detections=found, end_position=end)


class SimulatedAgent:
    """A real courier with a simulated rest."""

    def __init__(self, courier: CourierConfig | None = None, runtime_dir: Path | None = None) -> None:
        self.runtime_dir = runtime_dir or Path(tempfile.mkdtemp(prefix="tocsin-test-"))
        self.runtime_dir.chmod(0o755)
        self.config = Config(runtime_dir=str(self.runtime_dir), courier=courier or CourierConfig())
        ours, theirs = pair()
        self.control = Channel(ours)
        command = [sys.executable, "-P", "-m", "tocsin.processes.courier"]
        command += ["--control-fd", str(theirs.fileno()), "--config", self.config.to_json()]
        self.log_path = self.runtime_dir / "log"
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=log)
        theirs.close()
        try:
            self.expect(Kind.READY)
        except (PeerError, TimeoutError) as error:
            self.close()
            raise AssertionError(self.log) from error

    @property
    def log(self) -> str:
        """What the courier wrote to standard error."""
        return self.log_path.read_text() if self.log_path.exists() else ""

    @property
    def target(self) -> str:
        """For gRPC."""
        return f"unix:{self.config.socket_path}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            sys.stderr.write(self.log)
        self.close()

    def close(self) -> None:
        """Ends the courier and removes its files."""
        self.control.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        shutil.rmtree(self.runtime_dir, ignore_errors=True)

    def attach(self, role: int, epoch: int = 0) -> Channel:
        """Connects a simulated peer to the courier; its end of the channel."""
        ours, theirs = pair()
        self.control.send(Message(Kind.ATTACH, code=role, a=epoch, fds=(theirs.fileno(),)))
        theirs.close()
        return Channel(ours)

    def attach_sensor(self, epoch: int = 0) -> Channel:
        """A channel on which the courier expects batches."""
        return self.attach(control.ROLE_SENSOR, epoch)

    def attach_evaluator(self) -> Channel:
        """A channel on which the courier expects detections."""
        return self.attach(control.ROLE_EVALUATOR)

    def tell_state(self, state: AgentState) -> None:
        """A STATE message."""
        self.control.send(Message(Kind.STATE, payload=state.pack()))

    def expect(self, kind: Kind) -> Message:
        """The next message of a kind on the control channel; others are passed over."""
        return expect(self.control, kind)

    def answer_load(self, message: Message, refusal: content.Refusal | None = None, code: int = 0) -> bytes:
        """Reads the release that came with a LOAD, and answers; the release."""
        (fd,) = message.fds
        with os.fdopen(fd, "rb") as file:
            file.seek(0)
            release = file.read()
        payload = refusal.SerializeToString() if refusal else b""
        self.control.send(Message(Kind.LOAD_RESULT, code=code, a=message.a, digest=message.digest, payload=payload))
        return release


def expect(channel: Channel, kind: Kind) -> Message:
    """The next message of a kind; others are passed over. Raises TimeoutError, PeerError."""
    deadline = time.monotonic() + TIMEOUT_S
    while (left := deadline - time.monotonic()) > 0:
        if select.select([channel], [], [], left)[0]:
            message = channel.receive()
            if message is not None and message.kind is kind:
                return message
    raise TimeoutError(f"no {kind.name} in {TIMEOUT_S} s")


def send_batch(channel: Channel, batch: batch_pb2.Batch) -> None:
    """As the sensor does."""
    header = batch.header
    payload = batch.SerializeToString()
    assert channel.send(Message(Kind.BATCH, a=header.start_position, b=header.end_position, payload=payload))


def send_detections(channel: Channel, batch: batch_pb2.DetectionBatch, evaluated: int = 0) -> None:
    """As an evaluator does."""
    payload = batch.SerializeToString()
    assert channel.send(Message(Kind.DETECTIONS, a=evaluated, b=batch.end_position, payload=payload))
