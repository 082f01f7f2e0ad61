"""What every simulator has: a process with a directory and a log of its own; and the command, run as people run it."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from tocsin.errors import PeerError

TIMEOUT_S = 60.0
COMMAND = [sys.executable, "-P", "-m", "tocsin.cli.main"]
T = TypeVar("T")


def tocsin(*arguments: object, **more: object) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end."""
    command = [*COMMAND, *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=environment, **more)  # type: ignore[call-overload, no-any-return]


def eventually(probe: Callable[[], T], what: str, timeout_s: float = TIMEOUT_S) -> T:
    """The first true value of `probe`; an agent that does not answer counts as no value."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        with contextlib.suppress(PeerError):
            if value := probe():
                return value
        time.sleep(0.05)
    raise AssertionError(f"not within {timeout_s} s: {what}")


class Running:
    """A context; when a test fails in it, the log is shown."""

    def __init__(self, directory: Path | None = None) -> None:
        """`directory`: in place of a new one; it is removed at the end all the same."""
        self.dir = directory or Path(tempfile.mkdtemp(prefix="tocsin-test-"))
        self.dir.chmod(0o755)
        self.log_path = self.dir / "log"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            sys.stderr.write(self.log)
        self.close()

    @property
    def log(self) -> str:
        """What it wrote to standard error."""
        return self.log_path.read_text() if self.log_path.exists() else ""

    def close(self) -> None:
        """Removes its files."""
        shutil.rmtree(self.dir, ignore_errors=True)
