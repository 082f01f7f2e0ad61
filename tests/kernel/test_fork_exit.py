"""fork and exit: against what fork returned, wait told and /proc showed."""

import ctypes
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from kernel import oracle  # type: ignore[import-not-found]
from kernel.acting import Acts, Held, fork_and  # type: ignore[import-not-found]
from kernel.sensing import EXEC, EXIT, FORK, Sensor, boottime_ns  # type: ignore[import-not-found]
from tocsin.api.event.v1 import event_pb2

PR_SET_NAME = 15
IMAGE = ("exe", "cwd", "argv", "exe_inode", "exe_dev", "exec_boottime_ns", "image_flags")


def same_image(one: event_pb2.Process, other: event_pb2.Process) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in IMAGE)


def fork_of(sensor: Sensor, child: int) -> event_pb2.Event:
    """The only fork that made `child`."""

    def found() -> list[event_pb2.Event]:
        return [event for event in sensor.events if event.type == FORK and event.fork.child_pid == child]

    sensor.collect(lambda: bool(found()), f"fork of {child}")
    assert len(found()) == 1
    return found()[0]


def run(*argv: str, cwd: Path | None = None) -> tuple[int, int]:
    """Runs a program; returns its pid and its wait status."""
    pid = os.fork()
    if pid == 0:
        try:
            if cwd is not None:
                os.chdir(cwd)
            os.execv(argv[0], argv)
        finally:
            os._exit(71)
    return pid, os.waitpid(pid, 0)[1]


def check_status(event: event_pb2.Event, status: int) -> None:
    assert event.exit.code == (os.WEXITSTATUS(status) if os.WIFEXITED(status) else 0)
    assert event.exit.signal == (os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0)
    assert event.exit.core_dumped == int(os.WCOREDUMP(status))


def test_a_fork_tells_parent_and_childs_key(sensor: Sensor) -> None:
    release = os.pipe()
    before = boottime_ns()
    child = fork_and(lambda: os.read(release[0], 1))
    after = boottime_ns()
    ticks = oracle.start_ticks(child)
    event = fork_of(sensor, child)
    me = os.getpid()
    oracle.check(event.process, oracle.task(me) | oracle.image(me) | {"tid": threading.get_native_id()})
    assert (event.parent.pid, event.process.ppid) == (os.getppid(), os.getppid())
    oracle.check(event.parent, {"start_ticks": oracle.start_ticks(os.getppid())})
    assert event.WhichOneof("body") == "fork"
    assert event.fork.clone_flags & 0xFF in (0, signal.SIGCHLD)
    assert event.fork.child_start_boottime_ns // oracle.TICK_NS == ticks
    assert before < event.fork.child_start_boottime_ns < after
    assert before < event.boottime_ns < after
    os.write(release[1], b"x")
    os.waitpid(child, 0)
    for end in release:
        os.close(end)
    ended = sensor.one(child, EXIT)
    assert ended.process.start_boottime_ns == event.fork.child_start_boottime_ns


def test_the_flags_of_clone_are_told(sensor: Sensor, acts: Acts) -> None:
    new_uts = 0x04000000
    pid = int(subprocess.run([acts.path("clone"), str(new_uts)], check=True, capture_output=True).stdout)
    assert fork_of(sensor, pid).fork.clone_flags & 0xFF000000 == new_uts
    assert sensor.one(pid, EXIT).process.uts_ns != oracle.namespace(os.getpid(), "uts")


def test_a_fork_by_a_thread_names_the_thread(sensor: Sensor) -> None:
    found: list[int] = []

    def act() -> None:
        ctypes.CDLL(None).prctl(PR_SET_NAME, b"forker", 0, 0, 0)
        found.extend([threading.get_native_id(), os.posix_spawn("/bin/true", ["true"], {})])

    thread = threading.Thread(target=act)
    thread.start()
    thread.join()
    tid, child = found
    os.waitpid(child, 0)
    event = fork_of(sensor, child)
    assert (event.process.pid, event.process.tid, event.process.comm) == (os.getpid(), tid, b"forker")
    assert event.process.start_boottime_ns // oracle.TICK_NS == oracle.start_ticks(os.getpid())
    assert sensor.one(child, EXEC).process.ppid == os.getpid()


def test_threads_are_neither_forks_nor_exits(sensor: Sensor, acts: Acts) -> None:
    pid, status = run(str(acts.path("threads")), "many", "20")
    assert status == 0
    sensor.one(pid, EXIT)
    assert not sensor.of(pid, FORK)
    assert len([e for e in sensor.events if e.type == EXIT and e.process.pid == pid]) == 1


@pytest.mark.parametrize("code", [0, 1, 42, 127, 255])
def test_an_exit_code_is_told(sensor: Sensor, code: int) -> None:
    pid, status = run("/bin/sh", "-c", f"exit {code}")
    event = sensor.one(pid, EXIT)
    check_status(event, status)
    assert (event.exit.code, event.exit.signal) == (code, 0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGRTMIN + 3])
def test_an_end_by_signal_is_told(sensor: Sensor, acts: Acts, number: int) -> None:
    pid, status = run(str(acts.path("die")), str(int(number)), "0")
    event = sensor.one(pid, EXIT)
    check_status(event, status)
    assert (event.exit.code, event.exit.signal, event.exit.core_dumped) == (0, number, 0)


def test_a_core_dump_is_told(sensor: Sensor, acts: Acts, tmp_path: Path) -> None:
    pid, status = run(str(acts.path("die")), str(int(signal.SIGABRT)), str(1 << 30), cwd=tmp_path)
    event = sensor.one(pid, EXIT)
    check_status(event, status)
    assert event.exit.signal == signal.SIGABRT
    if not os.WCOREDUMP(status):
        pytest.skip("CORE DUMPS ARE NOT TESTED: this host dumps none (see core_pattern)")
    assert event.exit.core_dumped == 1


def test_an_exit_has_its_process_as_proc_showed_it(sensor: Sensor, acts: Acts) -> None:
    hold = str(acts.path("hold"))
    with Held([hold, "code", "7"], cwd="/usr", env={"A": "b"}) as held:
        expected = oracle.task(held.pid) | oracle.image(held.pid) | {"tid": held.pid}
        execed = sensor.one(held.pid, EXEC)
        assert held.release() == 7
    event = sensor.one(held.pid, EXIT)
    oracle.check(event.process, expected)
    assert event.exit.code == 7
    assert same_image(event.process, execed.process)
    assert event.parent.pid == os.getpid()
    assert same_image(event.parent, execed.parent)
    assert event.flags == 0


def test_run_time_is_from_start_to_end(sensor: Sensor) -> None:
    before = boottime_ns()
    child = fork_and(lambda: time.sleep(0.05))
    os.waitpid(child, 0)
    after = boottime_ns()
    event = sensor.one(child, EXIT)
    assert 50_000_000 <= event.exit.run_time_ns <= after - before
    assert abs(event.process.start_boottime_ns + event.exit.run_time_ns - event.boottime_ns) < 1_000_000


def test_children_that_never_execute_inherit_the_image_over_generations(sensor: Sensor) -> None:
    said = os.pipe()

    def have_child() -> None:
        grandchild = fork_and(lambda: os.write(said[1], b"%d " % os.getpid()))
        os.waitpid(grandchild, 0)

    child = fork_and(have_child)
    os.waitpid(child, 0)
    grandchild = int(os.read(said[0], 16))
    for end in said:
        os.close(end)
    mine = fork_of(sensor, child).process
    first, second = sensor.one(child, EXIT), sensor.one(grandchild, EXIT)
    assert mine.exe == os.readlink(b"/proc/self/exe")
    for process in (first.process, second.process, second.parent, first.parent, fork_of(sensor, grandchild).process):
        assert same_image(process, mine), process
    assert (first.process.ppid, second.process.ppid, second.parent.pid) == (os.getpid(), child, child)
    assert second.parent.start_boottime_ns == first.process.start_boottime_ns
    assert first.flags == second.flags == 0


def test_a_child_keeps_the_image_it_was_forked_with_when_its_parent_executes(sensor: Sensor, acts: Acts) -> None:
    hold = str(acts.path("hold"))
    script = f"(read line; exit 5) & echo $!; exec {hold}"
    with Held(["/bin/sh", "-c", script], says_pid=True) as held:
        child = held.said
    execed = sensor.one(held.pid, EXEC, count=2)
    event = sensor.one(child, EXIT)
    assert event.process.exe == os.fsencode(Path("/bin/sh").resolve())
    assert event.process.argv == f"/bin/sh\0-c\0{script}\0".encode()
    assert execed.process.exe == hold.encode()


def test_credentials_at_exit_are_those_of_the_end(sensor: Sensor) -> None:
    def change() -> None:
        os.setresgid(2001, 2002, 2003)
        os.setresuid(1001, 1002, 1003)

    child = fork_and(change)
    assert os.waitpid(child, 0)[1] == 0
    process = sensor.one(child, EXIT).process
    assert (process.uid, process.euid, process.suid) == (1001, 1002, 1003)
    assert (process.gid, process.egid, process.sgid) == (2001, 2002, 2003)
    assert (process.cap_effective, process.cap_permitted) == (0, 0)


def test_a_changed_name_is_told_at_exit(sensor: Sensor) -> None:
    child = fork_and(lambda: ctypes.CDLL(None).prctl(PR_SET_NAME, b"other \xff name", 0, 0, 0))
    os.waitpid(child, 0)
    assert sensor.one(child, EXIT).process.comm == b"other \xff name"


def test_a_group_exit_by_a_thread_is_one_exit_with_its_code(sensor: Sensor, acts: Acts) -> None:
    pid, status = run(str(acts.path("threads")), "group", "9")
    event = sensor.one(pid, EXIT)
    check_status(event, status)
    assert event.exit.code == 9
    sensor.settle()
    assert len(sensor.of(pid, EXIT)) == 1


def test_when_the_leader_ends_first_the_last_thread_tells_the_exit(sensor: Sensor, acts: Acts) -> None:
    before = boottime_ns()
    pid, status = run(str(acts.path("threads")), "last", "3", "5")
    event = sensor.one(pid, EXIT)
    check_status(event, status)
    assert event.process.pid == pid
    assert event.process.tid != pid
    assert event.process.comm == b"the-last"
    assert event.process.exe == os.fsencode(acts.path("threads").resolve())
    assert before < event.process.start_boottime_ns < sensor.one(pid, EXEC).boottime_ns
    sensor.settle()
    assert len(sensor.of(pid, EXIT)) == 1


def test_fork_exec_exit_come_in_that_order_with_one_key(sensor: Sensor) -> None:
    pid, _ = run("/bin/true")
    ended, execed, forked = sensor.one(pid, EXIT), sensor.one(pid, EXEC), fork_of(sensor, pid)
    assert forked.fork.child_start_boottime_ns == execed.process.start_boottime_ns == ended.process.start_boottime_ns
    assert forked.boottime_ns < execed.boottime_ns < ended.boottime_ns
    order = [sensor.events.index(event) for event in (forked, execed, ended)]
    assert order == sorted(order)


def test_events_of_one_cpu_are_numbered_without_gaps(sensor: Sensor) -> None:
    for _ in range(20):
        run("/bin/true")
    sensor.settle()
    last: dict[int, tuple[int, int]] = {}
    for event in sensor.events:
        if event.cpu in last:
            sequence, at = last[event.cpu]
            assert event.cpu_sequence == sequence + 1
            assert event.boottime_ns >= at
        last[event.cpu] = (event.cpu_sequence, event.boottime_ns)
    assert last
