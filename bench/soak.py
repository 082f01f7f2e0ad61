"""Section `soak`: does memory grow while programs start and end, connect, and make files for a long time?"""

import math
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import linear_regression, mean
from typing import Any, Final

from bench import build, host, libbpf, storm
from bench.agent import AgentUnderTest
from bench.figures import Figures

MINUTES: Final = float(os.environ.get("SOAK_MINUTES", "30"))
SAMPLE_S: Final = 5.0
WARM_UP: Final = 1 / 6
"""Of the time; caches fill meanwhile, so it is no part of a slope."""
CHURN: Final = {"exec": 50, "connect": 50, "udp": 50, "create_unlink": 50}
"""Acts of a round."""
PAUSE_S: Final = 0.2
COUNT_EVERY: Final = 12
"""Entries of the kernel's tables are counted with every twelfth sample: it takes longer than to look at memory."""
CONFIDENCE: Final = 1.96
"""Standard errors on each side that hold 95 % of a normal distribution."""
COLUMNS = ("what", "first", "last", "most", "bound", "KB/min", "95 %")

Row = list[str | float]


@dataclass(slots=True)
class Samples:
    """What was seen so far; KB by what holds them."""

    minutes: list[float] = field(default_factory=list)
    memory: list[dict[str, float]] = field(default_factory=list)
    entries: dict[str, list[int]] = field(default_factory=dict)
    missed: int = 0
    """Looks at a process that was gone."""
    """By the kernel's table."""
    bounds: dict[str, int] = field(default_factory=dict)
    """Entries that each table holds at most."""


def measure(*, quick: bool) -> Figures:
    """Samples memory during the churn; `quick`: for one minute."""
    minutes = 1.0 if quick else MINUTES
    samples = Samples()
    with AgentUnderTest() as agent, tempfile.TemporaryDirectory(prefix="tocsin-bench-") as folder:
        rounds = _watch_churn(agent, Path(folder), samples, minutes)
        status, replaced = agent.status(), agent.replaced()
    lost = sum(loss.count for counter in status.counters for loss in counter.lost)
    notes = [
        (
            f"{rounds} rounds of {CHURN} and of one exec of a program that was never seen before; "
            f"{status.events_evaluated} events evaluated, {lost} counted lost, {replaced} processes replaced"
        ),
        f"a sample each {SAMPLE_S:g} s; the first sixth is left out, for caches fill in it",
        (
            "PSS: memory with shared pages divided among those who share them; slope: least squares, "
            "95 % as if samples were independent, which they are not quite"
        ),
        f"{samples.missed} looks at a process that was gone",
        f"entries are counted with every {COUNT_EVERY}th sample; tables whose entries cannot be listed are left out",
    ]
    return Figures(
        f"soak: {minutes:g} minutes of churn", COLUMNS, [*_memory_rows(samples), *_table_rows(samples)], notes
    )


def _watch_churn(agent: AgentUnderTest, folder: Path, samples: Samples, minutes: float) -> int:
    """Keeps the host busy and samples; rounds of churn."""
    workloads = build.workloads()
    begin = time.monotonic()
    rounds = 0
    while (now := time.monotonic() - begin) < 60 * minutes:
        if now >= len(samples.minutes) * SAMPLE_S:
            try:
                _sample(agent, samples, now / 60)
            except OSError:  # a process of the agent has just been replaced: the next round looks again
                samples.missed += 1
        _churn(workloads, folder, rounds)
        rounds += 1
        time.sleep(PAUSE_S)
    return rounds


def _churn(workloads: Path, folder: Path, number: int) -> None:
    for name, count in CHURN.items():
        storm.act(workloads, name, count)
    unseen = folder / f"program-{number}"
    shutil.copy(workloads, unseen)
    storm.act(unseen, "getppid", 1)
    unseen.unlink()


def _sample(agent: AgentUnderTest, samples: Samples, minute: float) -> None:
    agent.refresh()
    tables = _tables(agent.programs())
    held: dict[str, float] = {}
    for role, pid in agent.pids.items():
        held[f"{role}: PSS KB"], held[f"{role}: RSS KB"] = _process_memory(pid)
    held["kernel tables: KB"] = sum(table["bytes_memlock"] for table in tables) / 1024
    if len(samples.minutes) % COUNT_EVERY == 0:
        for table in tables:
            if (count := libbpf.entries(table["id"])) is not None:
                samples.entries.setdefault(table["name"], []).append(count)
                samples.bounds[table["name"]] = table["max_entries"]
    samples.minutes.append(minute)
    samples.memory.append(held)


def _tables(programs: set[int]) -> list[dict[str, Any]]:
    """The maps that programs use, as bpftool describes them."""
    used = {number for each in host.programs() if each["id"] in programs for number in each.get("map_ids", [])}
    return [each for each in host.bpftool("map", "show") if each["id"] in used]


def _process_memory(pid: int) -> tuple[float, float]:
    """PSS and RSS in KB. Raises OSError when it is gone."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    values = {name: float(value.split()[0]) for name, value in (line.split(":", 1) for line in lines)}
    return values["Pss"], values["Rss"]


def _memory_rows(samples: Samples) -> list[Row]:
    warm = int(len(samples.minutes) * WARM_UP)
    minutes = samples.minutes[warm:]
    rows: list[Row] = []
    for name in samples.memory[0]:
        values = [held[name] for held in samples.memory[warm:]]
        slope, error = trend(minutes, values)
        range_of_slope = f"{slope - CONFIDENCE * error:.1f} to {slope + CONFIDENCE * error:.1f}"
        rows.append([name, values[0], values[-1], max(values), "", f"{slope:.1f}", range_of_slope])
    return rows


def _table_rows(samples: Samples) -> list[Row]:
    return [
        [f"table {name}: entries", counts[0], counts[-1], max(counts), samples.bounds[name], "", ""]
        for name, counts in sorted(samples.entries.items())
    ]


def trend(at: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """The slope of the line through the values, and its standard error; of at least three."""
    slope, start = linear_regression(at, values)
    apart = sum((value - start - slope * x) ** 2 for x, value in zip(at, values, strict=True))
    return slope, math.sqrt(apart / (len(at) - 2) / sum((x - mean(at)) ** 2 for x in at))
