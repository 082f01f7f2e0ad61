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

Rung = Mapping[str, Run]
"""A run of each storm."""


def measure(*, quick: bool) -> Figures:
    """Rounds through all the rungs, each round beginning with another one."""
    wanted = 3 if quick else 8
    cpus = storm.watcher_cpus()
    workloads = build.workloads()
    with ExitStack() as stack:
        audit, absent = _audit(stack)
        rungs = [NOBODY, *EVENTS, *([AUDITD] if audit else [])]
        failed: set[str] = set()
        measured = _rounds(rungs, wanted, lambda rung: _rung(workloads, rung, cpus, audit, failed))
        rounds = [each for each in measured if NOBODY in each]
    if not rounds:
        raise LeftOutError(f"no round could be measured: {'; '.join(failed)}")
    pairs = {rung: [(each[NOBODY], each[rung]) for each in rounds if rung in each] for rung in rungs}
    counted = ", ".join(f"{rung} {len(each)}" for rung, each in pairs.items())
    runs = sum(map(len, pairs.values())) * len(COUNTS)
    notes = [
        f"medians of the ratios within a round; rounds: {counted}; operations a run: {COUNTS}",
        *(f"a rung was left out of a round: {reason}" for reason in sorted(failed)),
        (
            f"a run is repeated up to {TRIES} times when neighbours keep more than {NEIGHBOURS_MAX} CPUs busy; "
            f"{_disturbed(pairs)} of {runs} runs are disturbed all the same"
        ),
        f"the workload is pinned to CPU {storm.WORKLOAD_CPU}, who watches to {cpus}; nobody subscribes",
        (
            "CPU: the workload and what the kernel does in its name, eBPF programs and audit records included; "
            "watcher: all the agent's processes, or auditd and kauditd"
        ),
        *([f"auditd is left out: {absent}"] if absent else []),
    ]
    return Figures("ladder: storms, and who watches them", COLUMNS, [*_rows(pairs)], notes)


def _audit(stack: ExitStack) -> tuple[Audit | None, str]:
    try:
        return stack.enter_context(Audit()), ""
    except LeftOutError as reason:
        return None, str(reason)


def _rounds(rungs: Sequence[str], wanted: int, measured: Callable[[str], Rung | None]) -> Iterator[dict[str, Rung]]:
    """As many complete rounds as are wanted; up to as many again, while rungs fail in some."""
    complete = 0
    for turn in range(2 * wanted):
        if complete == wanted:
            return
        at = turn % len(rungs)
        found = {rung: runs for rung in (*rungs[at:], *rungs[:at]) if (runs := measured(rung))}
        complete += len(found) == len(rungs)
        yield found


def _rung(workloads: Path, name: str, cpus: Sequence[int], audit: Audit | None, failed: set[str]) -> Rung | None:
    """Every storm once; None, and the reason in `failed`, when that does not work or others disturb."""
    try:
        if settled():
            with storm.watching(name, cpus, audit) as watcher:
                runs = {each: _quiet_run(workloads, each, watcher) for each in COUNTS}
                if not others_attached(watcher.programs):
                    return runs
        failed.add("another agent's eBPF programs were attached")
    except LeftOutError as reason:
        failed.add(str(reason))
    return None


def _quiet_run(workloads: Path, name: str, watcher: storm.Watcher) -> Run:
    """A run without neighbours, or the least disturbed of TRIES."""
    storm.run(workloads, name, COUNTS[name] // 10, watcher)  # warms caches
    tried: list[Run] = []
    while len(tried) < TRIES and (not tried or tried[-1].neighbours > NEIGHBOURS_MAX):
        tried.append(storm.run(workloads, name, COUNTS[name], watcher))
    return min(tried, key=lambda run: run.neighbours)


Pairs = Mapping[str, Sequence[tuple[Rung, Rung]]]
"""By rung: with nobody watching, and with it, in the same round."""


def _disturbed(pairs: Pairs) -> int:
    return sum(run.neighbours > NEIGHBOURS_MAX for each in pairs.values() for _, rung in each for run in rung.values())


def _rows(pairs: Pairs) -> Iterator[list[str | float]]:
    for name in COUNTS:
        ratios = {rung: [runs[name].cpu / base[name].cpu for base, runs in each] for rung, each in pairs.items()}
        both = {rung: [runs[name].both / base[name].both for base, runs in each] for rung, each in pairs.items()}
        for rung, each in pairs.items():
            if not each:
                yield [name, rung, "in no round", *[""] * (len(COLUMNS) - 3)]
                continue
            yield [
                name,
                rung,
                median(runs[name].cpu for _, runs in each),
                f"{median(ratios[rung]):.3f}",
                _middle_half(ratios[rung]),
                median(runs[name].watcher_cpu for _, runs in each),
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
    if rung != "everything" or not ratios.get(AUDITD):
        return "", ""
    kept = [median(each[rung]) < median(each[AUDITD]) for each in (ratios, both)]
    words = {(True, True): "yes", (True, False): "CPU yes, both no", (False, True): "CPU no, both yes"}
    return "below auditd", words.get((kept[0], kept[1]), "no")
