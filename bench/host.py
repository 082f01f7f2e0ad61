"""The host that is measured on: its eBPF programs, and whether neighbours disturb a measurement."""

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from bench.figures import LeftOutError
from bench.timing import TICKS_A_SECOND

SETTLE_S: Final = 10.0
_BUSY: Final = (0, 1, 2, 5, 6, 7)
"""Fields of /proc/stat: user, nice, system, irq, softirq, steal."""


def described() -> str:
    """Kernel, machine and CPUs, as a reader of figures needs them."""
    release = ".".join(platform.release().split("-")[0].split(".")[:2])
    return f"Linux {release}, {platform.machine()}, {os.cpu_count()} CPUs"


def busy_seconds() -> float:
    """CPU seconds that all CPUs were busy since the boot, the hypervisor's other guests included."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(int(fields[at]) for at in _BUSY) / TICKS_A_SECOND


def programs() -> list[dict[str, Any]]:
    """Every eBPF program of the host, as bpftool describes it. Raises LeftOutError."""
    return bpftool("prog", "show")


def bpftool(*arguments: str) -> list[dict[str, Any]]:
    """A list from bpftool. Raises LeftOutError."""
    if shutil.which("bpftool") is None:
        raise LeftOutError("bpftool is missing: run `make setup`")
    done = subprocess.run(["bpftool", "-j", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LeftOutError(f"bpftool {' '.join(arguments)}: {done.stdout or done.stderr}")
    listed: list[dict[str, Any]] = json.loads(done.stdout)
    return listed


def others_attached(ours: Collection[int]) -> bool:
    """Whether an agent's programs are attached that are not in `ours`: ids of programs."""
    return any(program["id"] not in ours and program.get("name") == "on_exec" for program in programs())


def settled(ours: Collection[int] = ()) -> bool:
    """Waits until no other agent's programs are attached: those of one that has ended are freed a little later."""
    deadline = time.monotonic() + SETTLE_S
    while others_attached(ours):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
