"""What processes do to each other and to their own nature: ptrace, memory, signals, prctl."""

import ctypes
import errno
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kernel import oracle  # type: ignore[import-not-found]
from kernel.acting import Acts, Held, fork_and  # type: ignore[import-not-found]
from kernel.calling import LIBC, call, compat, done, ended, fails_with, refuse  # type: ignore[import-not-found]
from kernel.sensing import Sensor  # type: ignore[import-not-found]
from tocsin.api.event.v1 import event_pb2 as pb
from tocsin.config import FilterConfig, SensorConfig

PTRACE, PROCESS_WRITE = pb.EVENT_TYPE_PTRACE, pb.EVENT_TYPE_PROCESS_WRITE
PRCTL, SIGNAL = pb.EVENT_TYPE_PRCTL, pb.EVENT_TYPE_SIGNAL
TRACEME, POKETEXT, POKEDATA, POKEUSER, CONT, ATTACH, DETACH = 0, 4, 5, 6, 7, 16, 17
GETREGS, SETREGS, GETFPREGS, SETFPREGS = 12, 13, 14, 15
GETREGSET, SETREGSET, SEIZE, INTERRUPT = 0x4204, 0x4205, 0x4206, 0x4207
NT_PRSTATUS = 1
PR_SET_DUMPABLE, PR_SET_NAME, PR_SET_SECCOMP, PR_GET_NAME = 4, 15, 22, 16
I386_WAITPID, I386_PTRACE, I386_PRCTL, I386_WRITEV = 7, 26, 172, 348
I386_KILL = 37
OTHER_UID = 1234
CLONE_NEWPID = 0x20000000


class IoVector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_uint64), ("length", ctypes.c_uint64))


class Siginfo(ctypes.Structure):
    """The beginning of siginfo_t that a sender of signals fills."""

    _fields_ = (
        ("number", ctypes.c_int),
        ("errno", ctypes.c_int),
        ("code", ctypes.c_int),
        ("rest", ctypes.c_char * 116),
    )


@pytest.fixture(scope="module")
def sensor() -> Iterator[Sensor]:
    """One that tells privileges and processes only: it loads quickly."""
    opened = Sensor(SensorConfig(filters=FilterConfig(events=("privilege", "process"))))
    yield opened
    opened.close()


@pytest.fixture
def held(acts: Acts) -> Iterator[Held]:
    """A process that stands still."""
    with Held([str(acts.path("hold"))]) as process:
        yield process


@pytest.fixture
def foreign(acts: Acts) -> Iterator[Held]:
    """The same of another user."""
    with Held([str(acts.path("hold"))], before_exec=lambda: os.setuid(OTHER_UID)) as process:
        yield process


def check_actors(event: pb.Event, pid: int, target: int) -> None:
    """Who did it, to whom; the target lives."""
    assert (event.process.pid, event.process.tid, event.parent.pid) == (pid, pid, os.getpid())
    assert event.process.exe == os.readlink(b"/proc/self/exe")
    oracle.check(event.target, oracle.task(target) | oracle.image(target) | {"tid": target})
    assert event.flags == 0


def writable_address(pid: int) -> int:
    """Where data of the process stands, below 4 GiB."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        bounds, bits = line.split()[:2]
        start = int(bounds.partition("-")[0], 16)
        if bits.startswith("rw") and start < 1 << 32:
            return start
    raise AssertionError(f"process {pid} has no data below 4 GiB")


def attach(pid: int) -> None:
    call("ptrace", ATTACH, pid, 0, 0)
    os.waitpid(pid, 0)


def word(pid: int, address: int) -> int:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        return int.from_bytes(os.pread(memory.fileno(), 8, address), "little")


def test_attaching_is_told_with_the_target(sensor: Sensor, held: Held) -> None:
    pid = done(lambda: attach(held.pid))
    event = sensor.one(pid, PTRACE)
    check_actors(event, pid, held.pid)
    assert event.ptrace == pb.ProcessAccess(request=ATTACH)


def test_seizing_is_told_with_the_target(sensor: Sensor, held: Held) -> None:
    pid = done(lambda: call("ptrace", SEIZE, held.pid, 0, 0))
    event = sensor.one(pid, PTRACE)
    check_actors(event, pid, held.pid)
    assert event.ptrace == pb.ProcessAccess(request=SEIZE)


def test_a_process_that_lets_itself_be_traced_is_its_own_target(sensor: Sensor) -> None:
    pid = done(lambda: call("ptrace", TRACEME, 0, 0, 0))
    event = sensor.one(pid, PTRACE)
    assert event.ptrace == pb.ProcessAccess(request=TRACEME)
    assert (event.process.pid, event.parent.pid) == (pid, os.getpid())
    event.process.ClearField("ancestors")  # told of who acts only
    assert event.target == event.process


@pytest.mark.parametrize("request_number", [POKETEXT, POKEDATA])
def test_a_word_written_by_the_tracer_is_told_with_its_address(sensor: Sensor, held: Held, request_number: int) -> None:
    address = writable_address(held.pid)

    def act() -> None:
        attach(held.pid)
        call("ptrace", request_number, held.pid, address, word(held.pid, address))

    pid = done(act)
    event = sensor.one(pid, PTRACE, 2)
    check_actors(event, pid, held.pid)
    assert event.ptrace == pb.ProcessAccess(request=request_number, bytes=8, address=address)


def set_user(pid: int) -> None:
    call("ptrace", POKEUSER, pid, 848, 0)  # u_debugreg[0]


def set_registers(pid: int) -> None:
    space = ctypes.create_string_buffer(512)
    call("ptrace", GETREGS, pid, 0, space)
    call("ptrace", SETREGS, pid, 0, space)


def set_float_registers(pid: int) -> None:
    space = ctypes.create_string_buffer(1024)
    call("ptrace", GETFPREGS, pid, 0, space)
    call("ptrace", SETFPREGS, pid, 0, space)


def set_register_set(pid: int) -> None:
    space = ctypes.create_string_buffer(512)
    vector = IoVector(ctypes.addressof(space), len(space))
    call("ptrace", GETREGSET, pid, NT_PRSTATUS, vector)
    call("ptrace", SETREGSET, pid, NT_PRSTATUS, vector)


@pytest.mark.parametrize(
    ("request_number", "change"),
    [
        (POKEUSER, set_user),
        (SETREGS, set_registers),
        (SETFPREGS, set_float_registers),
        (SETREGSET, set_register_set),
    ],
)
def test_registers_set_by_the_tracer_are_told(
    sensor: Sensor, held: Held, request_number: int, change: Callable[[int], None]
) -> None:
    def act() -> None:
        attach(held.pid)
        change(held.pid)

    pid = done(act)
    event = sensor.one(pid, PTRACE, 2)
    check_actors(event, pid, held.pid)
    assert event.ptrace == pb.ProcessAccess(request=request_number)


def test_attaching_that_is_forbidden_is_told_with_its_error(sensor: Sensor, held: Held) -> None:
    def act() -> None:
        os.setuid(OTHER_UID)
        fails_with(errno.EPERM, lambda: call("ptrace", ATTACH, held.pid, 0, 0))

    pid = done(act)
    event = sensor.one(pid, PTRACE)
    check_actors(event, pid, held.pid)
    assert event.process.uid == OTHER_UID
    assert event.ptrace == pb.ProcessAccess(error=errno.EPERM, request=ATTACH)


def test_what_a_tracer_only_looks_at_is_not_told(sensor: Sensor, held: Held) -> None:
    def act() -> None:
        attach(held.pid)
        call("ptrace", GETREGS, held.pid, 0, ctypes.create_string_buffer(512))
        call("ptrace", CONT, held.pid, 0, 0)

    pid = done(act)
    sensor.settle()
    assert [event.ptrace.request for event in sensor.of(pid, PTRACE)] == [ATTACH]


def test_attaching_to_nobody_is_not_told(sensor: Sensor) -> None:
    gone = done(lambda: None)
    pid = done(lambda: fails_with(errno.ESRCH, lambda: call("ptrace", ATTACH, gone, 0, 0)))
    sensor.settle()
    assert sensor.of(pid, PTRACE) == []


def test_a_target_is_found_by_the_number_that_it_has_in_the_callers_pid_namespace(sensor: Sensor) -> None:
    reader, writer = os.pipe()

    def first_of_its_namespace() -> None:
        target = fork_and(lambda: time.sleep(30))
        attach(target)
        os.write(writer, bytes([os.getpid(), target]))
        os.kill(target, signal.SIGKILL)

    def act() -> None:
        call("unshare", CLONE_NEWPID)
        ended(fork_and(first_of_its_namespace))

    outer = done(act)
    assert os.read(reader, 2) == b"\x01\x02"
    os.close(reader)
    os.close(writer)
    sensor.settle()
    (event,) = (event for event in sensor.events if event.type == PTRACE)
    assert event.parent.pid == outer
    assert event.target.ppid == event.process.pid > 2
    assert event.target.pid > 2
    assert event.target.pid_ns == event.process.pid_ns != oracle.namespace(os.getpid(), "pid")


def test_a_single_thread_is_told_as_the_target(sensor: Sensor, acts: Acts) -> None:
    with Held([str(acts.path("two_threads"))], says_pid=True) as held:
        tid = held.said
        pid = done(lambda: call("ptrace", SEIZE, tid, 0, 0))
        event = sensor.one(pid, PTRACE)
        assert (event.target.pid, event.target.tid) == (held.pid, tid)
        assert tid != held.pid
        assert event.target.exe == os.readlink(f"/proc/{held.pid}/exe".encode())


def test_ptrace_of_a_32_bit_process_is_told(sensor: Sensor, acts: Acts, held: Held) -> None:
    address = writable_address(held.pid)
    value = word(held.pid, address) & 0xFFFFFFFF
    pid, results = compat(
        acts.path("int80"),
        (I386_PTRACE, ATTACH, held.pid, 0, 0),
        (I386_WAITPID, held.pid, 0, 0),
        (I386_PTRACE, POKEDATA, held.pid, address, value),
    )
    assert results == [0, held.pid, 0]
    event = sensor.one(pid, PTRACE, 2)
    oracle.check(event.target, oracle.task(held.pid) | oracle.image(held.pid))
    assert event.ptrace == pb.ProcessAccess(request=POKEDATA, bytes=4, address=address)


def write_to(pid: int, address: int, size: int) -> int:
    """process_vm_writev of zeros."""
    space = ctypes.create_string_buffer(size)
    here, there = IoVector(ctypes.addressof(space), size), IoVector(address, size)
    return int(call("process_vm_writev", pid, here, 1, there, 1, 0))


def test_writing_to_another_process_is_told_with_address_and_bytes(sensor: Sensor, held: Held) -> None:
    address = writable_address(held.pid) + 8
    pid = done(lambda: write_to(held.pid, address, 24))
    event = sensor.one(pid, PROCESS_WRITE)
    check_actors(event, pid, held.pid)
    assert event.process_write == pb.ProcessAccess(bytes=24, address=address)


def test_writing_that_is_forbidden_is_told_with_its_error(sensor: Sensor, held: Held) -> None:
    address = writable_address(held.pid)

    def act() -> None:
        os.setuid(OTHER_UID)
        fails_with(errno.EPERM, lambda: write_to(held.pid, address, 24))

    pid = done(act)
    event = sensor.one(pid, PROCESS_WRITE)
    check_actors(event, pid, held.pid)
    assert event.process_write == pb.ProcessAccess(error=errno.EPERM, address=address)


def test_writing_to_itself_or_where_nothing_is_is_not_told(sensor: Sensor, held: Held) -> None:
    def act() -> None:
        space = ctypes.create_string_buffer(8)
        write_to(os.getpid(), ctypes.addressof(space), 8)
        fails_with(errno.EFAULT, lambda: write_to(held.pid, 8, 8))

    pid = done(act)
    sensor.settle()
    assert sensor.of(pid, PROCESS_WRITE) == []


def test_writing_of_a_32_bit_process_is_told(sensor: Sensor, acts: Acts, held: Held) -> None:
    address = writable_address(held.pid)
    pid, results = compat(acts.path("int80"), (I386_WRITEV, held.pid, "w:@,8", 1, f"w:{address},8", 1))
    assert results == [8]
    event = sensor.one(pid, PROCESS_WRITE)
    oracle.check(event.target, oracle.task(held.pid) | oracle.image(held.pid))
    assert event.process_write == pb.ProcessAccess(bytes=8, address=address)


def send(pid: int, number: int, code: int) -> None:
    """rt_sigqueueinfo with a code of the sender's own."""
    call("rt_sigqueueinfo", pid, number, Siginfo(number=number, code=code))


def send_by_descriptor(pid: int) -> None:
    fd = os.pidfd_open(pid)
    signal.pidfd_send_signal(fd, signal.SIGURG)


@pytest.mark.parametrize(
    "act",
    [
        lambda pid: os.kill(pid, signal.SIGURG),
        lambda pid: call("tkill", pid, signal.SIGURG),
        lambda pid: call("tgkill", pid, pid, signal.SIGURG),
        lambda pid: send(pid, signal.SIGURG, -1),
        lambda pid: send(pid, signal.SIGURG, -2),
        send_by_descriptor,
    ],
    ids=["kill", "tkill", "tgkill", "sigqueue", "as if by a timer", "pidfd"],
)
def test_a_signal_to_another_users_process_is_told(sensor: Sensor, foreign: Held, act: Callable[[int], None]) -> None:
    pid = done(lambda: act(foreign.pid))
    event = sensor.one(pid, SIGNAL)
    check_actors(event, pid, foreign.pid)
    assert event.target.uid == OTHER_UID
    assert event.signal == pb.ProcessAccess(signal=signal.SIGURG)


def test_a_signal_that_is_lost_for_want_of_room_is_told_with_its_error(sensor: Sensor, acts: Acts) -> None:
    number = signal.SIGRTMIN + 3

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [number])
        resource.setrlimit(resource.RLIMIT_SIGPENDING, (0, 0))
        os.setuid(OTHER_UID)

    with Held([str(acts.path("hold"))], before_exec=prepare) as held:
        pid = done(lambda: fails_with(errno.EAGAIN, lambda: send(held.pid, number, -1)))
        event = sensor.one(pid, SIGNAL)
        check_actors(event, pid, held.pid)
    assert event.signal == pb.ProcessAccess(error=errno.EAGAIN, signal=number)


def test_signals_to_oneself_to_the_same_user_and_of_number_0_are_not_told(
    sensor: Sensor, held: Held, foreign: Held
) -> None:
    def act() -> None:
        os.kill(held.pid, signal.SIGURG)
        os.kill(foreign.pid, 0)
        os.setresuid(OTHER_UID, 0, 0)
        os.kill(os.getpid(), signal.SIGURG)

    pid = done(act)
    sensor.settle()
    assert sensor.of(pid, SIGNAL) == []


def test_timers_of_another_users_process_are_not_signals_of_whom_they_interrupt(sensor: Sensor) -> None:
    """Both on one CPU: the timers go off while the busy process runs."""
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(everywhere)})

    def wait_for_timers() -> None:
        left = 50

        def count(*_: object) -> None:
            nonlocal left
            left -= 1

        signal.signal(signal.SIGALRM, count)
        os.setuid(OTHER_UID)
        timer = ctypes.c_void_p()
        assert LIBC.timer_create(time.CLOCK_MONOTONIC, None, ctypes.byref(timer)) == 0
        every_2_ms = (ctypes.c_long * 4)(0, 2_000_000, 0, 2_000_000)
        assert LIBC.timer_settime(timer, 0, every_2_ms, None) == 0
        while left > 0:
            signal.pause()

    try:
        waiting = fork_and(wait_for_timers)
        while os.waitpid(waiting, os.WNOHANG) == (0, 0):
            sum(range(1000))
    finally:
        os.sched_setaffinity(0, everywhere)
    sensor.settle()
    assert [event for event in sensor.events if event.type == SIGNAL and event.target.pid == waiting] == []


def test_a_signal_of_a_32_bit_process_is_told(sensor: Sensor, acts: Acts, foreign: Held) -> None:
    pid, results = compat(acts.path("int80"), (I386_KILL, foreign.pid, signal.SIGURG))
    assert results == [0]
    assert sensor.one(pid, SIGNAL).signal == pb.ProcessAccess(signal=signal.SIGURG)


def prctl(option: int, argument: int | bytes) -> None:
    call("prctl", option, argument, 0, 0, 0)


def test_a_new_name_is_told(sensor: Sensor) -> None:
    pid = done(lambda: prctl(PR_SET_NAME, b"kworker/0:1-is-longer"))
    event = sensor.one(pid, PRCTL)
    assert (event.process.pid, event.parent.pid) == (pid, os.getpid())
    assert event.process.comm == b"kworker/0:1-is-"
    assert event.prctl == pb.Prctl(option=PR_SET_NAME, name=b"kworker/0:1-is-")


@pytest.mark.parametrize("value", [0, 1])
def test_dumpability_is_told(sensor: Sensor, value: int) -> None:
    pid = done(lambda: prctl(PR_SET_DUMPABLE, value))
    assert sensor.one(pid, PRCTL).prctl == pb.Prctl(option=PR_SET_DUMPABLE, argument=value)


def test_a_prctl_of_a_32_bit_process_is_told(sensor: Sensor, acts: Acts) -> None:
    pid, results = compat(acts.path("int80"), (I386_PRCTL, PR_SET_DUMPABLE, 1), (I386_PRCTL, PR_GET_NAME, "w:0,0,0,0"))
    assert results == [0, 0]
    assert sensor.one(pid, PRCTL).prctl == pb.Prctl(option=PR_SET_DUMPABLE, argument=1)


def strict_by_prctl() -> None:
    prctl(PR_SET_SECCOMP, 1)
    LIBC.syscall(60, 0)  # exit, one of the four calls that are left


def strict_by_seccomp() -> None:
    call("seccomp", 0, 0, None)
    LIBC.syscall(60, 0)


def filter_by_seccomp() -> None:
    refuse("swapon")


@pytest.mark.parametrize(("act", "mode"), [(strict_by_prctl, 1), (strict_by_seccomp, 1), (filter_by_seccomp, 2)])
def test_seccomp_is_told_with_its_mode(sensor: Sensor, act: Callable[[], None], mode: int) -> None:
    pid = done(act)
    assert sensor.one(pid, PRCTL).prctl == pb.Prctl(option=PR_SET_SECCOMP, argument=mode)


@pytest.mark.parametrize("option", [PR_SET_NAME, PR_SET_DUMPABLE])
def test_a_prctl_that_is_refused_is_told_with_its_error(sensor: Sensor, option: int) -> None:
    name = Path("/proc/self/comm").read_bytes()[:-1] if option == PR_SET_NAME else b""
    argument: int | bytes = b"refused" if option == PR_SET_NAME else 1

    def act() -> None:
        refuse("prctl", errno.EACCES)
        fails_with(errno.EACCES, lambda: prctl(option, argument))

    pid = done(act)
    sensor.settle()
    told = [event.prctl for event in sensor.of(pid, PRCTL) if event.prctl.option == option]
    assert told == [
        pb.Prctl(error=errno.EACCES, option=option, argument=0 if isinstance(argument, bytes) else argument, name=name)
    ]


def test_other_and_impossible_prctls_are_not_told(sensor: Sensor) -> None:
    def act() -> None:
        prctl(PR_GET_NAME, bytes(16))
        fails_with(errno.EINVAL, lambda: prctl(PR_SET_DUMPABLE, 7))
        fails_with(errno.EINVAL, lambda: call("seccomp", 99, 0, None))
        call("seccomp", 2, 0, ctypes.create_string_buffer(b"\0\0\x05\0", 4))  # asks about an action

    pid = done(act)
    sensor.settle()
    assert sensor.of(pid, PRCTL) == []
