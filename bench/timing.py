"""What a measurement is made of: CPU time, medians, and pairs taken side by side.

The machine may be shared, so nothing here is an absolute claim: two things are
measured in turns, and their ratio is taken for each turn before the median.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU seconds of a process with all its threads."""

    user: float = 0.0
    system: float = 0.0

    def __add__(self, other: "Cpu") -> "Cpu":
        return Cpu(self.user + other.user, self.system + other.system)

    def __sub__(self, other: "Cpu") -> "Cpu":
        return Cpu(self.user - other.user, self.system - other.system)

    @property
    def seconds(self) -> float:
        """Both."""
        return self.user + self.system


def cpu_of(pid: int) -> Cpu:
    """What a process took so far. Raises OSError when it is gone."""
    return _cpu_at(pid, 11)


def cpu_of_ended_children(pid: int) -> Cpu:
    """What those children of a process took that have ended. Raises OSError when the process is gone."""
    return _cpu_at(pid, 13)


def _cpu_at(pid: int, first: int) -> Cpu:
    """Two fields of /proc/PID/stat, counted from behind the name."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()
    return Cpu(int(fields[first]) / TICKS_A_SECOND, int(fields[first + 1]) / TICKS_A_SECOND)


def in_turns(
    work: Mapping[str, Callable[[], int]], seconds: float, rounds: int
) -> dict[str, tuple[float, list[float]]]:
    """CPU seconds for one unit of each kind of work: the median, and each round's.

    `work` runs once and gives the number of units done; it is repeated for `seconds` a round.
    """
    taken: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds):
        names = list(work)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            taken[name].append(unit_seconds(work[name], seconds))
    return {name: (median(each), each) for name, each in taken.items()}


def unit_seconds(work: Callable[[], int], seconds: float) -> float:
    """CPU seconds of this process for one unit of work."""
    units, begin = 0, time.process_time()
    while (taken := time.process_time() - begin) < seconds:
        units += work()
    return taken / units


def ratio(over: list[float], under: list[float]) -> float:
    """The median of the ratios of pairs that were measured in the same round."""
    return median(a / b for a, b in zip(over, under, strict=True))
