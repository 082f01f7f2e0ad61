"""What is loaded and what is refused, by a copy of the package in a process of its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tocsin

PROGRAM = (
    "import os, sys\n"
    "from tocsin.config import SensorConfig\n"
    "from tocsin.errors import KernelError\n"
    "from tocsin.kernel.core import open_core\n"
    "if len(sys.argv) > 1: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
    "try: open_core(SensorConfig(), []).close()\n"
    "except KernelError as error: print(error); sys.exit(3)\n"
    "print('opened')\n"
)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    source = Path(tocsin.__file__).parent
    shutil.copytree(source, tmp_path / "tocsin", ignore=shutil.ignore_patterns("__pycache__", "starter.release"))
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    return tmp_path / "tocsin"


def open_in(package: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-B", "-c", PROGRAM, *arguments],
        env=os.environ | {"PYTHONPATH": str(package.parent)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout.strip()


def test_the_copy_as_it_is_opens(package: Path) -> None:
    assert open_in(package) == (0, "opened")


def test_an_object_with_one_changed_byte_is_refused(package: Path) -> None:
    import hashlib

    path = package / "kernel" / "objects" / "sensor.bpf.o"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    listed = json.loads((path.parent / "manifest.json").read_text())["objects"]["sensor.bpf.o"]
    status, said = open_in(package)
    assert status == 3
    for part in (str(path), hashlib.sha256(raw).hexdigest(), listed):
        assert part in said


def test_a_missing_manifest_is_refused(package: Path) -> None:
    path = package / "kernel" / "objects" / "manifest.json"
    path.unlink()
    status, said = open_in(package)
    assert status == 3
    assert str(path) in said


def test_an_object_that_the_manifest_does_not_list_is_refused(package: Path) -> None:
    path = package / "kernel" / "objects" / "manifest.json"
    path.write_text('{"objects": {}}')
    status, said = open_in(package)
    assert (status, "does not list sensor.bpf.o" in said) == (3, True)


def test_without_privilege_one_line_says_what_is_missing(package: Path) -> None:
    status, said = open_in(package, "nobody")
    assert status == 3
    assert len(said.splitlines()) == 1
    assert "privilege" in said
    assert "CAP_BPF" in said
