"""The enricher over a simulated ring: what it tells of real files, made containers and processes that are gone."""

import hashlib
import json
import os
import select
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tocsin.api.event.v1 import batch_pb2
from tocsin.enrich.contexts import EARLIER_AT_ONCE, MAX_PAYLOAD_BYTES, Enricher, Loop, payloads
from tocsin.enrich.hashes import Hasher
from tocsin.enrich.sightings import RECORD, TAG, Sighting
from tocsin.records.framing import event_field

ID = "0123456789abcdef" * 4
SCOPE = f"system.slice/docker-{ID}.scope"
GONE = 4194304
GROUP = 99
WAIT_S = 10.0


class SimulatedRing:
    """A SightingRing: positions count records."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.committed = 0

    def consumer(self) -> int:
        return self.committed

    def drain(self, start: int, max_bytes: int) -> tuple[bytes, int, int, int]:
        assert max_bytes > 0
        fresh = self.written[start:]
        return b"".join(map(event_field, fresh)), len(self.written), len(fresh), 0

    def commit(self, position: int) -> None:
        self.committed = position

    def see(self, *, pid: int = GONE, cgroup_id: int = 0, path: Path | None = None) -> None:
        """The kernel writes a sighting."""
        if path is None:
            self.written.append(RECORD.pack(TAG, 0, pid, cgroup_id, 0, 0, 0, 0))
            return
        state = path.stat()
        dev = os.major(state.st_dev) << 20 | os.minor(state.st_dev)
        fixed = (TAG, len(bytes(path)), pid, cgroup_id, state.st_ino, state.st_size, state.st_mtime_ns, dev)
        self.written.append(RECORD.pack(*fixed) + bytes(path))


@pytest.fixture
def ring() -> SimulatedRing:
    return SimulatedRing()


@pytest.fixture
def hasher() -> Iterator[Hasher]:
    hasher = Hasher()
    hasher.start()
    yield hasher
    hasher.stop()


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host's root with one Docker container in the unified hierarchy."""
    (tmp_path / "sys/fs/cgroup" / SCOPE).mkdir(parents=True)
    file = tmp_path / f"var/lib/docker/containers/{ID}/config.v2.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"Name": "/shop", "Config": {"Image": "nginx:1.27", "Labels": {"app": "shop"}}}))
    return tmp_path


def process(host: Path, pid: int, cgroup: str) -> None:
    """A process that lives in this group."""
    (host / f"proc/{pid}").mkdir(parents=True)
    (host / f"proc/{pid}/cgroup").write_text(cgroup)


def told(loop: Loop) -> batch_pb2.BatchHeader:
    """Everything that waits to be sent, as a reader of the header gets it."""
    header = batch_pb2.BatchHeader(host_id="h", event_count=7).SerializeToString()
    while (payload := loop.next()) is not None:
        header += payload
        loop.sent()
    return batch_pb2.BatchHeader.FromString(header)


def turn(loop: Loop, hasher: Hasher | None = None) -> batch_pb2.BatchHeader:
    """What a turn tells, with the hasher's answers if there is one."""
    end_s = time.monotonic() + WAIT_S
    loop.turn()
    while hasher is not None and hasher.counters().waiting:
        assert select.select([hasher], [], [], end_s - time.monotonic())[0]
        loop.turn()
    return told(loop)


def test_an_executable_is_told_with_its_digests(ring: SimulatedRing, hasher: Hasher, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF")
    ring.see(path=program)
    header = turn(Loop(ring, Enricher(hasher, tmp_path)), hasher)
    state = program.stat()
    assert (header.host_id, header.event_count) == ("h", 7)
    assert list(header.executables) == [
        batch_pb2.Executable(
            dev=os.major(state.st_dev) << 20 | os.minor(state.st_dev),
            inode=state.st_ino,
            size=4,
            mtime_ns=state.st_mtime_ns,
            path=bytes(program),
            sha256=hashlib.sha256(b"\x7fELF").digest(),
            sha1=hashlib.sha1(b"\x7fELF").digest(),
            md5=hashlib.md5(b"\x7fELF").digest(),
        )
    ]
    assert ring.committed == 1


@pytest.mark.skipif(not shutil.which("dpkg"), reason="no dpkg on this host")
def test_a_program_of_this_host_is_told_with_its_package(ring: SimulatedRing, hasher: Hasher) -> None:
    ring.see(path=Path("/usr/bin/dpkg").resolve())
    [executable] = turn(Loop(ring, Enricher(hasher)), hasher).executables
    assert executable.package == "dpkg"
    assert executable.package_version


def test_a_program_that_is_gone_is_told_with_the_reason(ring: SimulatedRing, hasher: Hasher, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.touch()
    ring.see(path=program)
    program.unlink()
    [executable] = turn(Loop(ring, Enricher(hasher, tmp_path)), hasher).executables
    assert (executable.error, executable.sha256) == ("gone before it was read", b"")


def test_a_container_is_told_once(ring: SimulatedRing, hasher: Hasher, host: Path) -> None:
    process(host, 7, f"0::/{SCOPE}\n")
    loop = Loop(ring, Enricher(hasher, host))
    ring.see(pid=7, cgroup_id=GROUP)
    label = batch_pb2.Label(key="app", value="shop")
    assert list(turn(loop).containers) == [
        batch_pb2.Container(id=ID, runtime="docker", name="shop", image="nginx:1.27", labels=[label], cgroup_id=GROUP)
    ]
    ring.see(pid=7, cgroup_id=GROUP)
    assert not turn(loop).containers


def test_a_container_is_known_by_its_group_when_the_process_is_gone(
    ring: SimulatedRing, hasher: Hasher, host: Path
) -> None:
    ring.see(cgroup_id=(host / "sys/fs/cgroup" / SCOPE).stat().st_ino)
    [container] = turn(Loop(ring, Enricher(hasher, host))).containers
    assert (container.id, container.name) == (ID, "shop")


def test_nothing_is_told_of_the_hosts_own_groups(ring: SimulatedRing, hasher: Hasher, host: Path) -> None:
    process(host, 7, "0::/system.slice/ssh.service\n")
    process(host, 8, f"3:cpu:/docker/{ID}\n0::/system.slice/docker.service\n")
    for pid in (7, 8, GONE):
        ring.see(pid=pid, cgroup_id=pid)
    assert not turn(Loop(ring, Enricher(hasher, host))).containers


def test_records_that_are_no_sightings_are_counted_and_the_others_read(
    ring: SimulatedRing, hasher: Hasher, host: Path
) -> None:
    process(host, 7, f"0::/{SCOPE}\n")
    ring.written.append(b"\x09 and no sighting, though it is long enough for one")
    ring.see(pid=7, cgroup_id=GROUP)
    loop = Loop(ring, Enricher(hasher, host))
    assert len(turn(loop).containers) == 1
    assert loop.malformed == 1


def test_everything_is_told_again_to_somebody_new(ring: SimulatedRing, hasher: Hasher, host: Path) -> None:
    process(host, 7, f"0::/{SCOPE}\n")
    program = host / "program"
    program.touch()
    ring.see(pid=7, cgroup_id=GROUP, path=program)
    loop = Loop(ring, Enricher(hasher, host))
    first = turn(loop, hasher)
    loop.tell_everything()
    assert told(loop) == first
    assert (len(first.containers), len(first.executables)) == (1, 1)


def test_what_ran_before_is_looked_at_bit_by_bit(ring: SimulatedRing, hasher: Hasher, host: Path) -> None:
    process(host, 7, f"0::/{SCOPE}\n")
    earlier = [Sighting(7, group, None) for group in range(1, EARLIER_AT_ONCE + 2)]
    loop = Loop(ring, Enricher(hasher, host), earlier=earlier)
    assert loop.turn()
    assert len(told(loop).containers) == EARLIER_AT_ONCE
    assert loop.turn()
    assert [container.cgroup_id for container in told(loop).containers] == [EARLIER_AT_ONCE + 1]
    assert not loop.turn()


def test_what_was_done_is_counted_by_name(ring: SimulatedRing, hasher: Hasher, host: Path) -> None:
    process(host, 7, f"0::/{SCOPE}\n")
    process(host, 8, f"0::/docker/{'e' * 64}\n")
    program = host / "program"
    program.write_bytes(b"four")
    ring.see(pid=7, cgroup_id=1, path=program)
    ring.see(pid=7, cgroup_id=2, path=program)
    ring.see(pid=8, cgroup_id=3)
    enricher = Enricher(hasher, host)
    turn(Loop(ring, enricher), hasher)
    counted = enricher.counters()
    assert (counted["hashes.files"], counted["hashes.bytes"], counted["hashes.waiting"]) == (1, 4, 0)
    assert (counted["containers.hits"], counted["containers.misses"], counted["containers.missing"]) == (1, 2, 1)
    assert (counted["told.entries"], counted["packages.unreadable"]) == (4, 0)


def executables(count: int) -> Iterator[batch_pb2.Executable]:
    """With the longest paths that there are."""
    return (batch_pb2.Executable(inode=number, path=b"x" * 4096) for number in range(count))


def test_messages_are_bounded_and_in_order() -> None:
    sent = list(payloads(executables(50)))
    assert max(map(len, sent)) <= MAX_PAYLOAD_BYTES
    merged = batch_pb2.BatchHeader.FromString(b"".join(sent))
    assert [executable.inode for executable in merged.executables] == list(range(50))
    assert list(payloads([])) == []


def test_what_a_slow_sensor_does_not_take_is_dropped_the_oldest_first_and_counted(
    ring: SimulatedRing, hasher: Hasher, host: Path
) -> None:
    process(host, 7, f"0::/{SCOPE}\n")
    loop = Loop(ring, Enricher(hasher, host), max_waiting_bytes=200)
    for group in (1, 2):
        ring.see(pid=7, cgroup_id=group)
        loop.turn()
    assert [container.cgroup_id for container in told(loop).containers] == [2]
    assert loop.dropped == 1
