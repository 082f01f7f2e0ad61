"""docs/KERNELS.md from the runs of `make kernels`."""

from collections.abc import Mapping, Sequence

from guests.machine import Run  # type: ignore[import-not-found]

NOTHING = "-"
HEAD = """# Kernels

Written by `make kernels`. Each kernel is booted in a virtual machine, where the programs are loaded as the agent loads
them and `tests/kernel` is run. The tests assert on events: that a program loads and attaches proves nothing.
The kernels are Debian's.
"""
TESTS = """## Tests

passed / skipped / failed
"""
FAILURES = """## Tests that fail
"""
INSTRUCTIONS = """## Instructions that the verifier goes through

By program; the kernel cuts names at 15 bytes. Its limit is 1,000,000. `make kernels` fails when a program has grown by
over 10 % since `tests/guests/verifier.json` was written; `make kernels ARGS=--update` writes it anew.
"""
REFUSALS = """## What does not load

The verifier's last words to each program that does not load, alone.
"""


def document(runs: Mapping[str, Run]) -> str:
    """The whole file."""
    parts = [HEAD, _kernels(runs), TESTS, _tests(runs)]
    if any(run.count("failed") for run in runs.values()):
        parts += [FAILURES, _failures(runs)]
    parts += [INSTRUCTIONS, _instructions(runs)]
    if any(run.refusals for run in runs.values()):
        parts += [REFUSALS, *(_refusals(name, run) for name, run in runs.items() if run.refusals)]
    return "\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _kernels(runs: Mapping[str, Run]) -> str:
    rows = []
    for name, run in runs.items():
        loaded = "refused" if run.refusal else f"in {run.load_seconds:.1f} s"
        rows.append([name, f"`{run.release}`", loaded, str(run.count("passed")), str(run.count("failed"))])
    return _table(["Series", "Release", "Programs load and attach (emulated)", "Tests passed", "Failed"], rows)


def _tests(runs: Mapping[str, Run]) -> str:
    families = sorted({test.family for run in runs.values() for test in run.tests})
    rows = [[family, *(_counts(run, family) for run in runs.values())] for family in families]
    return _table(["", *runs], rows)


def _counts(run: Run, family: str) -> str:
    counts = [run.count(outcome, family) for outcome in ("passed", "skipped", "failed")]
    return " / ".join(map(str, counts)) if any(counts) else NOTHING


def _failures(runs: Mapping[str, Run]) -> str:
    found = [(name, test) for name, run in runs.items() for test in run.tests if test.outcome == "failed"]
    return _table(["", "Test"], [[name, f"`{test.name.removeprefix('tests/kernel/')}`"] for name, test in found])


def _instructions(runs: Mapping[str, Run]) -> str:
    programs = sorted({program for run in runs.values() for program in run.instructions})
    rows = []
    for program in programs:
        counts = [run.instructions.get(program) for run in runs.values()]
        rows.append([f"`{program}`", *(NOTHING if count is None else f"{count:,}" for count in counts)])
    return _table(["", *runs], rows)


def _refusals(name: str, run: Run) -> str:
    rows = [[f"`{program}`", words.replace("|", "\\|")] for program, words in sorted(run.refusals.items())]
    return _table([name, "The verifier"], rows)
