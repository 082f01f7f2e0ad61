"""Section `overhead`: what starting programs and connecting cost with the agent running, against without."""

import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench import build, libbpf
from bench.agent import AgentUnderTest
from bench.figures import Figures, LeftOutError
from bench.timing import ratio

GOALS: Final = {"exec": "at most 1.05", "spawn": "at most 1.05"}
COUNTS: Final = {"exec": 3000, "spawn": 2000, "connect": 20_000, "syscall": 1_000_000}
WORKLOAD_CPU: Final = 0
SETTLE_S: Final = 3.0
COLUMNS = (
    "workload",
    "CPU µs/op without",
    "CPU µs/op with",
    "CPU with : without",
    "wall with : without",
    "goal",
    "eBPF µs/op",
    "agent CPU µs/op",
)


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a workload: microseconds for one operation."""

    wall: float
    cpu: float
    agent_cpu: float = 0.0


def measure(*, quick: bool) -> Figures:
    """Pairs with and without the agent, in turns."""
    workloads = build.workloads()
    rounds = 4 if quick else 12
    cpus = sorted(os.sched_getaffinity(0) - {WORKLOAD_CPU})
    without: dict[str, list[Run]] = {name: [] for name in COUNTS}
    with_agent: dict[str, list[Run]] = {name: [] for name in COUNTS}
    thrown_away = 0
    for turn in itertools.count():
        if len(without["exec"]) == rounds:
            break
        pair = measure_pair(workloads, cpus, agent_first=bool(turn % 2))
        if pair is None:
            thrown_away += 1
            if thrown_away > 2 * rounds:
                raise LeftOutError("another agent's eBPF programs are attached all the time: end it")
            continue
        for name in COUNTS:
            without[name].append(pair[0][name])
            with_agent[name].append(pair[1][name])
    kernel = {name: kernel_time(workloads, name, cpus) for name in COUNTS}
    found = [_row(name, without[name], with_agent[name], kernel[name]) for name in COUNTS]
    notes = [
        f"{rounds} pairs, medians of each pair's ratio; operations a run: {COUNTS}",
        f"{thrown_away} pairs thrown away because another agent's eBPF programs were attached",
        f"the workload is pinned to CPU {WORKLOAD_CPU}, the agent to the others ({len(cpus)})",
        "eBPF µs/op: the whole host's, measured apart with the kernel's statistics on, which makes programs slower",
        *(f"{name}: {programs(kernel[name])} runs an operation" for name in COUNTS),
        "exec: fork, exec of a small static program, its end; spawn: the same by posix_spawn (130 system calls more)",
        "connect: connect, accept, two closes over loopback; syscall: getppid",
    ]
    return Figures("overhead: workloads with the agent against without", COLUMNS, found, notes)


def measure_pair(
    workloads: Path, cpus: Sequence[int], *, agent_first: bool
) -> tuple[dict[str, Run], dict[str, Run]] | None:
    """Every workload without the agent and with it; None when another agent's programs were attached meanwhile."""
    found: dict[bool, dict[str, Run]] = {}
    for agent_runs in (agent_first, not agent_first):
        if agent_runs:
            _settled()
            with AgentUnderTest(cpus) as agent:
                ours = agent.programs()
                found[True] = _run_all(workloads, agent)
                disturbed = _others(ours)
        else:
            disturbed = not _settled()
            found[False] = _run_all(workloads, None)
            disturbed |= _others(set())
        if disturbed:
            return None
    return found[False], found[True]


def _run_all(workloads: Path, agent: AgentUnderTest | None) -> dict[str, Run]:
    found: dict[str, Run] = {}
    for name, count in COUNTS.items():
        _one(workloads, name, count // 10, None)  # warms caches
        found[name] = _one(workloads, name, count, agent)
    return found


def _settled() -> bool:
    """Waits until nobody's programs are attached: the kernel frees those of an agent that has ended a little later."""
    deadline = time.monotonic() + SETTLE_S
    while _others(set()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _others(ours: set[int]) -> bool:
    """Whether programs like ours are attached that are not ours."""
    if shutil.which("bpftool") is None:
        return False
    return any(program["id"] not in ours and program.get("name") == "on_exec" for program in _listed())


def _one(workloads: Path, name: str, count: int, agent: AgentUnderTest | None) -> Run:
    before = _agent_seconds(agent)
    done = subprocess.run([workloads, name, str(count), str(WORKLOAD_CPU)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LeftOutError(f"the workload {name} failed: {done.stderr.strip()}")
    wall, cpu = map(float, done.stdout.split())
    return Run(*(1e6 * seconds / count for seconds in (wall, cpu, _agent_seconds(agent) - before)))


def _agent_seconds(agent: AgentUnderTest | None) -> float:
    return sum(cpu.seconds for cpu in agent.cpu().values()) if agent else 0.0


def kernel_time(workloads: Path, name: str, cpus: Sequence[int]) -> dict[str, tuple[float, float]]:
    """For each program: nanoseconds a run, and runs for one operation, those of the rest of the host included."""
    if shutil.which("bpftool") is None:
        return {}
    with AgentUnderTest(cpus) as agent:
        ours = agent.programs()
        statistics = libbpf.enable_run_time_statistics()
        try:
            before = _run_times(ours)
            _one(workloads, name, COUNTS[name], None)
            after = _run_times(ours)
        finally:
            os.close(statistics)
    spent = {key: (after[key][0] - before[key][0], after[key][1] - before[key][1]) for key in before}
    return {program: (ns / runs, runs / COUNTS[name]) for (_, program), (ns, runs) in spent.items() if runs and ns}


def _run_times(ours: set[int]) -> dict[tuple[int, str], tuple[int, int]]:
    return {
        (program["id"], program.get("name", "")): (program.get("run_time_ns", 0), program.get("run_cnt", 0))
        for program in _listed()
        if program["id"] in ours
    }


def _listed() -> list[dict[str, Any]]:
    """Every eBPF program of the host."""
    done = subprocess.run(["bpftool", "-j", "prog", "show"], capture_output=True, check=True)
    listed: list[dict[str, Any]] = json.loads(done.stdout)
    return listed


def programs(spent: dict[str, tuple[float, float]]) -> str:
    """The dearest first."""
    ordered = sorted(spent.items(), key=lambda item: -item[1][0] * item[1][1])
    return ", ".join(f"{name} {ns:.0f} ns × {runs:.3g}" for name, (ns, runs) in ordered) or "bpftool is missing"  # noqa: RUF001


def _row(
    name: str, without: list[Run], with_agent: list[Run], kernel: dict[str, tuple[float, float]]
) -> list[str | float]:
    cpu = ratio([run.cpu for run in with_agent], [run.cpu for run in without])
    wall = ratio([run.wall for run in with_agent], [run.wall for run in without])
    return [
        name,
        median(run.cpu for run in without),
        median(run.cpu for run in with_agent),
        f"{cpu:.3f}",
        f"{wall:.3f}",
        GOALS.get(name, ""),
        sum(ns * runs for ns, runs in kernel.values()) / 1000 or "?",
        median(run.agent_cpu for run in with_agent),
    ]
