"""Sightings: each field of the record against stat and /proc; each executable and group once for each listener."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kernel.acting import Acts, Held  # type: ignore[import-not-found]
from kernel.sensing import DEADLINE_S, POLL_S, Sensor  # type: ignore[import-not-found]
from tocsin.config import SensorConfig
from tocsin.enrich.hashes import FileKey, Request
from tocsin.enrich.running import running
from tocsin.enrich.sightings import Sighting, read_sighting, records
from tocsin.kernel.core import cgroup_root
from tocsin.ring.drain import Ring

PAGE_BYTES = 4096


class Watch:
    """A listener, and what it was told."""

    def __init__(self, sensor: Sensor) -> None:
        fd, size_bytes = sensor.source.sightings()
        self.size_bytes = size_bytes
        self._ring = Ring(fd, size_bytes)
        self._position = self._ring.consumer()
        self.seen: list[Sighting] = []

    def drain(self) -> None:
        """Takes what is there now."""
        body, end, _, malformed = self._ring.drain(self._position, 1 << 20)
        assert malformed == 0
        self.seen += map(read_sighting, records(body))
        self._ring.commit(end)
        self._position = end

    def of(self, pid: int) -> list[Sighting]:
        """What was told of a process."""
        return [sighting for sighting in self.seen if sighting.pid == pid]

    def one(self, pid: int) -> Sighting:
        """The only sighting of a process; waits for it."""
        self.wait_for(lambda: bool(self.of(pid)))
        [sighting] = self.of(pid)
        return sighting

    def wait_for(self, until: Callable[[], bool]) -> None:
        """Takes what comes until `until` holds."""
        deadline_s = time.monotonic() + DEADLINE_S
        self.drain()
        while not until():
            assert time.monotonic() < deadline_s, f"not seen within {DEADLINE_S} s"
            time.sleep(POLL_S)
            self.drain()


@pytest.fixture
def watch(sensor: Sensor) -> Watch:
    return Watch(sensor)


@pytest.fixture
def program(acts: Acts, tmp_path: Path) -> Path:
    """An executable that nobody has run."""
    return acts.copy("hold", tmp_path / "program")  # type: ignore[no-any-return]


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group that nobody has been in."""
    root = cgroup_root()
    if root is None:
        pytest.skip("NO CGROUP2 HIERARCHY: sightings of control groups are NOT tested here")
    path = root / f"tocsin-test-{os.getpid()}"
    path.mkdir()
    yield path
    deadline_s = time.monotonic() + DEADLINE_S
    while path.exists() and time.monotonic() < deadline_s:
        try:
            path.rmdir()
        except OSError:
            time.sleep(POLL_S)


def expected(path: Path) -> FileKey:
    state = path.stat()
    dev = os.major(state.st_dev) << 20 | os.minor(state.st_dev)
    return FileKey(dev, state.st_ino, state.st_size, state.st_mtime_ns)


def group_of(pid: int) -> int:
    return next(sighting.cgroup_id for sighting in running() if sighting.pid == pid)


def test_every_field_of_a_sighting(watch: Watch, program: Path) -> None:
    os.utime(program, ns=(0, 1_234_567_890_123_456_789))
    with Held([str(program)]) as held:
        sighting = watch.one(held.pid)
        assert sighting.executable == Request(expected(program), held.pid, bytes(program))
        assert sighting.cgroup_id == group_of(held.pid)


def test_an_executable_is_sighted_once(watch: Watch, program: Path) -> None:
    with Held([str(program)]) as first:
        watch.one(first.pid)
    with Held([str(program)]) as second:
        other = shutil.copy(program, program.with_name("marker"))
        with Held([other]) as marker:
            watch.one(marker.pid)
        assert not watch.of(second.pid)


@pytest.mark.parametrize("change", ["size", "mtime"])
def test_an_executable_that_was_changed_is_sighted_again(watch: Watch, program: Path, change: str) -> None:
    with Held([str(program)]) as first:
        watch.one(first.pid)
    if change == "size":
        before_ns = program.stat().st_mtime_ns
        with program.open("ab") as file:
            file.write(b"more")
        os.utime(program, ns=(0, before_ns))
    else:
        os.utime(program, ns=(0, 1))
    with Held([str(program)]) as second:
        assert watch.one(second.pid).executable == Request(expected(program), second.pid, bytes(program))


def test_a_new_group_is_sighted_without_the_executable_that_is_known(watch: Watch, program: Path, group: Path) -> None:
    with Held([str(program)]) as first:
        watch.one(first.pid)

    def enter() -> None:
        (group / "cgroup.procs").write_text("0")

    with Held([str(program)], before_exec=enter) as second:
        assert watch.one(second.pid) == Sighting(second.pid, group.stat().st_ino, None)


def test_the_path_is_as_long_as_a_path_can_be(watch: Watch, program: Path) -> None:
    deep = program.parent.joinpath(*["d" * 250] * 14)
    deep.mkdir(parents=True)
    moved = program.rename(deep / "program")
    with Held([str(moved)]) as held:
        executable = watch.one(held.pid).executable
        assert executable is not None
        assert executable.path == bytes(moved)


def test_somebody_new_is_told_everything_again(sensor: Sensor, watch: Watch, program: Path) -> None:
    with Held([str(program)]) as first:
        watch.one(first.pid)
    with Held([str(program)]) as second:
        watch.drain()
        assert not watch.of(second.pid)
    later = Watch(sensor)
    with Held([str(program)]) as third:
        assert later.one(third.pid).executable == Request(expected(program), third.pid, bytes(program))


def test_what_found_the_ring_full_is_sighted_later(watch: Watch, acts: Acts, tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*["d" * 250] * 14)
    folder.mkdir(parents=True)
    filler, late = (acts.copy("hold", folder / name) for name in ("filler", "late"))
    for number in range(watch.size_bytes // len(bytes(filler)) + 1):
        os.utime(filler, ns=(0, number + 1))
        run(filler)
    lost = run(late)
    watch.drain()
    assert not watch.of(lost)
    assert watch.one(run(late)).executable is not None


def run(program: Path) -> int:
    """Runs it to its end; the pid that it had."""
    with Held([str(program)]) as held:
        return held.pid  # type: ignore[no-any-return]


def test_nothing_is_sighted_for_nobody(program: Path) -> None:
    sensor = Sensor(SensorConfig(enrich=False))
    try:
        with Held([str(program)]):
            sensor.settle()
        watch = Watch(sensor)
        watch.drain()
        assert watch.size_bytes == PAGE_BYTES
        assert not watch.seen
    finally:
        sensor.close()
