"""Ways to keep the sensor from seeing what is done, each tried for real.

Elsewhere: argv behind padding, rewritten, by a thread, after vfork; memfd, deleted programs, chroot
(test_exec); io_uring (test_io_uring); int $0x80 for each family (test_file and others); processes of the agent that
are killed (tests/system/test_agent.py).
"""

import ctypes
import errno
import os
import platform
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kernel import oracle, uring  # type: ignore[import-not-found]
from kernel.acting import Acts, Held, fork_and  # type: ignore[import-not-found]
from kernel.calling import LIBC, compat, ended, number  # type: ignore[import-not-found]
from kernel.sensing import EXEC, EXIT, FORK, Sensor  # type: ignore[import-not-found]
from kernel.telling import told, told_types  # type: ignore[import-not-found]
from tocsin.api.event.v1 import event_pb2
from tocsin.config import FilterConfig, SensorConfig
from tocsin.kernel import libbpf

WRITE = event_pb2.EVENT_TYPE_FILE_WRITE
LAST_PID = Path("/proc/sys/kernel/ns_last_pid")
X32_BIT = 0x40000000
CLONE_NEWNS, MS_BIND, MS_PRIVATE_EVERYWHERE = 0x20000, 0x1000, 0x44000
PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 15, 36
SWAPS = 2000
TRIES = 200
GENERATIONS = 8


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file whose writing is told."""
    path = tmp_path / "file"
    path.touch()
    return path


# ---- what is executed ---------------------------------------------------------------------------


def test_an_exec_by_a_descriptors_name_shows_the_program(sensor: Sensor, acts: Acts, tmp_path: Path) -> None:
    program = acts.copy("hold", tmp_path / "program")
    descriptor = os.open(program, os.O_RDONLY)
    with Held(["harmless"], program=f"/proc/self/fd/{descriptor}", pass_fds=[descriptor]) as held:
        event = sensor.one(held.pid, EXEC)
    os.close(descriptor)
    assert event.process.exe == os.fsencode(program)
    assert event.exec.filename == b"/proc/self/fd/%d" % descriptor


def test_an_exec_of_memory_without_a_path_is_told_as_such(sensor: Sensor) -> None:
    memory = os.memfd_create("harmless", 0)
    os.write(memory, Path("/bin/true").read_bytes())
    pid = ended(fork_and(lambda: os.execve(memory, ["/usr/bin/less"], {})))  # execveat with AT_EMPTY_PATH
    event = sensor.one(pid, EXEC)
    os.close(memory)
    assert event.process.exe == b"/memfd:harmless"
    assert event.process.argv == b"/usr/bin/less\0"
    assert event.exec.filename == b"/dev/fd/%d" % memory
    assert event.exec.exec_flags & event_pb2.EXEC_FLAG_DELETED


def test_an_exec_through_a_symlink_and_a_bind_mount_in_another_namespace_shows_the_mounted_path(
    sensor: Sensor, acts: Acts, tmp_path: Path
) -> None:
    acts.copy("hold", tmp_path / "program")
    (tmp_path / "mounted").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "mounted" / "program")

    def mounts() -> None:
        assert LIBC.unshare(CLONE_NEWNS) == 0
        assert LIBC.mount(b"none", b"/", None, MS_PRIVATE_EVERYWHERE, None) == 0
        assert LIBC.mount(os.fsencode(tmp_path), os.fsencode(tmp_path / "mounted"), None, MS_BIND, None) == 0

    with Held(["x"], program=os.fsencode(tmp_path / "link"), before_exec=mounts) as held:
        event = sensor.one(held.pid, EXEC)
        assert event.process.exe == os.fsencode(tmp_path / "mounted" / "program")
        assert event.process.mnt_ns == oracle.namespace(held.pid, "mnt")
    assert event.process.mnt_ns != oracle.namespace(os.getpid(), "mnt")
    assert event.process.exe_inode == (tmp_path / "program").stat().st_ino


def test_a_32_bit_exec_is_told(sensor: Sensor, acts: Acts) -> None:
    with subprocess.Popen([str(acts.path("int80")), "11", "s:/bin/true", "0", "0"]) as process:
        assert process.wait(10) == 0
    event = sensor.one(process.pid, EXEC, count=2)
    assert event.process.exe == os.fsencode(Path("/bin/true").resolve())


# ---- which file ---------------------------------------------------------------------------------


def test_a_path_that_changes_while_it_is_opened_is_told_as_the_file_that_was_opened(
    sensor: Sensor, acts: Acts, tmp_path: Path
) -> None:
    (tmp_path / "file-a").touch()
    (tmp_path / "file-b").write_bytes(b"b")
    done = subprocess.Popen([str(acts.path("swap_path")), str(tmp_path / "file-a"), str(SWAPS)], stdout=subprocess.PIPE)
    opened, _ = done.communicate(timeout=30)
    assert done.returncode == 0
    sensor.settle()
    assert len(opened) == SWAPS
    assert b"".join(event.file_write.path[-1:] for event in sensor.of(done.pid, WRITE)) == opened
    inodes = {path: (tmp_path / f"file-{path}").stat().st_ino for path in "ab"}
    assert [event.file_write.inode for event in sensor.of(done.pid, WRITE)] == [inodes[c] for c in opened.decode()]


def test_a_file_behind_a_bind_mount_in_another_namespace_is_told_with_that_path(sensor: Sensor, file: Path) -> None:
    mounted = file.parent / "mounted"
    mounted.mkdir()

    def act() -> None:
        assert LIBC.unshare(CLONE_NEWNS) == 0
        assert LIBC.mount(b"none", b"/", None, MS_PRIVATE_EVERYWHERE, None) == 0
        assert LIBC.mount(os.fsencode(file.parent), os.fsencode(mounted), None, MS_BIND, None) == 0
        os.open(mounted / "file", os.O_WRONLY)

    event = told(sensor, WRITE, act)
    assert event.file_write.path == os.fsencode(mounted / "file")
    assert event.file_write.inode == file.stat().st_ino
    assert event.process.mnt_ns != event.parent.mnt_ns


# ---- which call ---------------------------------------------------------------------------------


def test_a_32_bit_program_is_told(sensor: Sensor, acts: Acts, file: Path) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("32-BIT PROGRAMS ARE NOT TESTED: the test's is for x86")
    with subprocess.Popen([str(acts.path("open32")), str(file)]) as process:
        assert process.wait(10) == 0
    event = sensor.one(process.pid, WRITE)
    assert event.file_write.path == os.fsencode(file)
    assert event.process.argv == b"\0".join((os.fsencode(acts.path("open32")), os.fsencode(file), b""))


def test_32_bit_calls_of_a_64_bit_program_are_told(sensor: Sensor, acts: Acts, file: Path) -> None:
    pid, results = compat(acts.path("int80"), (5, f"s:{file}", os.O_WRONLY))
    assert results[0] >= 0
    assert sensor.one(pid, WRITE).file_write.path == os.fsencode(file)


def test_the_x32_bit_in_a_calls_number_hides_nothing(sensor: Sensor, file: Path) -> None:
    """A kernel without that interface does nothing; then there is nothing to tell."""
    said, gate = os.pipe()

    def act() -> None:
        opened = LIBC.syscall(
            ctypes.c_long(X32_BIT | number("openat")),
            ctypes.c_long(-100),
            os.fsencode(file),
            ctypes.c_long(os.O_WRONLY),
        )
        os.write(gate, b"%d" % (opened if opened >= 0 else -ctypes.get_errno()))

    names = told_types(sensor, act)
    result = int(os.read(said, 16))
    for end in (said, gate):
        os.close(end)
    assert (result, names) == (-errno.ENOSYS, []) or (result >= 0 and names == ["FILE_WRITE"])


def test_an_open_and_a_connect_through_io_uring_are_told(sensor: Sensor, file: Path) -> None:
    """Nothing but the two calls of io_uring is made. More: test_io_uring."""
    uring.need(uring.OPENAT, uring.CONNECT)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        address = server.getsockname()[1].to_bytes(2, "big") + socket.inet_aton("127.0.0.1") + bytes(8)

        def act() -> None:
            with uring.Ring() as ring:
                done = ring.do(
                    uring.Request(uring.OPENAT, addr=os.fsencode(file), op_flags=os.O_WRONLY, flags=uring.IO_LINK),
                    uring.Request(uring.CONNECT, fd=client.fileno(), addr=b"\2\0" + address, addr2=16),
                )
                assert min(done) >= 0, done

        assert set(told_types(sensor, act)) == {"FILE_WRITE", "TCP_CONNECT"}


# ---- who ----------------------------------------------------------------------------------------


def test_a_double_fork_keeps_the_ancestors(sensor: Sensor, acts: Acts, tmp_path: Path) -> None:
    """The process in the middle is gone, and its child another's, when that one executes."""
    daemon = acts.copy("hold", tmp_path / "daemon")
    script = f"({daemon} </dev/null >/dev/null 2>&1 & echo $!)"
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        pid = int(subprocess.run(["/bin/sh", "-c", script], stdout=subprocess.PIPE, check=True, timeout=10).stdout)
        os.waitpid(pid, 0)
    finally:
        LIBC.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    last = sensor.one(pid, EXIT).process
    shell_exe = os.fsencode(Path("/bin/sh").resolve())
    assert last.exe == os.fsencode(daemon)
    assert last.ancestors.split(b"\0")[:2] == [shell_exe, shell_exe]


def same_pid(pid: int, act: Callable[[], object]) -> None:
    """Does `act` in a child that has this number again."""
    for _ in range(TRIES):
        LAST_PID.write_text(str(pid - 1))
        child = fork_and(lambda: act() if os.getpid() == pid else None)
        ended(child)
        if child == pid:
            return
    pytest.skip("REUSED PIDS ARE NOT TESTED: other processes are always first to take the number")


def test_a_pid_that_is_used_again_has_not_the_image_of_who_had_it_before(sensor: Sensor, hold: str, file: Path) -> None:
    if not LAST_PID.exists():
        pytest.skip("REUSED PIDS ARE NOT TESTED: this kernel has no ns_last_pid (CONFIG_CHECKPOINT_RESTORE)")
    with Held([hold, "before"]) as held:
        before = sensor.one(held.pid, EXEC).process
    sensor.one(held.pid, EXIT)
    same_pid(held.pid, lambda: os.open(file, os.O_WRONLY))
    after = sensor.one(held.pid, WRITE).process
    assert (before.exe, after.exe) == (os.fsencode(hold), os.readlink(b"/proc/self/exe"))
    assert after.start_boottime_ns > before.start_boottime_ns
    assert b"before" not in after.argv


@pytest.fixture
def hold(acts: Acts) -> str:
    return str(acts.path("hold"))


def test_a_process_that_takes_an_excluded_name_is_not_told_any_more(file: Path) -> None:
    """A limit that the setting names: any process can take such a name. Its end shows it."""
    sensor = Sensor(SensorConfig(filters=FilterConfig(exclude_comms=("backup",))))

    def act() -> None:
        os.open(file, os.O_WRONLY)
        LIBC.prctl(PR_SET_NAME, b"backup", 0, 0, 0)
        os.open(file, os.O_WRONLY)

    try:
        pid = ended(fork_and(act))
        sensor.settle()
        assert len(sensor.of(pid, WRITE)) == 1
    finally:
        sensor.close()


# ---- how many -----------------------------------------------------------------------------------


SKIPPED = event_pb2.LOSS_REASON_SKIPPED
"""Of that a program which was not run knows nothing: the kernel counted it beside what was generated."""


def bomb(generations: int) -> None:
    """Doubles itself again and again."""
    for _ in range(generations):
        os.fork()
    time.sleep(0.2)


def test_a_fork_bomb_at_the_rings_limit_is_counted_whole_and_leaves_nothing_behind() -> None:
    sensor = Sensor(SensorConfig(ring_bytes=1 << 14), seed=False)
    try:
        group = os.fork()
        if group == 0:
            os.setpgid(0, 0)
            bomb(GENERATIONS)
            os._exit(0)
        LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        wait_for_all()
        counters = sensor.counted()
        for counter in counters.types:
            lost = sum(loss.count for loss in counter.lost if loss.reason != SKIPPED)
            seen = sum(1 for event in sensor.events if event.type == counter.event_type)
            assert counter.generated == seen + lost, counter
        forks = next(counter for counter in counters.types if counter.event_type == FORK)
        skipped = sum(loss.count for loss in forks.lost if loss.reason == SKIPPED)
        assert forks.generated + skipped >= (1 << GENERATIONS) - 1
        assert sum(loss.count for loss in forks.lost) > 0, "the ring was never full: the test tests nothing"
        assert counters.images_dropped == 0
        assert images(sensor) < len(os.listdir("/proc"))
    finally:
        LIBC.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        sensor.close()


def wait_for_all() -> None:
    """Until this process has no child any more."""
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


def images(sensor: Sensor) -> int:
    """Processes that the kernel side keeps an image of."""
    table = sensor.source._loaded.map_fd("images")
    key, count = ctypes.c_uint32(), 0
    found = libbpf.bpf().bpf_map_get_next_key(table, None, ctypes.byref(key))
    while found == 0:
        count += 1
        found = libbpf.bpf().bpf_map_get_next_key(table, ctypes.byref(key), ctypes.byref(key))
    return count
