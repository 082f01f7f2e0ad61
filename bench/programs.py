"""Section `programs`: how long each eBPF program runs, and how often, in each storm, by the kernel's own count."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from bench import build, host, libbpf, storm
from bench.figures import Figures
from bench.storm import COUNTS, EVENTS

RUNS_SHOWN: Final = 0.01
"""A program that runs less often for one operation is none of the storm's."""

Spent = Mapping[str, tuple[float, float]]
"""By program: nanoseconds a run, and runs for one operation."""


def measure(*, quick: bool) -> Figures:
    """Each rung of the agent under each storm, the kernel's statistics on."""
    counts = {name: count // (10 if quick else 1) for name, count in COUNTS.items()}
    cpus = storm.watcher_cpus()
    workloads = build.workloads()
    rows: list[list[str]] = []
    for rung in EVENTS:
        with storm.watching(rung, cpus, None) as watcher:
            spent = {name: _spent(workloads, name, count, watcher) for name, count in counts.items()}
        rows += _rows(rung, spent)
    notes = [
        "a cell: nanoseconds a run × runs for one operation; the last row of a rung: nanoseconds for one operation",  # noqa: RUF001
        (
            f"programs with less than {RUNS_SHOWN} runs for an operation are left out; a program that is tail-called "
            "counts with the one that calls it"
        ),
        "the whole host's runs; the kernel's statistics are on meanwhile, which makes each run some 50 ns longer",
    ]
    return Figures("programs: the kernel's time in eBPF", ("agent", "program", *COUNTS), rows, notes)


def _spent(workloads: Path, name: str, count: int, watcher: storm.Watcher) -> Spent:
    statistics = libbpf.enable_run_time_statistics()
    try:
        before = _run_times(watcher.programs)
        storm.run(workloads, name, count, watcher)
        after = _run_times(watcher.programs)
    finally:
        os.close(statistics)
    found: dict[str, tuple[float, float]] = {}
    for number, (program, ns, runs) in after.items():
        _, ns_before, runs_before = before[number]
        if (runs - runs_before) / count >= RUNS_SHOWN:
            found[program] = ((ns - ns_before) / (runs - runs_before), (runs - runs_before) / count)
    return found


def _run_times(ours: frozenset[int]) -> dict[int, tuple[str, int, int]]:
    """By id: name, nanoseconds and runs so far."""
    return {
        program["id"]: (program.get("name", ""), program.get("run_time_ns", 0), program.get("run_cnt", 0))
        for program in host.programs()
        if program["id"] in ours
    }


def _rows(rung: str, spent: Mapping[str, Spent]) -> Iterator[list[str]]:
    """The dearest programs first."""
    totals = {name: sum(ns * runs for ns, runs in each.values()) for name, each in spent.items()}
    names = {program for each in spent.values() for program in each}
    cost = {name: sum(ns * runs for each in spent.values() for ns, runs in [each.get(name, (0, 0))]) for name in names}
    for program in sorted(names, key=lambda name: -cost[name]):
        yield [rung, program, *(_cell(each.get(program)) for each in spent.values())]
    yield [rung, "all", *(f"{total:.0f}" for total in totals.values())]


def _cell(spent: tuple[float, float] | None) -> str:
    if spent is None:
        return ""
    ns, runs = spent
    return f"{ns:.0f} × {runs:.0f}" if runs >= 10 else f"{ns:.0f} × {runs:.2g}"  # noqa: RUF001
