"""Debian's auditd beside the agent: its own program, log and rules (audit.rules), and the kernel's audit put back.

auditd is not installed: where the host has none, Debian's packages are fetched
and unpacked into build/bench/. A kernel that audited once gives every later
process an audit context until it is booted again, which makes all its system
calls slower. So while auditd does not run, the rule `never,task` is in force:
what starts then has no such context, as on a host that never audited.
"""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from bench.build import OUT
from bench.figures import LeftOutError
from bench.timing import Cpu, cpu_of

RULES: Final = Path(__file__).with_name("audit.rules")
UNPACKED: Final = OUT / "auditd"
TIMEOUT_S: Final = 30.0
SILENCE: Final = ("-a", "never,task")
LOCKED: Final = 2
NEWEST_BYTES: Final = 1 << 20
SETTINGS: Final = {
    "failure": "-f",
    "backlog_limit": "-b",
    "rate_limit": "-r",
    "backlog_wait_time": "--backlog_wait_time",
    "enabled": "-e",
}
"""What the kernel says by name, and how auditctl sets it."""


class Auditd:
    """auditd at work."""

    def __init__(self, audit: "Audit", pid: int, folder: Path) -> None:
        self._audit = audit
        self._pids = (pid, _kernel_thread())
        self._log = folder / "audit.log"
        self._lost = audit.status()["lost"]

    def cpu_seconds(self) -> float:
        """What the daemon and the kernel's thread that feeds it took so far."""
        return sum((cpu_of(pid) for pid in self._pids), Cpu()).seconds

    def lost(self) -> int:
        """Records that the kernel lost since the start, by its own count."""
        return self._audit.status()["lost"] - self._lost

    def recorded(self, syscall: str, owner: str, pid: int) -> int:
        """System calls in the log of that name that succeeded. `owner`: pid or ppid, whichever `pid` is."""
        line = re.compile(rf"type=SYSCALL .* success=yes .* {owner}={pid} .*SYSCALL={syscall} ".encode())
        with self._log.open("rb") as log:
            return sum(1 for each in log if line.match(each))

    def wrote(self, mark: bytes) -> bool:
        """Whether the newest part of the log has these bytes."""
        with self._log.open("rb") as log:
            log.seek(max(0, self._log.stat().st_size - NEWEST_BYTES))
            return mark in log.read()


class Audit:
    """The kernel's audit for the time of a measurement. A context: leaving it puts back rules and settings."""

    def __init__(self) -> None:
        """Raises LeftOutError with the reason why auditd cannot be measured here."""
        if os.geteuid() != 0:
            raise LeftOutError("auditd needs root: run `sudo make bench`")
        self._programs, self._environment = tools()
        self._before = self.status()
        self._rules = [] if (rules := self.auditctl("-l").strip()) == "No rules" else rules.splitlines()
        if self._before["enabled"] == LOCKED:
            raise LeftOutError("the kernel's audit rules are locked until the next boot (auditctl -s: enabled 2)")
        if self._before["pid"]:
            raise LeftOutError(f"process {self._before['pid']} receives the kernel's audit: end it, then measure")

    def __enter__(self) -> Self:
        try:
            self._silence()
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._restore()

    def auditctl(self, *arguments: str) -> str:
        """What auditctl prints. Raises LeftOutError."""
        command = [str(self._programs / "auditctl"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=self._environment, check=False)
        if done.returncode:
            raise LeftOutError(f"auditctl {' '.join(arguments)}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def status(self) -> dict[str, int]:
        """The kernel's numbers by name."""
        return {name: int(value) for name, value in re.findall(r"^(\w+) (\d+)\b", self.auditctl("-s"), re.MULTILINE)}

    @contextmanager
    def running(self, cpus: Iterable[int]) -> Iterator[Auditd]:
        """auditd with the rules; `cpus`: where it may run."""
        with tempfile.TemporaryDirectory(prefix="tocsin-bench-auditd-") as name:
            folder = Path(name)
            _configure(folder, self._debians_configuration())
            command = [str(self._programs / "auditd"), "-n", "-c", name]
            daemon = subprocess.Popen(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                preexec_fn=lambda: os.sched_setaffinity(0, set(cpus)),  # noqa: PLW1509 - one thread
            )
            try:
                _wait(lambda: self.status()["pid"] == daemon.pid, "auditd does not start")
                self.auditctl("-D")
                self.auditctl("-R", str(RULES))
                yield Auditd(self, daemon.pid, folder)
            finally:
                self._silence()
                daemon.terminate()
                daemon.wait(TIMEOUT_S)

    def _silence(self) -> None:
        """No records, and no audit context for what starts from now on."""
        self.auditctl("-D")
        self.auditctl("-e", "0")
        self.auditctl(*SILENCE)

    def _restore(self) -> None:
        self.auditctl("-D")
        with tempfile.NamedTemporaryFile("w", prefix="tocsin-bench-audit-", suffix=".rules") as file:
            file.write("".join(f"{rule}\n" for rule in self._rules))
            file.flush()
            self.auditctl("-R", file.name)
        for name, option in SETTINGS.items():
            self.auditctl(option, str(self._before[name]))

    def _debians_configuration(self) -> Path:
        own = UNPACKED / "etc/audit/auditd.conf"
        return own if own.exists() else Path("/etc/audit/auditd.conf")


def tools() -> tuple[Path, dict[str, str]]:
    """The directory with auditd and auditctl, and their environment. Raises LeftOutError."""
    if installed := shutil.which("auditd", path="/usr/sbin:/sbin"):
        return Path(installed).parent, dict(os.environ)
    if not (UNPACKED / "sbin/auditd").exists():
        _fetch()
    (libraries,) = UNPACKED.glob("lib/*-linux-gnu")
    return UNPACKED / "sbin", {
        **os.environ,
        "LD_LIBRARY_PATH": f"{libraries}:{UNPACKED / 'usr' / 'lib' / libraries.name}",
    }


def _fetch() -> None:
    """Debian's auditd and what it needs, unpacked apart: a host that is measured gets no new service."""
    if shutil.which("apt-get") is None:
        raise LeftOutError("there is no auditd, and no apt-get to fetch Debian's: install auditd")
    archives = OUT / "auditd-archives"
    (archives / "partial").mkdir(parents=True, exist_ok=True)
    options = ["-qq", "--yes", "--download-only", "--no-install-recommends", "-o", f"Dir::Cache::archives={archives}"]
    try:
        _run(["apt-get", "install", *options, "auditd"])
    except LeftOutError:  # the lists of packages may be old or missing
        _run(["apt-get", "update", "-qq"])
        _run(["apt-get", "install", *options, "auditd"])
    half_done = UNPACKED.with_suffix(".new")
    for package in archives.glob("*.deb"):
        _run(["dpkg-deb", "-x", package, half_done])
    half_done.rename(UNPACKED)


def _run(command: Sequence[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LeftOutError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")


def _configure(folder: Path, debians: Path) -> None:
    """Fills a folder: Debian's configuration, but a log and plugins of its own; the log is counted, so not rotated."""
    (folder / "plugins.d").mkdir()
    own = {
        "log_file": folder / "audit.log",
        "log_format": "ENRICHED",  # system calls by name
        "max_log_file_action": "IGNORE",
        "plugin_dir": folder / "plugins.d",
    }
    text = debians.read_text()
    for name, value in own.items():
        text = re.sub(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.MULTILINE)
    (folder / "auditd.conf").write_text(text)


def _kernel_thread() -> int:
    """The pid of kauditd."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (entry / "comm").exists() and (entry / "comm").read_text() == "kauditd\n":
            return int(entry.name)
    raise LeftOutError("the kernel has no thread kauditd")


def _wait(done: Callable[[], bool], reason: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not done():
        if time.monotonic() > deadline:
            raise LeftOutError(reason)
        time.sleep(0.05)
