"""One child process of the monitor: how it is started, what it said last, when it counts as hung.

Nothing is decided here: the monitor asks.
"""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.errors import PeerError
from tocsin.processes.channel import Channel, Message, pair

MODULES: Final = {
    control.ROLE_SENSOR: "tocsin.processes.sensor",
    control.ROLE_EVALUATOR: "tocsin.processes.evaluator",
    control.ROLE_COURIER: "tocsin.processes.courier",
    control.ROLE_ENRICHER: "tocsin.processes.enricher",
}
USERS: Final = {
    control.ROLE_EVALUATOR: "tocsin-evaluator",
    control.ROLE_COURIER: "tocsin-courier",
    control.ROLE_ENRICHER: "tocsin-enricher",
}
LOAD_TIMEOUT_S: Final = 60.0
"""From the start to READY."""
SILENCE_S: Final = 20.0
"""Another process than an evaluator without a heartbeat for so long is killed."""
WORKED_SHARE: Final = 0.5
"""Of its time limit, as CPU time: who had less was kept waiting by the host, not by itself."""
STARVED_FACTOR: Final = 4
"""Who was kept waiting has so many times its limit."""
CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")
FREE_DEATHS: Final = 2
DEATHS_WITHIN_S: Final = 10.0
BACKOFF_S: Final = 0.5
MAX_BACKOFF_S: Final = 30.0


def role_name(role: int) -> str:
    """For people."""
    return control.Role.Name(control.Role.ValueType(role)).removeprefix("ROLE_").lower()


@dataclass(eq=False, slots=True)
class Child:
    """A process."""

    role: int
    process: subprocess.Popen[bytes]
    channel: Channel
    pidfd: int
    started_s: float
    ready: bool = False
    heard_s: float = 0.0
    """Last heartbeat, or READY."""
    a: int = 0
    b: int = 0
    code: int = 0
    moved_s: float = 0.0
    """When `b` changed last."""
    heard_cpu_s: float = 0.0
    """CPU time that it had used by then."""
    moved_cpu_s: float = 0.0
    said: bytes = b""
    """Payload of the last heartbeat, unread."""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def name(self) -> str:
        """Its role, for people."""
        return role_name(self.role)

    def hears(self, message: Message) -> None:
        """Notes READY or HEARTBEAT."""
        now_s = time.monotonic()
        self.heard_cpu_s = self.cpu_s()
        if message.b != self.b or not self.heard_s or message.code:
            self.moved_s, self.moved_cpu_s = now_s, self.heard_cpu_s
        self.heard_s, self.a, self.b, self.code = now_s, message.a, message.b, message.code
        self.said = message.payload

    def tell(self, message: Message) -> bool:
        """Sends; False when it cannot take it. A dead child is noticed elsewhere."""
        try:
            return self.channel.send(message)
        except PeerError:
            return False

    def kill(self) -> None:
        """Ends it at once."""
        self.process.send_signal(signal.SIGKILL)

    def cpu_s(self) -> float:
        """CPU time that it has used; 0 when it is gone."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS

    def hung(self, hang_timeout_s: float, *, in_flight: bool) -> str:
        """Why it counts as hung; empty when it does not."""
        now_s = time.monotonic()
        if not self.ready:
            return "did not become ready" if now_s - self.started_s > LOAD_TIMEOUT_S else ""
        limit_s = hang_timeout_s if self.role == control.ROLE_EVALUATOR else SILENCE_S
        if self._exceeded(now_s - self.heard_s, self.heard_cpu_s, limit_s):
            return f"said nothing for {now_s - self.heard_s:.0f} s"
        moved = self._exceeded(now_s - self.moved_s, self.moved_cpu_s, limit_s)
        if self.role == control.ROLE_EVALUATOR and in_flight and moved:
            return f"made no progress for {now_s - self.moved_s:.0f} s"
        return ""

    def _exceeded(self, passed_s: float, cpu_before_s: float, limit_s: float) -> bool:
        """Whether a limit is exceeded: by work, or by a multiple of it on a host that gives it no CPU."""
        if passed_s <= limit_s:
            return False
        return passed_s > limit_s * STARVED_FACTOR or self.cpu_s() - cpu_before_s > limit_s * WORKED_SHARE


def start(role: int, config_json: str) -> Child:
    """Starts a process of a role. Raises OSError."""
    ours, theirs = pair()
    command = [sys.executable, "-P", "-m", MODULES[control.Role.ValueType(role)]]
    command += ["--control-fd", str(theirs.fileno()), "--config", config_json]
    try:
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, process_group=0)
    finally:
        theirs.close()
    return Child(role, process, Channel(ours), os.pidfd_open(process.pid), time.monotonic())


@dataclass(eq=False, slots=True)
class Slot:
    """A place that is to be filled at all times."""

    role: int
    child: Child | None = None
    restarts: int = 0
    start_at_s: float = 0.0
    """Monotonic time from which it may be started again."""
    deaths: deque[float] = field(default_factory=lambda: deque(maxlen=16))

    def died(self) -> None:
        """Plans the restart: at once, later from the third death in a short time on."""
        now_s = time.monotonic()
        self.child = None
        self.restarts += 1
        self.deaths.append(now_s)
        recent = sum(now_s - at_s < DEATHS_WITHIN_S for at_s in self.deaths)
        in_row = max(0, recent - FREE_DEATHS)
        self.start_at_s = now_s + (min(MAX_BACKOFF_S, BACKOFF_S * 2**in_row) if in_row else 0.0)
