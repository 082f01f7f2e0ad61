"""One run of a workload, and who watches it: nobody, the agent with some of its events, or auditd."""

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.agent import AgentUnderTest
from bench.audit import Audit
from bench.figures import LeftOutError
from bench.host import busy_seconds

WORKLOAD_CPU: Final = 0
CATCH_UP_S: Final = 0.3
"""After a storm: who watches deals with what is still on its way."""
COUNTS: Final = {
    "exec": 3000,
    "spawn": 2000,
    "open_read": 200_000,
    "open_write": 200_000,
    "create_unlink": 20_000,
    "connect": 20_000,
    "udp": 60_000,
    "getppid": 2_000_000,
}
"""Operations of one run: a second or less with nobody watching."""
NOBODY: Final = "no agent"
AUDITD: Final = "auditd"
EVENTS: Final = {"nothing wanted": (), "process only": ("process",), "everything": ("all",)}
"""`sensor.filters.events` of the agent's rungs."""


@dataclass(frozen=True, slots=True)
class Watcher:
    """Who watches: the CPU seconds that it took so far, and the ids of its eBPF programs."""

    cpu_seconds: Callable[[], float]
    programs: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a workload: CPU microseconds for one operation, and CPUs that neighbours kept busy meanwhile."""

    cpu: float
    watcher_cpu: float
    neighbours: float

    @property
    def both(self) -> float:
        """Workload and watcher."""
        return self.cpu + self.watcher_cpu


def watcher_cpus() -> list[int]:
    """Where who watches may run: everywhere but beside the workload, if there is more than one CPU."""
    allowed = os.sched_getaffinity(0)
    return sorted(allowed - {WORKLOAD_CPU} or allowed)


@contextmanager
def watching(name: str, cpus: Sequence[int], audit: Audit | None) -> Iterator[Watcher]:
    """Who watches, on these CPUs. Raises LeftOutError when it cannot run here."""
    if name == NOBODY:
        yield Watcher(lambda: 0.0)
    elif name in EVENTS:
        with AgentUnderTest(cpus, EVENTS[name]) as agent:
            yield Watcher(agent.cpu_seconds, frozenset(agent.programs()))
    elif audit is not None:
        with audit.running(cpus) as daemon:
            yield Watcher(daemon.cpu_seconds)


def run(workloads: Path, name: str, count: int, watcher: Watcher) -> Run:
    """Runs a workload once. Raises LeftOutError when it fails."""
    begin, busy, watched = time.monotonic(), busy_seconds(), watcher.cpu_seconds()
    cpu = act(workloads, name, count)[1]
    time.sleep(CATCH_UP_S)
    watched = watcher.cpu_seconds() - watched
    neighbours = (busy_seconds() - busy - cpu - watched) / (time.monotonic() - begin)
    return Run(1e6 * cpu / count, 1e6 * watched / count, neighbours)


def act(workloads: Path, name: str, count: int) -> tuple[int, float]:
    """Runs a workload; its pid and its CPU seconds. Raises LeftOutError when it fails."""
    command = [str(workloads), name, str(count), str(WORKLOAD_CPU)]
    with tempfile.TemporaryDirectory(prefix="tocsin-bench-") as folder:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder)
        out, said = process.communicate()
    if process.returncode:
        raise LeftOutError(f"the workload {name} failed: {said.strip()}")
    return process.pid, float(out)
