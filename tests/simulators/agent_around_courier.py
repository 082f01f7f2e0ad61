"""Plays monitor, sensor and evaluator for a real courier process."""

import os
from pathlib import Path

from simulators.agent_around_process import (  # type: ignore[import-not-found]
    SimulatedRest,
    expect,
    make_batch,
    make_event,
    send_batch,
)
from tocsin.api.content.v1 import content_service_pb2 as content
from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.api.event.v1 import batch_pb2, event_pb2
from tocsin.config import CourierConfig
from tocsin.errors import PeerError
from tocsin.processes.channel import Channel, Kind, Message
from tocsin.processes.state import AgentState

__all__ = [
    "SimulatedAgent",
    "expect",
    "make_batch",
    "make_detections",
    "make_event",
    "send_batch",
    "send_detections",
]


def make_detections(end: int, events: list[event_pb2.Event], level: int = 4) -> batch_pb2.DetectionBatch:
    """Detections of one batch, one for each event."""
    found = [
        batch_pb2.Detection(rule_id=f"rule-{e.cpu_sequence}", rule_title="A rule", level=level, event=e)  # type: ignore[arg-type]
        for e in events
    ]
    return batch_pb2.DetectionBatch(detections=found, end_position=end)


class SimulatedAgent(SimulatedRest):  # type: ignore[misc]
    """A real courier with a simulated rest."""

    def __init__(self, courier: CourierConfig | None = None, directory: Path | None = None) -> None:
        super().__init__(control.ROLE_COURIER, courier, directory)
        try:
            self.expect(Kind.READY)
        except (PeerError, TimeoutError) as error:
            self.close()
            raise AssertionError(self.log) from error

    @property
    def target(self) -> str:
        """For gRPC."""
        return f"unix:{self.config.socket_path}"

    def attach_sensor(self, epoch: int = 0) -> Channel:
        """A channel on which the courier expects batches."""
        return self.attach(control.ROLE_SENSOR, epoch)  # type: ignore[no-any-return]

    def attach_evaluator(self) -> Channel:
        """A channel on which the courier expects detections."""
        return self.attach(control.ROLE_EVALUATOR)  # type: ignore[no-any-return]

    def tell_state(self, state: AgentState) -> None:
        """A STATE message."""
        self.control.send(Message(Kind.STATE, payload=state.pack()))

    def answer_load(self, message: Message, refusal: content.Refusal | None = None, code: int = 0) -> bytes:
        """Reads the release that came with a LOAD, and answers; the release."""
        (fd,) = message.fds
        with os.fdopen(fd, "rb") as file:
            file.seek(0)
            release = file.read()
        payload = refusal.SerializeToString() if refusal else b""
        self.control.send(Message(Kind.LOAD_RESULT, code=code, a=message.a, digest=message.digest, payload=payload))
        return release


def send_detections(channel: Channel, batch: batch_pb2.DetectionBatch, evaluated: int = 0) -> None:
    """As an evaluator does."""
    payload = batch.SerializeToString()
    assert channel.send(Message(Kind.DETECTIONS, a=evaluated, b=batch.end_position, payload=payload))
