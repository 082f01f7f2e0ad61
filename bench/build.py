"""Compiles the C of the measurements, when they run, into build/bench/."""

import platform
import shutil
import subprocess
from pathlib import Path

from bench.figures import LeftOutError

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "build" / "bench"


def workloads() -> Path:
    """The program with the workloads; static, so that starting it costs little besides exec itself."""
    return _compiled(HERE / "workloads.c", OUT / "workloads", ["-O2", "-static", "-Wall", "-Wextra"])


def producer() -> Path:
    """The eBPF object that writes into the ring."""
    include = f"-I/usr/include/{platform.machine()}-linux-gnu"
    flags = ["-g", "-O2", "-target", "bpf", "-mcpu=v3", "-Wall", "-Werror", include, "-c"]
    return _compiled(HERE / "producer.bpf.c", OUT / "producer.bpf.o", flags)


def _compiled(source: Path, target: Path, flags: list[str]) -> Path:
    if shutil.which("clang") is None:
        raise LeftOutError(f"clang is missing, which compiles {source.name}: run `make setup`")
    OUT.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["clang", *flags, "-o", target, source], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LeftOutError(f"{source.name} does not compile here: {done.stderr.strip()}")
    return target
