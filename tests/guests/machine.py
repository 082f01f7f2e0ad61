"""One virtual machine: boots a kernel with the guests' root file system and brings back what it told."""

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from guests.initramfs import ROOT  # type: ignore[import-not-found]

QEMU: Final = "qemu-system-x86_64"
INIT: Final = ROOT / "tests" / "guests" / "inside" / "init.py"
TIMEOUT_S: Final = 1800
ATTEMPTS: Final = 2
MEMORY_MB: Final = 1024
# Emulated on any host, so that a result depends on the kernel alone. QEMU 7.2's cmpxchg16b lets 6.12 panic at random.
MACHINE: Final = ("-accel", "tcg,thread=single", "-smp", "1", "-m", str(MEMORY_MB), "-cpu", "max,-cx16")
DEVICES: Final = ("-nodefaults", "-no-user-config", "-display", "none", "-nic", "none", "-no-reboot")
COMMAND_LINE: Final = "console=ttyS0 panic=-1 mitigations=off quiet lsm=lockdown,capability,landlock,yama,apparmor,bpf"

PROGRAM_NAME_BYTES: Final = 15
LOG_STATISTICS: Final = re.compile(r"verification time|stack depth|processed|insns_")


class NoVerdictError(Exception):
    """The guest ended without one; the text is the end of its console."""


@dataclass(frozen=True, slots=True)
class Told:
    """What became of one test."""

    name: str
    outcome: str
    """passed, skipped or failed, as pytest says it."""
    text: str

    @property
    def family(self) -> str:
        """Of the file tests/kernel/test_FAMILY.py."""
        return Path(self.name.partition("::")[0]).stem.removeprefix("test_")


@dataclass(slots=True)
class Run:
    """All that a guest told."""

    status: int
    """pytest's exit code, or why it was not called."""
    seconds: float = 0.0
    """From switching on to switching off."""
    release: str = ""
    load_seconds: float = 0.0
    refusal: str = ""
    """Why the kernel did not load the programs; empty when it did."""
    refusals: dict[str, str] = field(default_factory=dict)
    """Programs that do not load even alone, and the verifier's words."""
    instructions: dict[str, int] = field(default_factory=dict)
    """That the verifier went through, by program, whose name is cut at 15 bytes."""
    tests: list[Told] = field(default_factory=list)

    def count(self, outcome: str, family: str | None = None) -> int:
        """Tests with this outcome, of one family or of all."""
        return sum(test.outcome == outcome and family in (None, test.family) for test in self.tests)


def run(image: Path, initramfs: Path, scratch: Path, options: Sequence[str]) -> Run:
    """Boots until there is a verdict, at most twice. `scratch` is a folder for what the guest writes.

    Raises NoVerdictError.
    """
    for attempt in range(ATTEMPTS):
        folder = scratch / f"boot-{attempt}"
        folder.mkdir(parents=True)
        before = time.monotonic()
        _boot(image, initramfs, folder, options)
        found = parse((folder / "results").read_text(errors="replace"))
        if found is not None:
            found.seconds = time.monotonic() - before
            return found
    raise NoVerdictError(
        f"no EXIT line; the end of the console:\n{(folder / 'console').read_text(errors='replace')[-3000:]}"
    )


def _boot(image: Path, initramfs: Path, folder: Path, options: Sequence[str]) -> None:
    """Returns when the machine is off. Its exit code says nothing: a panic gives 0."""
    results = folder / "results"
    results.touch()
    init = shlex.join([str(INIT), *options])
    command = [
        *(QEMU, *MACHINE, *DEVICES, "-serial", f"file:{folder / 'console'}", "-serial", f"file:{results}"),
        *("-kernel", str(image), "-initrd", str(initramfs)),
        *("-append", f"{COMMAND_LINE} rdinit={sys.executable} -- {init}"),
    ]
    machine = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        machine.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired:
        machine.kill()
        machine.wait()


def parse(results: str) -> Run | None:
    """What a guest wrote; None without a verdict."""
    verdict = re.search(r"^EXIT (-?\d+)\r?$", results, re.MULTILINE)
    if verdict is None:
        return None
    found = Run(int(verdict.group(1)))
    for line in results.splitlines():
        if line.startswith("{"):
            _take(found, json.loads(line))
    return found


def _take(found: Run, line: dict[str, Any]) -> None:
    if "test" in line:
        found.tests.append(Told(line["test"], line["outcome"], line["text"]))
    elif "program" in line:
        _take_program(found, line["program"][:PROGRAM_NAME_BYTES], line["log"], line["refusal"])
    elif "instructions" in line:
        found.instructions = line["instructions"]
    else:
        found.release = line.get("release", found.release)
        found.load_seconds = line.get("load_seconds", found.load_seconds)
        found.refusal = line.get("refusal", found.refusal)


def _take_program(found: Run, name: str, log: str, refusal: str) -> None:
    counted = re.search(r"processed (\d+) insns", log)
    if refusal:
        said = [line for line in log.splitlines() if not LOG_STATISTICS.match(line)]
        found.refusals[name] = " | ".join(said) or refusal
    elif counted:
        found.instructions[name] = int(counted.group(1))
