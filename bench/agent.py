"""The real agent, started for a measurement: own directories, starter content, live events."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from bench import host, libbpf
from bench.figures import LeftOutError
from bench.timing import Cpu, cpu_of, cpu_of_ended_children

from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.api.event.v1 import batch_pb2
from tocsin.cli.agent import connected
from tocsin.config import Config, FilterConfig, SensorConfig
from tocsin.errors import TocsinError

ROOT = Path(__file__).resolve().parents[1]
STARTER: Final = ROOT / "agent" / "tocsin" / "starter.release"
START_TIMEOUT_S: Final = 60.0
SOURCES: Final = {
    batch_pb2.SOURCE_REPLAY: "it shows recorded events",
    batch_pb2.SOURCE_UNSPECIFIED: "its source is not known yet",
}


class AgentUnderTest:
    """A context: leaving it ends the agent."""

    def __init__(self, cpus: Iterable[int] = (), events: tuple[str, ...] = FilterConfig().events) -> None:
        """`cpus`: where it may run; none: anywhere. `events`: what is wanted, as in `sensor.filters.events`.

        Raises LeftOutError when it gives no live events.
        """
        if os.geteuid() != 0:
            raise LeftOutError("it needs root, for the agent's eBPF programs: run `sudo make bench`")
        self._folder = tempfile.TemporaryDirectory(prefix="tocsin-bench-")
        folder = Path(self._folder.name)
        folder.chmod(0o755)
        self.socket = folder / "run" / "tocsin.sock"
        config = Config(
            runtime_dir=f"{folder}/run",
            state_dir=f"{folder}/state",
            release=str(STARTER),
            sensor=SensorConfig(source="core", filters=FilterConfig(events=events)),
        )
        self._log = (folder / "log").open("wb+")
        # Its own monitor, as a service would run it: `tocsin run` would be one more subscriber.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tocsin.processes.monitor", "--config", config.to_json()],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            preexec_fn=(lambda: os.sched_setaffinity(0, set(cpus))) if cpus else None,  # noqa: PLW1509 - one thread
        )
        try:
            self.pids = self._wait()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the agent and forgets its directories."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        self._folder.cleanup()

    def status(self) -> control.GetStatusResponse:
        """What it says of itself. Raises TocsinError."""
        with connected(self.socket) as running:
            return running.status()

    def cpu(self) -> dict[str, Cpu]:
        """What each process took so far. Raises LeftOutError when one of them has ended."""
        try:
            return {role: cpu_of(pid) for role, pid in self.pids.items()}
        except OSError as error:
            raise LeftOutError(f"a process of the agent ended meanwhile: {self._last_words()}") from error

    def cpu_seconds(self) -> float:
        """What all processes took so far, those included that ended and were replaced."""
        monitor = self._process.pid
        children = Path(f"/proc/{monitor}/task/{monitor}/children").read_text().split()
        try:
            alive = sum(map(cpu_of, [monitor, *map(int, children)]), Cpu())
        except OSError:
            return self.cpu_seconds()  # one ended in between: now it counts with the ended
        return (alive + cpu_of_ended_children(monitor)).seconds

    def replaced(self) -> int:
        """Processes that ended and were started again. Raises TocsinError."""
        return sum(process.restarts for process in self.status().processes)

    def refresh(self) -> None:
        """Finds the pids of what was replaced. Raises LeftOutError when the agent does not get well."""
        self.pids = self._wait()

    def ring_id(self) -> int:
        """The id of the map that is its ring buffer of events."""
        maps, _ = self._held()
        (found,) = (
            each["id"] for each in host.bpftool("map", "show") if each["id"] in maps and each["name"] == "events"
        )
        return int(found)

    def programs(self) -> set[int]:
        """The ids of its eBPF programs."""
        return self._held()[1]

    def _held(self) -> tuple[set[int], set[int]]:
        maps: set[int] = set()
        programs: set[int] = set()
        for role in ("monitor", "sensor"):
            of_role = libbpf.held(self.pids[role])
            maps |= of_role[0]
            programs |= of_role[1]
        return maps, programs

    def _wait(self) -> dict[str, int]:
        """The pids by role, when all is well."""
        reason = "it did not answer"
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise LeftOutError(f"the agent ended at once: {self._last_words()}")
            time.sleep(0.1)
            try:
                status = self.status()
            except TocsinError as error:
                reason = str(error)
                continue
            if status.source == batch_pb2.SOURCE_CORE and status.health == control.HEALTH_OK:
                return {
                    control.Role.Name(process.role).removeprefix("ROLE_").lower(): process.pid
                    for process in status.processes
                }
            reason = status.health_reason or SOURCES.get(status.source, "it does not say")
        raise LeftOutError(f"the agent gives no live events: {reason}: {self._last_words()}")

    def _last_words(self) -> str:
        """Without what the courier says of each caller."""
        self._log.seek(0)
        said = [line for line in self._log.read().decode(errors="replace").splitlines() if "role=operator" not in line]
        return "\n".join(said)[-600:] or "it said nothing"
