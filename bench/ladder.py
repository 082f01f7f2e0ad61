"""Section `ladder`: what each storm costs with nobody watching, with ever more of the agent, and with auditd."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles
from typing import Final

from bench import build, storm
from bench.audit import Audit
from bench.figures import Figures, LeftOutError
from bench.host import others_attached, settled
from bench.storm import AUDITD, COUNTS, EVENTS, NOBODY, Run

GOALS: Final = {"nothing wanted": 1.05, "process only": 1.03}
"""Most that the workload's CPU time may grow to."""
NEIGHBOURS_MAX: Final = 0.3
"""CPUs that others may keep busy while a storm is measured."""
TRIES: Final = 3
COLUMNS = (
    "storm",
    "watched by",
    "CPU µs/op",
    "ratio",
    "middle half",
    "watcher µs/op",
    "both : no agent",
    "goal",
    "kept",
)

Round = Mapping[tuple[str, str], Run]
"""By rung and storm; those are missing that could not be measured."""


def measure(*, quick: bool) -> Figures:
    """Rounds through all the rungs, each round beginning with another one."""
    wanted = 3 if quick else 8
    cpus = storm.watcher_cpus()
    workloads = build.workloads()
    failed: set[str] = set()
    with ExitStack() as stack:
        audit, absent = _audit(stack)
        rungs = [NOBODY, *EVENTS, *([AUDITD] if audit else [])]
        rounds = [*_rounds(rungs, wanted, lambda rung: _rung(workloads, rung, cpus, audit, failed))]
    if not any(rounds):
        raise LeftOutError(f"no storm could be measured: {'; '.join(failed)}")
    disturbed = sum(run.neighbours > NEIGHBOURS_MAX for each in rounds for run in each.values())
    notes = [
        f"{len(rounds)} rounds, medians of the ratios within a round; operations a run: {COUNTS}",
        *(f"runs are missing in some rounds: {reason}" for reason in sorted(failed)),
        (
            f"a run is repeated up to {TRIES} times when neighbours keep more than {NEIGHBOURS_MAX} CPUs busy; "
            f"{disturbed} of {sum(map(len, rounds))} runs are disturbed all the same"
        ),
        f"the workload is pinned to CPU {storm.WORKLOAD_CPU}, who watches to {cpus}; nobody subscribes",
        (
            "CPU: the workload and what the kernel does in its name, eBPF programs and audit records included; "
            "watcher: all the agent's processes, or auditd and kauditd"
        ),
        *([f"auditd is left out: {absent}"] if absent else []),
    ]
    rows = [row for name in COUNTS for row in _rows(name, rungs, rounds)]
    return Figures("ladder: storms, and who watches them", COLUMNS, rows, notes)


def _audit(stack: ExitStack) -> tuple[Audit | None, str]:
    try:
        return stack.enter_context(Audit()), ""
    except LeftOutError as reason:
        return None, str(reason)


def _rounds(rungs: Sequence[str], wanted: int, measured: Callable[[str], Mapping[str, Run]]) -> Iterator[Round]:
    """As many complete rounds as are wanted, up to as many again while runs are missing; ends with an empty one."""
    complete = 0
    for turn in range(2 * wanted):
        if complete == wanted:
            return
        at = turn % len(rungs)
        found = {(rung, name): run for rung in (*rungs[at:], *rungs[:at]) for name, run in measured(rung).items()}
        if not found:
            return
        complete += len(found) == len(rungs) * len(COUNTS)
        yield found


def _rung(workloads: Path, rung: str, cpus: Sequence[int], audit: Audit | None, failed: set[str]) -> dict[str, Run]:
    """Every storm once, up to the first that cannot be measured; the reason for that goes into `failed`."""
    runs: dict[str, Run] = {}
    try:
        with storm.watching(rung, cpus, audit) as watcher:
            for name in COUNTS:
                runs[name] = _quiet_run(workloads, name, watcher)
    except LeftOutError as reason:
        failed.add(f"{rung}: {reason}")
    return runs


def _quiet_run(workloads: Path, name: str, watcher: storm.Watcher) -> Run:
    """A run without neighbours, or the least disturbed of TRIES. Raises LeftOutError."""
    tried: list[Run] = []
    for _ in range(TRIES):
        if not settled(watcher.programs):
            continue
        storm.run(workloads, name, COUNTS[name] // 10, watcher)  # warms caches
        run = storm.run(workloads, name, COUNTS[name], watcher)
        if others_attached(watcher.programs):
            continue
        tried.append(run)
        if run.neighbours <= NEIGHBOURS_MAX:
            break
    if not tried:
        raise LeftOutError("another agent's eBPF programs were attached")
    return min(tried, key=lambda run: run.neighbours)


def _rows(name: str, rungs: Sequence[str], rounds: Sequence[Round]) -> Iterator[list[str | float]]:
    """The rungs of one storm."""
    ratios: dict[str, list[float]] = {}
    both: dict[str, list[float]] = {}
    for rung in rungs:
        pairs = [(each[NOBODY, name], each[rung, name]) for each in rounds if {(NOBODY, name), (rung, name)} <= {*each}]
        if not pairs:
            yield [name, rung, "in no round", *[""] * (len(COLUMNS) - 3)]
            continue
        ratios[rung] = [run.cpu / base.cpu for base, run in pairs]
        both[rung] = [run.both / base.both for base, run in pairs]
    for rung, measured in ratios.items():
        runs = [each[rung, name] for each in rounds if (rung, name) in each]
        yield [
            name,
            rung,
            median(run.cpu for run in runs),
            f"{median(measured):.3f}",
            _middle_half(measured),
            median(run.watcher_cpu for run in runs),
            f"{median(both[rung]):.3f}",
            *_judged(rung, ratios, both),
        ]


def _middle_half(values: Sequence[float]) -> str:
    if len(values) < 2:
        return ""
    low, _, high = quantiles(values, n=4, method="inclusive")
    return f"{low:.3f} to {high:.3f}"


def _judged(rung: str, ratios: Mapping[str, list[float]], both: Mapping[str, list[float]]) -> tuple[str, str]:
    """The goal, and whether it is kept."""
    if rung in GOALS:
        return f"at most {GOALS[rung]}", "yes" if median(ratios[rung]) <= GOALS[rung] else "no"
    if rung != "everything" or AUDITD not in ratios:
        return "", ""
    kept = [median(each[rung]) < median(each[AUDITD]) for each in (ratios, both)]
    words = {(True, True): "yes", (True, False): "CPU yes, both no", (False, True): "CPU no, both yes"}
    return "below auditd", words.get((kept[0], kept[1]), "no")
