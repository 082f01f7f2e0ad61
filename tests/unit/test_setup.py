"""packaging/setup.sh: quick when nothing is missing, plain words when something is."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETUP = ROOT / "packaging/setup.sh"
DPKG_STATUS = Path("/var/lib/dpkg/status")
QUICK_S = 2.0
"""Takes 0.05 s; the rest is for a busy machine."""

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="no dpkg-query: neither Debian nor Ubuntu")
needs_root_on_debian = pytest.mark.skipif(
    os.geteuid() != 0 or not DPKG_STATUS.exists(), reason="installs packages: needs root on Debian or Ubuntu"
)


def run(script: Path, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"PATH": path} if path else {})
    return subprocess.run([script, *arguments], capture_output=True, text=True, env=environment, check=False)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder as after a clone: the script and pyproject.toml, no .venv."""
    (tmp_path / "clone/packaging").mkdir(parents=True)
    shutil.copy(SETUP, tmp_path / "clone/packaging/setup.sh")
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "clone")
    return tmp_path / "clone"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Programs that stand in front of the machine's own: no package installed, an ordinary user."""
    (tmp_path / "bin").mkdir()
    command(tmp_path / "bin/dpkg-query", "exit 1")
    command(tmp_path / "bin/id", "echo 1000")
    command(tmp_path / "bin/apt-get", "echo apt-get must not run >&2; exit 99")
    return tmp_path / "bin"


def command(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@needs_root_on_debian
def test_the_second_time_changes_nothing_and_is_quick() -> None:
    first = run(SETUP, "--system-only")
    assert first.returncode == 0, first.stderr
    before, start = DPKG_STATUS.stat(), time.monotonic()
    second = run(SETUP, "--system-only")
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert time.monotonic() - start < QUICK_S
    assert (DPKG_STATUS.stat().st_mtime_ns, DPKG_STATUS.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


@needs_dpkg
def test_who_may_not_install_is_given_the_one_command(checkout: Path, machine: Path) -> None:
    result = run(checkout / "packaging/setup.sh", "--system-only", path=f"{machine}:{os.environ['PATH']}")
    assert result.returncode == 4
    lines = [line.split() for line in result.stderr.splitlines() if line.startswith("    ")]
    assert len(lines) == 1
    assert lines[0][:3] == ["sudo", "apt-get", "install"]
    assert {"clang", "llvm", "libbpf-dev", "make"} <= set(lines[0])


@needs_dpkg
def test_lenient_names_what_is_missing_and_goes_on(checkout: Path, machine: Path) -> None:
    path = f"{machine}:{os.environ['PATH']}"
    result = run(checkout / "packaging/setup.sh", "--lenient", "--system-only", path=path)
    assert result.returncode == 0
    assert "clang" in result.stderr


def test_an_old_python_is_refused_with_what_to_do(checkout: Path, machine: Path) -> None:
    command(machine / "python3", "echo 3.9")
    result = run(checkout / "packaging/setup.sh", path=f"{machine}:{os.environ['PATH']}")
    assert result.returncode == 5
    assert "3.9" in result.stderr
    assert "3.11" in result.stderr
    assert "PYTHON=" in result.stderr


def test_an_unknown_argument_is_refused_with_the_usage() -> None:
    result = run(SETUP, "--sytem-only")
    assert result.returncode == 2
    assert "--system-only" in result.stderr
