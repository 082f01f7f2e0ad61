"""The kernel matrix: boots each series, says what is wrong with it, and writes docs/KERNELS.md.

python -m guests.matrix [--update] [--only SERIES]..., from `make kernels`. Exit code 1: a kernel is not in order.
"""

import argparse
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

from guests import initramfs, kernels, machine, report, verifier  # type: ignore[import-not-found]
from guests.kernels import UnavailableError  # type: ignore[import-not-found]
from guests.machine import NoVerdictError, Run  # type: ignore[import-not-found]

DOCUMENT: Final = initramfs.ROOT / "docs" / "KERNELS.md"


def boot(series: Iterable[str], scratch: Path, options: Sequence[str] = (), *, refresh: bool) -> dict[str, Future[Run]]:
    """Boots the series side by side, one for each CPU, to their ends. Results raise UnavailableError, NoVerdictError.

    `scratch` is an empty folder; `options` are pytest's in the guests; `refresh` asks for the newest kernels, else the
    cache will do. Raises UnavailableError.
    """
    _check_host()
    root = scratch / "initramfs.cpio"
    (scratch / "acts").mkdir()
    initramfs.build(root, scratch / "acts")

    def run(name: str) -> Run:
        image = kernels.fetch(kernels.SERIES[name], refresh=refresh)
        return machine.run(image, root, scratch / name, options)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = {name: pool.submit(run, name) for name in series}
    root.unlink()
    return runs


def _check_host() -> None:
    """Raises UnavailableError."""
    if platform.machine() != "x86_64":
        raise UnavailableError(f"the guests are x86-64, this machine is {platform.machine()}")
    if shutil.which(machine.QEMU) is None:
        raise UnavailableError(f"{machine.QEMU} is missing: install qemu-system-x86")


def faults(run: Run, accepted: verifier.Counts) -> Iterator[str]:
    """All that is wrong with a kernel's run, a text each."""
    if run.refusal:
        yield f"the kernel refuses the programs: {run.refusal}"
        return
    for test in run.tests:
        if test.outcome == "failed":
            yield f"{test.name}\n{test.text}"
    if run.status != 0 and not run.count("failed"):
        yield f"the tests ended with {run.status}"
    if not run.count("passed"):
        yield "no test passed"
    yield from verifier.growth(accepted, run.instructions)


def summary(name: str, run: Run) -> str:
    """A run in a line."""
    told = f"{name}: {run.release}: "
    if run.refusal:
        return f"{told}refused, {len(run.refusals)} programs do not load"
    counts = ", ".join(f"{run.count(outcome)} {outcome}" for outcome in ("passed", "skipped", "failed"))
    return f"{told}{counts}; loaded in {run.load_seconds:.1f} s, over after {run.seconds:.0f} s"


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="make kernels ARGS=…", description="Tests the programs on other kernels.")
    parser.add_argument("--only", action="append", choices=kernels.SERIES, help="one series, docs/KERNELS.md stays")
    parser.add_argument("--update", action="store_true", help="accept the verifier's counts of this run")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tocsin-kernels-") as scratch:
        try:
            booted = boot(wanted.only or kernels.SERIES, Path(scratch), refresh=True)
            runs = {name: run.result() for name, run in booted.items()}
        except (UnavailableError, NoVerdictError) as error:
            print(f"make kernels: {error}", file=sys.stderr)
            return 1
    if wanted.update:
        verifier.accept({name: run.instructions for name, run in runs.items() if run.instructions})
    if not wanted.only:
        DOCUMENT.write_text(report.document(runs))
    accepted = verifier.accepted()
    return max([_tell(name, run, list(faults(run, accepted.get(name, {})))) for name, run in runs.items()])


def _tell(name: str, run: Run, found: list[str]) -> int:
    print(summary(name, run))
    for fault in found:
        print(f"  FAULT {fault}")
    for program, words in run.refusals.items():
        print(f"  {program}: {words}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
