"""Section `storms`: many acts at full speed; each is received, or counted as lost. The agent first, then auditd."""

import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import build, storm
from bench.agent import AgentUnderTest
from bench.audit import Audit
from bench.figures import Figures, LeftOutError

from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.api.event.v1 import batch_pb2, event_pb2
from tocsin.cli.agent import connected
from tocsin.errors import TocsinError

ACTS: Final = 50_000
FENCE_S: Final = 2.0
"""An act that has not come for so long is tried again: it may be among the lost."""
TIMEOUT_S: Final = 300.0
NEWEST: Final = 100
"""Messages in which a fence is looked for."""
COLUMNS = (
    "storm",
    "watched by",
    "acts",
    "received",
    "not received",
    "counted lost",
    "accounted for",
    "workload CPU s",
    "watcher CPU s",
    "watcher µs/act",
)


Row = list[str | float]


@dataclass(frozen=True, slots=True)
class Kind:
    """A storm, and what tells of its acts."""

    workload: str
    event: event_pb2.EventType.ValueType
    syscall: str
    by_children: bool = False
    """The acts are those of the workload's children, not its own."""


KINDS: Final = {
    "exec": Kind("exec", event_pb2.EVENT_TYPE_EXEC, "execve", by_children=True),
    "unlink": Kind("create_unlink", event_pb2.EVENT_TYPE_FILE_DELETE, "unlink"),
    "connect": Kind("connect", event_pb2.EVENT_TYPE_TCP_CONNECT, "connect"),
}


class Received:
    """What a subscriber was sent since the last look; it is read while it comes and understood afterwards."""

    def __init__(self, socket: Path) -> None:
        self._messages: list[bytes] = []
        self._socket = socket
        threading.Thread(target=self._read, daemon=True).start()

    def holds(self, mark: bytes) -> bool:
        """Whether one of the newest messages has these bytes."""
        return any(mark in each for each in self._messages[-NEWEST:])

    def take(self) -> Iterator[control.SubscribeResponse]:
        """Everything up to now since the last call; one by one, for all at once would take much memory."""
        taken, self._messages = self._messages, []
        return map(control.SubscribeResponse.FromString, taken)

    def _read(self) -> None:
        try:
            with connected(self._socket) as agent:
                for serialised in agent.subscribe(control.SubscribeRequest(events=True), None):
                    self._messages.append(serialised)
        except TocsinError:
            return  # the agent has ended


class Balance:
    """What the kernel side generated and counted as lost, against what came, over all types."""

    def __init__(self) -> None:
        self._headers: list[batch_pb2.BatchHeader] = []
        self._events = 0

    def add(self, header: batch_pb2.BatchHeader) -> None:
        """Behind the first batch counting begins."""
        if header.counters:
            self._events += header.event_count if self._headers else 0
            self._headers = [*self._headers[:1], header]

    def __str__(self) -> str:
        first, last = (_generated_and_lost(header) for header in (self._headers[0], self._headers[-1]))
        generated, lost = last[0] - first[0], last[1] - first[1]
        return f"{generated} events generated, {self._events} received, {lost} counted lost"


def measure(*, quick: bool) -> Figures:
    """Each storm under the agent, then under auditd."""
    acts = ACTS // 25 if quick else ACTS
    cpus = storm.watcher_cpus()
    workloads = build.workloads()
    rows, balance = _under_the_agent(workloads, acts, cpus)
    try:
        rows += _under_auditd(workloads, acts, cpus)
        absent = []
    except LeftOutError as reason:
        absent = [f"auditd is left out: {reason}"]
    notes = [
        (
            f"Tocsin tells everything and has a subscriber; of all types and processes: {balance} "
            "(the counters are read after the ring: what comes in between is generated and not yet received)"
        ),
        (
            "counted lost, Tocsin: events of this type or of none, other processes' included; "
            "auditd: records that the kernel lost, several of which make an act. Where audit is not on from the boot, "
            "records that auditd does not take in time go to the kernel's log instead and are not counted"
        ),
        (
            "watcher: all the agent's processes, or auditd and kauditd, until the last act had come; "
            "not the subscriber, nor eBPF programs and records made in the workload's own time"
        ),
        f"the workload is pinned to CPU {storm.WORKLOAD_CPU}, who watches to {cpus}",
        *absent,
    ]
    return Figures(f"storms: {acts} acts each at full speed", COLUMNS, sorted(rows, key=lambda row: row[0]), notes)


def _under_the_agent(workloads: Path, acts: int, cpus: Sequence[int]) -> tuple[list[Row], str]:
    rows: list[Row] = []
    balance = Balance()
    with AgentUnderTest(cpus) as agent:
        received = Received(agent.socket)
        for name, kind in KINDS.items():
            _fence(workloads, received.holds)
            for message in received.take():
                balance.add(message.batch.header)
            before = agent.cpu_seconds()
            pid, workload_cpu = storm.act(workloads, kind.workload, acts)
            _fence(workloads, received.holds)
            took = agent.cpu_seconds() - before
            seen = lost = 0
            for message in received.take():
                balance.add(message.batch.header)
                seen += sum(_is_act(event, kind, pid) for event in message.batch.events)
                lost += sum(loss.count for loss in _losses(message) if loss.event_type in (kind.event, 0))
            rows.append([name, "Tocsin", *_accounted(acts, seen, lost), *_cpu(acts, workload_cpu, took)])
        return rows, f"{balance}, {agent.replaced()} processes of the agent replaced"


def _under_auditd(workloads: Path, acts: int, cpus: Sequence[int]) -> list[Row]:
    """Raises LeftOutError when auditd cannot be measured here."""
    rows: list[Row] = []
    with Audit() as audit:
        for name, kind in KINDS.items():
            with audit.running(cpus) as daemon:
                before = daemon.cpu_seconds()
                pid, workload_cpu = storm.act(workloads, kind.workload, acts)
                _fence(workloads, daemon.wrote)
                took = daemon.cpu_seconds() - before
                seen = daemon.recorded(kind.syscall, "ppid" if kind.by_children else "pid", pid)
                cpu = _cpu(acts, workload_cpu, took)
                rows.append([name, "auditd", *_accounted(acts, seen, daemon.lost()), *cpu])
    return rows


def _fence(workloads: Path, came: Callable[[bytes], bool]) -> None:
    """Waits until an act that is done now has come, and with it all that was done before. Raises LeftOutError."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        mark = f"fence-{time.monotonic_ns()}"
        subprocess.run([workloads, "nothing", mark], check=True)
        again = time.monotonic() + FENCE_S
        while time.monotonic() < again:
            if came(mark.encode()):
                return
            time.sleep(0.02)
    raise LeftOutError(f"an act of the bench itself did not come within {TIMEOUT_S:.0f} s")


def _is_act(event: event_pb2.Event, kind: Kind, pid: int) -> bool:
    actor = event.parent if kind.by_children else event.process
    return event.type == kind.event and actor.pid == pid


def _losses(message: control.SubscribeResponse) -> Iterator[event_pb2.Loss]:
    """Of the ring, of the limits, and of this subscription."""
    if message.HasField("loss"):
        yield message.loss
    for event in message.batch.events:
        if event.HasField("loss"):
            yield event.loss
        elif event.HasField("throttled"):
            yield event.throttled


def _generated_and_lost(header: batch_pb2.BatchHeader) -> tuple[int, int]:
    lost = sum(loss.count for counter in header.counters for loss in counter.lost)
    return sum(counter.generated for counter in header.counters), lost


def _accounted(acts: int, seen: int, lost: int) -> list[str | float]:
    """Acts, received, not received, counted lost, and whether that covers what was not received."""
    return [acts, seen, acts - seen, lost, "yes" if 0 <= acts - seen <= lost else "NO"]


def _cpu(acts: int, workload: float, watcher: float) -> list[str | float]:
    return [workload, watcher, 1e6 * watcher / acts]
