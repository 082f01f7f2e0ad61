"""Section `overhead`: what starting programs and connecting cost with the agent running, against without."""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from bench import build, libbpf
from bench.agent import AgentUnderTest
from bench.figures import Figures, LeftOutError
from bench.timing import ratio

GOALS: Final = {"exec": "at most 1.05", "connect": ""}
COUNTS: Final = {"exec": 3000, "connect": 20_000}
WORKLOAD_CPU: Final = 0
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
    for turn in range(rounds):
        order = (False, True) if turn % 2 else (True, False)
        for agent_runs in order:
            if agent_runs:
                with AgentUnderTest(cpus) as agent:
                    _run_all(workloads, with_agent, agent)
            else:
                _run_all(workloads, without, None)
    kernel = {name: kernel_microseconds(workloads, name, cpus) for name in COUNTS}
    found = [_row(name, without[name], with_agent[name], kernel[name]) for name in COUNTS]
    notes = [
        (
            f"{rounds} pairs, medians of each pair's ratio; "
            f"{COUNTS['exec']} programs, {COUNTS['connect']} connections a run"
        ),
        f"the workload is pinned to CPU {WORKLOAD_CPU}, the agent to the others ({len(cpus)})",
        "eBPF µs/op is measured apart, with the kernel's statistics on, which makes programs slower: "
        + "; ".join(f"{name}: {programs(kernel[name])}" for name in COUNTS),
        "exec: posix_spawn of a static program, and its end; connect: connect, accept, two closes over loopback",
    ]
    return Figures("overhead: workloads with the agent against without", COLUMNS, found, notes)


def _run_all(workloads: Path, into: dict[str, list[Run]], agent: AgentUnderTest | None) -> None:
    for name, runs in into.items():
        _one(workloads, name, COUNTS[name] // 10, None)  # warms caches
        runs.append(_one(workloads, name, COUNTS[name], agent))


def _one(workloads: Path, name: str, count: int, agent: AgentUnderTest | None) -> Run:
    before = _agent_seconds(agent)
    done = subprocess.run([workloads, name, str(count), str(WORKLOAD_CPU)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LeftOutError(f"the workload {name} failed: {done.stderr.strip()}")
    wall, cpu = map(float, done.stdout.split())
    return Run(*(1e6 * seconds / count for seconds in (wall, cpu, _agent_seconds(agent) - before)))


def _agent_seconds(agent: AgentUnderTest | None) -> float:
    return sum(cpu.seconds for cpu in agent.cpu().values()) if agent else 0.0


def kernel_microseconds(workloads: Path, name: str, cpus: Sequence[int]) -> dict[str, tuple[float, float]]:
    """For each program: microseconds an operation, and nanoseconds a run."""
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
    return {program: (ns / 1000 / COUNTS[name], ns / runs) for (_, program), (ns, runs) in spent.items() if runs and ns}


def _run_times(ours: set[int]) -> dict[tuple[int, str], tuple[int, int]]:
    listed = json.loads(subprocess.run(["bpftool", "-j", "prog", "show"], capture_output=True, check=True).stdout)
    return {
        (program["id"], program.get("name", "")): (program.get("run_time_ns", 0), program.get("run_cnt", 0))
        for program in listed
        if program["id"] in ours
    }


def programs(spent: dict[str, tuple[float, float]]) -> str:
    """The dearest first."""
    ordered = sorted(spent.items(), key=lambda item: -item[1][0])
    return ", ".join(f"{name} {ns:.0f} ns a run" for name, (_, ns) in ordered if ns) or "bpftool is missing"


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
        GOALS[name],
        sum(micros for micros, _ in kernel.values()) or "?",
        median(run.agent_cpu for run in with_agent),
    ]
