"""Plays the rest of the agent for one real process, over the channels that the rest would use."""

import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from simulators.running import Running  # type: ignore[import-not-found]
from tocsin.api.event.v1 import batch_pb2, event_pb2
from tocsin.config import Config, CourierConfig
from tocsin.processes.channel import Channel, Kind, Message, pair
from tocsin.processes.child import MODULES

TIMEOUT_S = 20.0


def make_event(number: int, kind: int = event_pb2.EVENT_TYPE_EXEC, euid: int = 0) -> event_pb2.Event:
    """An event that can be told from others by its cpu_sequence."""
    event = event_pb2.Event(boottime_ns=10**9 + number, cpu_sequence=number, type=kind)  # type: ignore[arg-type]
    event.process.pid, event.process.euid, event.process.exe = 1000 + number, euid, b"/bin/true"
    if kind == event_pb2.EVENT_TYPE_EXEC:
        event.exec.argc = 1
    return event


def make_batch(
    start: int, end: int, events: list[event_pb2.Event], users: dict[int, str] | None = None, first_index: int = 0
) -> batch_pb2.Batch:
    """A batch as the sensor makes it: the header last."""
    header = batch_pb2.BatchHeader(
        start_position=start, end_position=end, first_event_index=first_index, event_count=len(events)
    )
    header.users.extend(batch_pb2.User(uid=uid, name=name) for uid, name in (users or {}).items())
    return batch_pb2.Batch(events=events, header=header)


class SimulatedRest(Running):  # type: ignore[misc]
    """A real process of one role; the rest of the agent is simulated."""

    def __init__(self, role: int, courier: CourierConfig | None = None, directory: Path | None = None) -> None:
        super().__init__(directory)
        self.config = Config(runtime_dir=str(self.dir), courier=courier or CourierConfig())
        ours, theirs = pair()
        self.control = Channel(ours)
        command = [sys.executable, "-P", "-m", MODULES[role]]  # type: ignore[index]
        command += ["--control-fd", str(theirs.fileno()), "--config", self.config.to_json()]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=log)
        theirs.close()

    def close(self) -> None:
        """Ends the process and removes its files."""
        self.control.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        super().close()

    def attach(self, role: int, epoch: int = 0) -> Channel:
        """Connects a simulated peer to the process; its end of the channel."""
        ours, theirs = pair()
        self.control.send(Message(Kind.ATTACH, code=role, a=epoch, fds=(theirs.fileno(),)))
        theirs.close()
        return Channel(ours)

    def expect(self, kind: Kind) -> Message:
        """The next message of a kind on the control channel; others are passed over."""
        return expect(self.control, kind)


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
