"""Things done for the sensor to see: small programs compiled here, processes that wait to be compared with /proc."""

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

ACTS = Path(__file__).parent / "acts"
BPF = Path(__file__).parents[2] / "bpf"
TIMEOUT_S = 10.0


class Acts:
    """Compiles acts/*.c when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._compiler = shutil.which("clang") or shutil.which("cc") or shutil.which("gcc")

    def path(self, name: str) -> Path:
        """The compiled program; static, so that it runs under any root, uid or namespace."""
        if self._compiler is None:
            pytest.skip("NO C COMPILER: acts that Python cannot do are NOT tested here")
        target = self._folder / name
        if not target.exists():
            source = ACTS / f"{name}.c"
            options = ["-O1", "-Wall", "-Wextra", "-static", "-pthread", "-I", str(BPF), *_own_options(source)]
            subprocess.run([self._compiler, *options, str(source), "-o", str(target)], check=True)
        return target

    def copy(self, name: str, target: Path) -> Path:
        """The program under another name."""
        shutil.copy(self.path(name), target)
        return target


def _own_options(source: Path) -> list[str]:
    """What a program asks of the compiler, in a first line `// cc: OPTION...`."""
    first = source.read_text().partition("\n")[0]
    return first.removeprefix("// cc:").split() if first.startswith("// cc:") else []


class Held:
    """A process that runs `hold` in the end: it stands still until it is released."""

    def __init__(
        self,
        argv: Sequence[str | bytes],
        *,
        program: str | bytes | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | bytes | Path | None = None,
        before_exec: Callable[[], None] | None = None,
        pass_fds: Sequence[int] = (),
        says_pid: bool = False,
    ) -> None:
        self.process = subprocess.Popen(
            argv,
            executable=program,
            env=env,
            cwd=cwd,
            preexec_fn=before_exec,
            pass_fds=pass_fds,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        try:
            self.said = int(self.process.stdout.readline()) if says_pid else 0
            ready = self.process.stdout.read(1)
        except BaseException:
            self.process.kill()
            raise
        assert ready == b"r", f"{argv!r} ended with {self.process.wait(TIMEOUT_S)} before it held still"

    @property
    def pid(self) -> int:
        """Of the process that was started here, which need not be the one that holds still."""
        return self.process.pid

    def release(self) -> int:
        """Lets it end; returns its exit status."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        return self.process.wait(TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()


def fork_and(act: Callable[[], object]) -> int:
    """Forks; the child does `act` and ends with 0, or with 70 when it raises. Returns its pid, not waited for."""
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            act()
            status = 0
        finally:
            os._exit(status)
    return pid
