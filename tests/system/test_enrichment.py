"""Enrichment end to end: the whole agent on the real kernel, real files, real control groups."""

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulators.running import eventually  # type: ignore[import-not-found]
from simulators.running_agent import Agent, Stream, can_load_ebpf  # type: ignore[import-not-found]
from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.api.event.v1 import batch_pb2
from tocsin.kernel.core import cgroup_root

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(not can_load_ebpf(), reason="needs root and eBPF")]
CONTAINER = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    with Agent("core") as running:
        yield running


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """An executable with a content that nobody has seen."""
    path = Path(shutil.copy("/bin/true", tmp_path / "program"))
    with path.open("ab") as file:
        file.write(os.urandom(16))
    return path


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group as Docker makes it."""
    root = cgroup_root()
    if root is None:
        pytest.skip("NO CGROUP2 HIERARCHY: containers are NOT tested here")
    path = root / f"docker-{CONTAINER}.scope"
    path.mkdir()
    yield path
    eventually(lambda: removed(path), "nobody is in the group any more")


def removed(path: Path) -> bool:
    with contextlib.suppress(OSError):
        path.rmdir()
    return not path.exists()


def executables(stream: Stream, path: Path) -> list[batch_pb2.Executable]:
    """What the stream has told of the file."""
    inode = path.stat().st_ino
    return [one for batch in list(stream.batches) for one in batch.header.executables if one.inode == inode]


def digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def whole_again(agent: Agent, role: control.Role.ValueType, former: int) -> bool:
    """Whether another process took the place of a dead one, and all is well."""
    status = agent.settled()
    return bool(status) and agent.pid(role) not in (0, former) and status.health == control.HEALTH_OK


def test_a_new_executable_is_told_with_its_digests(agent: Agent, program: Path) -> None:
    with agent.subscribed() as stream:
        subprocess.run([program], check=True)
        eventually(lambda: executables(stream, program), "the executable is told", 5)
    [told] = executables(stream, program)
    state = program.stat()
    content = program.read_bytes()
    assert (told.size, told.mtime_ns, told.path) == (state.st_size, state.st_mtime_ns, bytes(program))
    assert told.sha256 == digest(program)
    assert (told.sha1, told.md5) == (hashlib.sha1(content).digest(), hashlib.md5(content).digest())
    [event] = [event for event in stream.execs(bytes(program)) if event.process.exe == bytes(program)]
    assert (event.process.exe_dev, event.process.exe_inode) == (told.dev, told.inode)


def test_the_status_tells_what_was_hashed(agent: Agent, program: Path) -> None:
    def hashed() -> int:
        return next((c.count for c in agent.status().enrichment.counters if c.name == "hashes.files"), 0)

    before = eventually(hashed, "something is hashed")
    subprocess.run([program], check=True)
    eventually(lambda: hashed() > before, "one more is hashed")


def test_what_ran_before_the_agent_is_told(agent: Agent) -> None:
    interpreter = Path(sys.executable).resolve()
    with agent.subscribed() as stream:
        eventually(lambda: executables(stream, interpreter), "this program is told")
    assert {told.sha256 for told in executables(stream, interpreter)} == {digest(interpreter)}


def test_a_subscriber_who_comes_later_is_told_too(agent: Agent, program: Path) -> None:
    with agent.subscribed() as first:
        subprocess.run([program], check=True)
        eventually(lambda: executables(first, program), "the executable is told")
    with agent.subscribed() as second:
        eventually(lambda: executables(second, program), "it is told again")


def test_a_process_in_a_group_of_docker_is_in_a_container(agent: Agent, group: Path, program: Path) -> None:
    def enter() -> None:
        (group / "cgroup.procs").write_text("0")

    with agent.subscribed() as stream:
        subprocess.run([program], check=True, preexec_fn=enter)
        eventually(lambda: stream.execs(bytes(program)), "the exec is seen")
        [event] = stream.execs(bytes(program))
        eventually(lambda: containers(stream, event.process.cgroup_id), "the container is told", 5)
    [container] = containers(stream, event.process.cgroup_id)
    assert (container.id, container.runtime) == (CONTAINER, "docker")


def containers(stream: Stream, cgroup_id: int) -> list[batch_pb2.Container]:
    told = [one for batch in list(stream.batches) for one in batch.header.containers]
    return [container for container in told if container.cgroup_id == cgroup_id]


def test_the_enricher_has_the_privileges_that_it_needs_and_no_others(agent: Agent) -> None:
    [row] = [row for row in agent.status().processes if row.role == control.ROLE_ENRICHER]
    lines = Path(f"/proc/{row.pid}/status").read_text().splitlines()
    facts = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    assert int(facts["CapPrm"], 16) == int(facts["CapBnd"], 16) == 1 << 19 | 1 << 2
    assert (facts["NoNewPrivs"], facts["Seccomp"], facts["Threads"]) == ("1", "2", "2")
    assert {int(uid) for uid in facts["Uid"].split()} == {row.uid}
    assert row.uid != 0


def test_events_go_on_when_the_enricher_is_killed_and_it_tells_again(agent: Agent, program: Path) -> None:
    victim, others = agent.pid(control.ROLE_ENRICHER), {p.pid for p in agent.status().processes}
    with agent.subscribed() as stream:
        subprocess.run([program], check=True)
        eventually(lambda: executables(stream, program), "the executable is told")
        for number in range(100):
            subprocess.run(["/bin/true", f"kept-{number}-"], check=True)
            if number == 30:
                os.kill(victim, signal.SIGKILL)
        eventually(lambda: whole_again(agent, control.ROLE_ENRICHER, victim), "another took its place")
        subprocess.run([program], check=True)
        eventually(lambda: len(executables(stream, program)) == 2, "the new one looks for itself")
    assert [len(stream.execs(f"kept-{n}-".encode())) for n in range(100)] == [1] * 100
    assert len(others & {p.pid for p in agent.status().processes}) == len(others) - 1


def test_a_courier_that_was_replaced_is_told_everything(agent: Agent, program: Path) -> None:
    with agent.subscribed() as stream:
        subprocess.run([program], check=True)
        eventually(lambda: executables(stream, program), "the executable is told")
    victim = agent.pid(control.ROLE_COURIER)
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: whole_again(agent, control.ROLE_COURIER, victim), "another took its place")
    with agent.subscribed() as stream:
        eventually(lambda: executables(stream, program), "it is told again")


def test_enrichment_goes_on_with_another_sensor(agent: Agent, program: Path) -> None:
    victim = agent.pid(control.ROLE_SENSOR)
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: whole_again(agent, control.ROLE_SENSOR, victim), "another took its place")
    with agent.subscribed() as stream:
        subprocess.run([program], check=True)
        eventually(lambda: executables(stream, program), "the executable is told")


def test_a_stopped_enricher_holds_nothing_up(agent: Agent, program: Path) -> None:
    pid = agent.pid(control.ROLE_ENRICHER)
    os.kill(pid, signal.SIGSTOP)
    try:
        with agent.subscribed() as stream:
            for number in range(20):
                os.utime(program, ns=(0, number))
                subprocess.run([program, f"meanwhile-{number}-"], check=True)
            began_s = time.monotonic()
            eventually(lambda: stream.execs(b"meanwhile-19-"), "events go on")
            assert time.monotonic() - began_s < 5
            os.kill(pid, signal.SIGCONT)
            eventually(lambda: executables(stream, program), "it catches up")
    finally:
        os.kill(pid, signal.SIGCONT)


def test_without_enrichment_there_is_no_enricher(tmp_path: Path) -> None:
    settings = tmp_path / "tocsin.toml"
    settings.write_text("[sensor]\nenrich = false\n")
    with Agent("core", "--config", str(settings)) as agent:
        status = agent.status()
        assert control.ROLE_ENRICHER not in {row.role for row in status.processes}
        assert status.health == control.HEALTH_OK


def test_recorded_events_need_no_enricher() -> None:
    with Agent("replay") as agent:
        assert control.ROLE_ENRICHER not in {row.role for row in agent.status().processes}
