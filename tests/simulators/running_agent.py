"""The real agent with directories of its own, and what its users would ask of it."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

from simulators.running import COMMAND, TIMEOUT_S, Running, eventually  # type: ignore[import-not-found]
from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.api.event.v1 import batch_pb2, event_pb2
from tocsin.cli.agent import RunningAgent, connected


class Agent(Running):  # type: ignore[misc]
    """`tocsin run`, without a deadline."""

    def __init__(self, source: str, *arguments: str) -> None:
        super().__init__()
        self.socket = self.dir / "run" / "tocsin.sock"
        self.directories = ["--runtime-dir", str(self.dir / "run"), "--state-dir", str(self.dir / "state")]
        command = [*COMMAND, "run", "--json", "--no-act", "--source", source, *self.directories, *arguments]
        with self.log_path.open("wb") as log, (self.dir / "out").open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=log, stdin=subprocess.DEVNULL)
        try:
            eventually(self.settled, "the agent runs")
        except AssertionError:
            sys.stderr.write(self.log)
            self.close()
            raise

    def close(self) -> None:
        """Ends it in order."""
        self.process.terminate()
        try:
            self.process.wait(30)
        finally:
            self.process.kill()
        super().close()

    def status(self) -> control.GetStatusResponse:
        """GetStatus."""
        with connected(self.socket) as agent:
            return agent.status()

    def settled(self) -> control.GetStatusResponse | None:
        """The state once every process runs; None before."""
        status = self.status()
        whole = len(status.processes) >= 4 and all(p.pid for p in status.processes) and status.release_digest
        return status if whole and "being started" not in status.health_reason else None

    def pid(self, role: int) -> int:
        """The pid of a process."""
        return next((p.pid for p in self.status().processes if p.role == role), 0)

    @contextlib.contextmanager
    def subscribed(self) -> Iterator["Stream"]:
        """A subscription, read in the background."""
        with connected(self.socket) as agent:
            stream = Stream(agent)
            stream.begun.wait(TIMEOUT_S)
            yield stream


class Stream:
    """What a subscriber got so far."""

    def __init__(self, agent: RunningAgent) -> None:
        self.batches: list[batch_pb2.Batch] = []
        self.detections: list[batch_pb2.Detection] = []
        self.losses: list[event_pb2.Loss] = []
        self.begun = threading.Event()
        threading.Thread(target=self._read, args=(agent,), daemon=True).start()

    def _read(self, agent: RunningAgent) -> None:
        with contextlib.suppress(Exception):
            for serialised in agent.subscribe(control.SubscribeRequest(events=True, detections=True), None):
                part = control.SubscribeResponse.FromString(serialised)
                self.begun.set()
                if part.HasField("batch"):
                    self.batches.append(part.batch)
                self.detections += part.detections.detections
                self.losses += part.detections.losses
                if part.HasField("loss"):
                    self.losses.append(part.loss)

    @property
    def events(self) -> list[event_pb2.Event]:
        """Events, no losses."""
        return [e for b in list(self.batches) for e in b.events if e.type != event_pb2.EVENT_TYPE_LOSS]

    def execs(self, marker: bytes) -> list[event_pb2.Event]:
        """Execs whose command line holds the marker."""
        return [e for e in self.events if e.type == event_pb2.EVENT_TYPE_EXEC and marker in e.process.argv]


def objects(text: str) -> list[dict[str, Any]]:
    """JSON lines."""
    return [json.loads(line) for line in text.splitlines()]


def can_load_ebpf() -> bool:
    """Whether the kernel source works here."""
    if os.geteuid() != 0:
        return False
    program = (
        "from tocsin.config import SensorConfig\n"
        "from tocsin.kernel.core import open_core\n"
        "open_core(SensorConfig(), []).close()"
    )
    return subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, check=False).returncode == 0
