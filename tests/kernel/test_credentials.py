"""Ids and capabilities that change: by system calls, by execution, and by nothing that accounts for it."""

import ctypes
import errno
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from kernel import oracle  # type: ignore[import-not-found]
from kernel.acting import Acts, Held, fork_and  # type: ignore[import-not-found]
from kernel.btf import structs  # type: ignore[import-not-found]
from kernel.calling import call, compat, done, ended, fails_with, number  # type: ignore[import-not-found]
from kernel.sensing import EXEC, EXIT, Sensor  # type: ignore[import-not-found]
from tocsin.api.event.v1 import event_pb2 as pb
from tocsin.config import FilterConfig, SensorConfig
from tocsin.kernel import libbpf
from tocsin.kernel.core import OBJECT
from tocsin.kernel.objects import DIRECTORY

CREDENTIALS = pb.EVENT_TYPE_CREDENTIALS
SYSCALL, UNEXPLAINED = pb.CREDENTIALS_CAUSE_SYSCALL, pb.CREDENTIALS_CAUSE_UNEXPLAINED
CONFIG = SensorConfig(filters=FilterConfig(events=("CREDENTIALS", "process", "-PRCTL")))
FIELDS = ("uid", "euid", "suid", "gid", "egid", "sgid", "cap_effective", "cap_permitted")
NOBODY = {"uid": 1234, "euid": 1234, "suid": 1234, "cap_effective": 0, "cap_permitted": 0}
SAME = 0xFFFFFFFF
CAP_NET_RAW = 13
CLONE_NEWUSER = 0x10000000
I386_SETUID16, I386_SETRESUID32, I386_SETUID32 = 23, 208, 213

KNOWN: Final = struct.Struct("<8I2Q")
"""struct known_credentials of bpf/maps/maps.h: six ids, depth of the user namespace, padding, capabilities."""


@pytest.fixture(scope="module")
def sensor() -> Iterator[Sensor]:
    """One that tells credentials and processes only: it loads quickly."""
    opened = Sensor(CONFIG)
    yield opened
    opened.close()


def own() -> dict[str, int]:
    """What this process has, and so its children at first."""
    found = oracle.task(os.getpid())
    return {name: found[name] for name in FIELDS}


def body(cause: pb.CredentialsCause.ValueType, before: dict[str, int], **others: int) -> pb.Credentials:
    return pb.Credentials(cause=cause, **{f"previous_{name}": before[name] for name in FIELDS}, **others)


def now(event: pb.Event) -> dict[str, int]:
    """What the process has after the change."""
    return {name: getattr(event.process, name) for name in FIELDS}


def capset(permitted: int, version: int = 0x20080522) -> None:
    low, high = permitted & SAME, permitted >> 32
    call("capset", struct.pack("<II", version, 0), struct.pack("<6I", low, low, 0, high, high, 0))


@pytest.mark.parametrize(
    ("name", "arguments", "changed"),
    [
        ("setuid", (1234,), NOBODY),
        ("setgid", (2345,), {"gid": 2345, "egid": 2345, "sgid": 2345}),
        ("setreuid", (1234, SAME), {"uid": 1234}),
        ("setregid", (SAME, 2345), {"egid": 2345, "sgid": 2345}),
        ("setresuid", (0, 1234, 0), {"euid": 1234, "cap_effective": 0}),
        ("setresgid", (1, 2, 3), {"gid": 1, "egid": 2, "sgid": 3}),
    ],
)
def test_ids_that_are_set_are_told_with_those_before(
    sensor: Sensor, name: str, arguments: tuple[int, ...], changed: dict[str, int]
) -> None:
    before = own()
    pid = done(lambda: call(name, *arguments))
    event = sensor.one(pid, CREDENTIALS)
    assert (event.process.pid, event.process.tid, event.parent.pid) == (pid, pid, os.getpid())
    assert event.process.exe == os.readlink(b"/proc/self/exe")
    assert event.flags == 0
    assert event.credentials == body(SYSCALL, before, syscall=number(name))
    assert now(event) == before | changed


def test_capabilities_that_are_given_up_are_told(sensor: Sensor) -> None:
    before = own()
    pid = done(lambda: capset(1 << CAP_NET_RAW))
    event = sensor.one(pid, CREDENTIALS)
    assert event.credentials == body(SYSCALL, before, syscall=number("capset"))
    assert now(event) == before | {"cap_effective": 1 << CAP_NET_RAW, "cap_permitted": 1 << CAP_NET_RAW}


def test_a_user_for_files_alone_is_told_for_the_capabilities_that_go_with_it(sensor: Sensor) -> None:
    before = own()

    def act() -> None:
        call("setfsgid", 2345)  # nothing that is told of a process changes
        call("setfsuid", 1234)

    pid = done(act)
    event = sensor.one(pid, CREDENTIALS)
    assert event.credentials == body(SYSCALL, before, syscall=number("setfsuid"))
    assert now(event)["cap_effective"] < before["cap_effective"]
    assert now(event) == before | {"cap_effective": now(event)["cap_effective"]}


def test_changes_one_after_the_other_are_told_each_with_what_was_before(sensor: Sensor) -> None:
    before = own()

    def act() -> None:
        call("setresgid", 5, 6, 7)
        call("setresuid", 0, 1234, 0)
        call("setresuid", SAME, 0, SAME)
        call("setuid", 1234)

    pid = done(act)
    sensor.one(pid, CREDENTIALS, 4)
    events = sensor.of(pid, CREDENTIALS)
    for event in events:
        assert event.credentials.cause == SYSCALL
        assert event.credentials == body(SYSCALL, before, syscall=event.credentials.syscall)
        before = now(event)
    assert before == own() | {"gid": 5, "egid": 6, "sgid": 7} | NOBODY
    sensor.one(pid, EXIT)


def test_ids_that_a_process_may_not_set_are_told_with_the_error(sensor: Sensor) -> None:
    def act() -> None:
        os.setuid(1234)
        fails_with(errno.EPERM, lambda: call("setuid", 0))

    pid = done(act)
    event = sensor.one(pid, CREDENTIALS, 2)
    assert event.credentials == body(SYSCALL, own() | NOBODY, syscall=number("setuid"), error=errno.EPERM)
    assert now(event) == own() | NOBODY


def test_calls_that_change_nothing_are_not_told(sensor: Sensor) -> None:
    def act() -> None:
        call("setuid", 0)
        call("setresgid", SAME, SAME, SAME)
        fails_with(errno.EINVAL, lambda: capset(0, version=1))

    pid = done(act)
    sensor.settle()
    assert sensor.of(pid, CREDENTIALS) == []


@pytest.mark.parametrize(
    "made",
    [(I386_SETUID16, 1234), (I386_SETUID32, 1234), (I386_SETRESUID32, 1234, 1234, 1234)],
    ids=["setuid of 16 bits", "setuid", "setresuid"],
)
def test_ids_that_a_32_bit_process_sets_are_told(sensor: Sensor, acts: Acts, made: tuple[int, ...]) -> None:
    pid, results = compat(acts.path("int80"), made)
    assert results == [0]
    event = sensor.one(pid, CREDENTIALS)
    assert event.credentials == body(SYSCALL, own(), syscall=made[0])
    assert now(event) == own() | NOBODY


class Split:
    """own_credentials, ready; its threads' ids."""

    def __init__(self, acts: Acts, *program: str) -> None:
        path = str(acts.path("own_credentials"))
        self.process = subprocess.Popen([path, *program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert self.process.stdout is not None
        self.second, self.third = (int(self.process.stdout.readline()) for _ in range(2))

    def go_on(self) -> None:
        self.process.communicate(b"g", timeout=10)
        assert self.process.returncode == 0

    @property
    def pid(self) -> int:
        return self.process.pid


def test_threads_with_credentials_of_their_own_are_told_apart(sensor: Sensor, acts: Acts) -> None:
    split = Split(acts)
    split.go_on()
    sensor.one(split.pid, EXIT)
    events = sensor.of(split.pid, CREDENTIALS)
    uid_set, gid_set = number("setresuid"), number("setresgid")
    told = {event.process.tid: event.credentials for event in events}
    assert told == {
        split.second: body(SYSCALL, own(), syscall=uid_set),
        split.third: body(SYSCALL, own() | NOBODY, syscall=uid_set, error=errno.EPERM),
        split.pid: body(SYSCALL, own(), syscall=gid_set),
    }
    assert len(events) == 3


def test_an_execution_by_a_thread_has_that_threads_credentials_before(sensor: Sensor, acts: Acts) -> None:
    split = Split(acts, "/bin/true")
    split.go_on()
    event = sensor.one(split.pid, EXEC, 2)
    assert event.exec.caller_tid == split.second
    assert (event.exec.previous_euid, event.exec.previous_cap_permitted) == (1234, 0)
    assert [told.process.tid for told in sensor.of(split.pid, CREDENTIALS)] == [split.second]


def test_a_set_user_id_program_is_told_with_the_users_before(sensor: Sensor, acts: Acts) -> None:
    program = acts.copy("hold", acts.path("hold").with_name("hold-as-root"))
    program.chmod(0o6755)

    def become_user() -> None:
        os.setgid(2345)
        os.setuid(1234)

    with Held([str(program)], before_exec=become_user) as held:
        event = sensor.one(held.pid, EXEC)
    assert (event.exec.previous_euid, event.exec.previous_egid, event.exec.previous_cap_permitted) == (1234, 2345, 0)
    assert (event.process.uid, event.process.euid, event.process.egid) == (1234, 0, 0)
    sensor.one(held.pid, EXIT)
    assert {told.credentials.cause for told in sensor.of(held.pid, CREDENTIALS)} == {SYSCALL}


def test_an_ordinary_execution_has_before_what_it_has_after(sensor: Sensor) -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    ended(pid)
    event = sensor.one(pid, EXEC)
    assert event.exec.previous_euid == event.process.euid == 0
    assert event.exec.previous_egid == event.process.egid == 0
    assert event.exec.previous_cap_permitted == event.process.cap_permitted == own()["cap_permitted"]


def test_a_new_user_namespace_is_no_unexplained_change(sensor: Sensor) -> None:
    def act() -> None:
        os.setuid(1234)
        call("unshare", CLONE_NEWUSER)  # gives every capability, in there
        ended(fork_and(lambda: None))

    pid = done(act)
    sensor.one(pid, EXIT)
    assert [event.credentials.cause for event in sensor.of(pid, CREDENTIALS)] == [SYSCALL]


def test_a_child_in_a_new_user_namespace_is_no_unexplained_change(sensor: Sensor) -> None:
    """clone with SIGCHLD: what it gives the child is the child's own from the beginning."""
    reader, writer = os.pipe()

    def act() -> None:
        os.setuid(1234)
        child = call("clone", CLONE_NEWUSER | 17, 0, 0, 0, 0)
        if child == 0:
            os._exit(0)
        os.write(writer, str(ended(child)).encode())

    done(act)
    child = int(os.read(reader, 32))
    os.close(reader)
    os.close(writer)
    event = sensor.one(child, EXIT)
    assert (event.process.uid, event.process.cap_effective >> CAP_NET_RAW & 1) == (1234, 1)
    assert sensor.of(child, CREDENTIALS) == []


def test_what_was_there_before_the_sensor_is_known(acts: Acts) -> None:
    split = Split(acts)
    late = Sensor(CONFIG)
    split.go_on()
    late.one(split.pid, EXIT)
    told = {event.process.tid: event.credentials for event in late.of(split.pid, CREDENTIALS)}
    late.close()
    assert told == {
        split.third: body(SYSCALL, own() | NOBODY, syscall=number("setresuid"), error=errno.EPERM),
        split.pid: body(SYSCALL, own(), syscall=number("setresgid")),
    }


class Waiting:
    """A process that does `act` when it is told to."""

    def __init__(self, act: Callable[[], object]) -> None:
        reader, self._writer = os.pipe()

        def wait() -> None:
            os.read(reader, 1)
            act()

        self.pid = fork_and(wait)
        os.close(reader)

    def go_on(self) -> int:
        os.write(self._writer, b"g")
        os.close(self._writer)
        return int(ended(self.pid))


def falsify(sensor: Sensor, pid: int, known: dict[str, int]) -> None:
    """Makes the sensor believe that a process had these: what it has then is what an exploit gave it."""
    size, members = structs(DIRECTORY / OBJECT)["image"]
    at, length = members["credentials"]
    assert length == KNOWN.size
    fd = sensor.source._loaded.map_fd("images")
    key, value = struct.pack("<I", pid), ctypes.create_string_buffer(size)
    assert libbpf.bpf().bpf_map_lookup_elem(fd, key, value) == 0
    *ids, level, padding, effective, permitted = KNOWN.unpack_from(value, at)
    assert dict(zip(FIELDS, (*ids, effective, permitted), strict=True)) == own()
    changed = KNOWN.pack(
        *(known[name] for name in FIELDS[:6]), level, padding, known["cap_effective"], known["cap_permitted"]
    )
    libbpf.update(fd, value.raw[:at] + changed + value.raw[at + length :], key)


def forks() -> None:
    ended(fork_and(lambda: None))


def fails_to_set() -> None:
    fails_with(errno.EINVAL, lambda: capset(0, version=1))


@pytest.mark.parametrize(
    "act",
    [
        forks,
        lambda: None,
        fails_to_set,
        lambda: call("setuid", 0),
        lambda: call("setresgid", 0, 0, 0),
    ],
    ids=["forks", "exits", "a call fails", "setuid(0) after the exploit", "setresgid after the exploit"],
)
def test_a_process_that_became_root_without_a_system_call_is_told_once(
    sensor: Sensor, act: Callable[[], object]
) -> None:
    waiting = Waiting(act)
    before = own() | NOBODY | {"gid": 2345, "egid": 2345, "sgid": 2345}
    falsify(sensor, waiting.pid, before)
    pid = waiting.go_on()
    sensor.one(pid, EXIT)
    (event,) = sensor.of(pid, CREDENTIALS)
    assert event.credentials == body(UNEXPLAINED, before)
    assert now(event) == own()
    assert (event.process.pid, event.parent.pid) == (pid, os.getpid())


def test_a_process_that_became_root_and_executes_is_told_with_the_program_that_did_it(sensor: Sensor) -> None:
    waiting = Waiting(lambda: os.execv("/bin/true", ["true"]))
    before = own() | NOBODY
    falsify(sensor, waiting.pid, before)
    pid = waiting.go_on()
    executed = sensor.one(pid, EXEC)
    (event,) = sensor.of(pid, CREDENTIALS)
    assert event.credentials == body(UNEXPLAINED, before)
    assert event.process.exe == os.readlink(b"/proc/self/exe")
    assert (executed.exec.previous_euid, executed.exec.previous_cap_permitted) == (1234, 0)
    assert executed.process.euid == 0


def test_capabilities_without_a_system_call_are_told(sensor: Sensor) -> None:
    waiting = Waiting(lambda: call("setuid", 1234))
    before = own() | {"cap_effective": 0, "cap_permitted": 0}
    falsify(sensor, waiting.pid, before)
    pid = waiting.go_on()
    sensor.one(pid, EXIT)
    (event,) = sensor.of(pid, CREDENTIALS)
    assert event.credentials == body(UNEXPLAINED, before)
    assert now(event) == own() | NOBODY


@pytest.mark.parametrize(
    "command",
    [
        ["setpriv", "--reuid=1234", "--regid=2345", "--clear-groups", "/bin/true"],
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "/bin/true"],
        ["su", "nobody", "-s", "/bin/sh", "-c", "true; /bin/true & wait"],
        ["unshare", "--user", "--map-root-user", "sh", "-c", "true; /bin/true"],
    ],
    ids=["user", "capabilities", "su", "user namespace"],
)
def test_ordinary_changes_leave_nothing_unexplained(sensor: Sensor, command: list[str]) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} IS NOT HERE: its changes are NOT tested")
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    sensor.settle()
    told = [event for event in sensor.events if event.type == CREDENTIALS]
    assert [event for event in told if event.credentials.cause == UNEXPLAINED] == []
    if command[0] == "su":
        assert told
