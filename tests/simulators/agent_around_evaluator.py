"""Plays monitor, sensor and courier for a real evaluator process."""

import hashlib
import os

from simulators.agent_around_process import (  # type: ignore[import-not-found]
    SimulatedRest,
    expect,
    send_batch,
)
from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.api.event.v1 import batch_pb2
from tocsin.processes.channel import Channel, Kind, Message


class SimulatedHost(SimulatedRest):  # type: ignore[misc]
    """A real evaluator that holds a release, with a simulated rest."""

    def __init__(self, release: bytes) -> None:
        super().__init__(control.ROLE_EVALUATOR)
        fd = os.memfd_create("release", os.MFD_CLOEXEC)
        with os.fdopen(fd, "wb") as file:
            file.write(release)
            file.flush()
            self.control.send(Message(Kind.RELEASE, digest=hashlib.sha256(release).digest(), fds=(fd,)))
        self.expect(Kind.READY)
        self.courier = self.attach(control.ROLE_COURIER)

    def attach_sensor(self, epoch: int = 1) -> Channel:
        """A channel on which the evaluator expects batches."""
        return self.attach(control.ROLE_SENSOR, epoch)  # type: ignore[no-any-return]

    def evaluate(self, sensor: Channel, batch: batch_pb2.Batch) -> batch_pb2.DetectionBatch:
        """What the courier is told of a batch; an empty message when nothing."""
        send_batch(sensor, batch)
        assert expect(sensor, Kind.ACK).b == batch.header.end_position
        message = self.courier.receive()  # it was sent before the ACK
        while message is not None and message.kind is not Kind.DETECTIONS:
            message = self.courier.receive()
        return batch_pb2.DetectionBatch.FromString(message.payload if message else b"")
