"""Namespaces, mounts and root directories: each system call, made in a mount namespace of the test's own."""

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest

from kernel import oracle  # type: ignore[import-not-found]
from kernel.acting import Acts, fork_and  # type: ignore[import-not-found]
from kernel.sensing import Sensor  # type: ignore[import-not-found]
from kernel.telling import AT_FDCWD, answer, body_of, check_body, expect, told, told_types  # type: ignore[import-not-found]
from tocsin.api.event.v1 import event_pb2

NAMESPACE, MOUNT = event_pb2.EVENT_TYPE_NAMESPACE, event_pb2.EVENT_TYPE_MOUNT
UMOUNT, CHROOT = event_pb2.EVENT_TYPE_UMOUNT, event_pb2.EVENT_TYPE_CHROOT
PIVOT_ROOT = event_pb2.EVENT_TYPE_PIVOT_ROOT
CUT, GIVEN = event_pb2.PATH_FLAG_PATH_TRUNCATED, event_pb2.PATH_FLAG_PATH_AS_GIVEN
SOURCE_GIVEN = event_pb2.PATH_FLAG_SOURCE_AS_GIVEN
NOBODY = 65534

NEW_TIME, NEW_NS, NEW_CGROUP, NEW_UTS = 0x80, 0x20000, 0x2000000, 0x4000000
NEW_IPC, NEW_USER, NEW_PID, NEW_NET = 0x8000000, 0x10000000, 0x20000000, 0x40000000
CLONE_FILES = 0x400
KINDS = {"mnt": NEW_NS, "uts": NEW_UTS, "ipc": NEW_IPC, "net": NEW_NET, "cgroup": NEW_CGROUP, "user": NEW_USER}
MS_BIND, MS_REMOUNT, MS_MOVE, MS_REC, MS_PRIVATE, MS_RDONLY = 0x1000, 0x20, 0x2000, 0x4000, 0x40000, 1
MNT_DETACH = 2
FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE = 1, 6
F_EMPTY_PATH, T_EMPTY_PATH = 0x4, 0x40
OPEN_TREE_CLONE = 1


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder that everybody may enter, with folders in it."""
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    for name in ("from", "to", "root"):
        (tmp_path / name).mkdir()
    return tmp_path


def as_nobody() -> None:
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def apart(act: Callable[[], object]) -> Callable[[], object]:
    """The act in a mount namespace of the child's own, from which nothing spreads: one unshare and one mount first."""

    def act_apart() -> None:
        expect(0, answer("unshare", NEW_NS))
        expect(0, answer("mount", None, b"/", None, MS_REC | MS_PRIVATE, None))
        act()

    return act_apart


class Stranger:
    """A process with namespaces of its own that stands still."""

    def __init__(self, flags: int) -> None:
        ready, told_ready = os.pipe()

        def stand() -> None:
            expect(0, answer("unshare", flags))
            os.write(told_ready, b"x")
            signal.pause()

        self.pid = fork_and(stand)
        os.close(told_ready)
        self.made = os.read(ready, 1) == b"x"
        os.close(ready)

    def __enter__(self) -> Self:
        if not self.made:
            pytest.skip("SETNS IS NOT TESTED: the kernel has no such namespaces")
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


# ---- namespaces ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_an_unshare_is_told_and_the_process_shows_the_new_namespace(sensor: Sensor, name: str) -> None:
    said = os.pipe()

    def act() -> None:
        expect(0, answer("unshare", KINDS[name] | CLONE_FILES))
        os.write(said[1], b"%d" % oracle.namespace(os.getpid(), name))

    event = told(sensor, NAMESPACE, act)
    check_body(event, clone_flags=KINDS[name])
    inode = int(os.read(said[0], 32))
    assert getattr(event.process, f"{name}_ns") == inode
    assert inode != oracle.namespace(os.getpid(), name)
    assert event.process.comm == Path("/proc/self/comm").read_bytes()[:-1]


def test_an_unshare_of_several_namespaces_is_one_event(sensor: Sensor) -> None:
    flags = NEW_NS | NEW_PID | NEW_NET | NEW_TIME
    check_body(told(sensor, NAMESPACE, lambda: expect(0, answer("unshare", flags))), clone_flags=flags)


def test_an_unshare_without_namespaces_is_not_told(sensor: Sensor) -> None:
    assert told_types(sensor, lambda: expect(0, answer("unshare", CLONE_FILES))) == []
    assert told_types(sensor, lambda: expect(-errno.EINVAL, answer("unshare", NEW_NS | 1))) == []


def test_a_refused_unshare_is_told(sensor: Sensor) -> None:
    def act() -> None:
        as_nobody()
        expect(-errno.EPERM, answer("unshare", NEW_NET))

    event = told(sensor, NAMESPACE, act)
    check_body(event, error=errno.EPERM, clone_flags=NEW_NET)
    assert event.process.net_ns == event.parent.net_ns


@pytest.mark.parametrize("name", ["uts", "ipc", "net", "cgroup", "mnt"])
@pytest.mark.parametrize("named", [True, False])
def test_entering_a_namespace_by_its_file_tells_its_kind(sensor: Sensor, name: str, named: bool) -> None:
    with Stranger(KINDS[name]) as other:
        fd = os.open(f"/proc/{other.pid}/ns/{name}", os.O_RDONLY)
        inode = os.fstat(fd).st_ino
        event = told(sensor, NAMESPACE, lambda: expect(0, answer("setns", fd, KINDS[name] if named else 0)))
        os.close(fd)
    check_body(event, entered=1, clone_flags=KINDS[name])
    assert getattr(event.process, f"{name}_ns") == inode


def test_entering_namespaces_by_a_process_is_told(sensor: Sensor) -> None:
    with Stranger(NEW_UTS | NEW_IPC) as other:
        fd = os.pidfd_open(other.pid)
        inode = oracle.namespace(other.pid, "uts")
        event = told(sensor, NAMESPACE, lambda: expect(0, answer("setns", fd, NEW_UTS | NEW_IPC)))
        os.close(fd)
    check_body(event, entered=1, clone_flags=NEW_UTS | NEW_IPC)
    assert event.process.uts_ns == inode


def test_a_refused_setns_is_told_and_a_wrong_one_is_not(sensor: Sensor) -> None:
    fd = os.open("/proc/self/ns/net", os.O_RDONLY)

    def refused() -> None:
        as_nobody()
        expect(-errno.EPERM, answer("setns", fd, 0))

    check_body(told(sensor, NAMESPACE, refused), error=errno.EPERM, entered=1, clone_flags=NEW_NET)
    assert told_types(sensor, lambda: expect(-errno.EINVAL, answer("setns", fd, NEW_UTS))) == []
    os.close(fd)


# ---- mounts -------------------------------------------------------------------------------------


def test_a_mount_is_told_with_source_type_and_flags(sensor: Sensor, place: Path) -> None:
    act = apart(lambda: expect(0, answer("mount", b"a-device", place / "to", b"tmpfs", MS_RDONLY | 0xC0ED0000, None)))
    event = told(sensor, MOUNT, act, 2)
    check_body(
        event,
        flags=MS_RDONLY,
        path=os.fsencode(place / "to"),
        path_flags=GIVEN,
        source=b"a-device",
        filesystem=b"tmpfs",
    )
    assert event.process.mnt_ns != event.parent.mnt_ns
    private = sensor.of(event.process.pid, MOUNT)[0]
    check_body(private, flags=MS_REC | MS_PRIVATE, path=b"/", path_flags=GIVEN)


def test_a_bind_mount_has_both_paths_made_absolute(sensor: Sensor, place: Path) -> None:
    def act() -> None:
        os.chdir(place)
        expect(0, answer("mount", b"from", b"./to", None, MS_BIND | MS_REC, None))

    event = told(sensor, MOUNT, apart(act), 2)
    check_body(
        event,
        flags=MS_BIND | MS_REC,
        path=os.fsencode(place) + b"/./to",
        source=os.fsencode(place / "from"),
        path_flags=GIVEN | SOURCE_GIVEN,
    )


def test_a_remounted_bind_has_no_path_as_source(sensor: Sensor, place: Path) -> None:
    flags = MS_BIND | MS_REMOUNT | MS_RDONLY

    def act() -> None:
        expect(0, answer("mount", place / "from", place / "to", None, MS_BIND, None))
        expect(0, answer("mount", b"none", place / "to", None, flags, None))

    event = told(sensor, MOUNT, apart(act), 3)
    check_body(event, flags=flags, path=os.fsencode(place / "to"), path_flags=GIVEN, source=b"none")


def test_a_moved_mount_is_told(sensor: Sensor, place: Path) -> None:
    def act() -> None:
        expect(0, answer("mount", b"none", place / "from", b"tmpfs", 0, None))
        expect(0, answer("mount", place / "from", place / "to", None, MS_MOVE, None))

    event = told(sensor, MOUNT, apart(act), 3)
    paths = {"path": os.fsencode(place / "to"), "source": os.fsencode(place / "from")}
    check_body(event, flags=MS_MOVE, path_flags=GIVEN | SOURCE_GIVEN, **paths)


def test_move_mount_by_paths_is_told(sensor: Sensor, place: Path) -> None:
    def act() -> None:
        expect(0, answer("mount", b"none", place / "from", b"tmpfs", 0, None))
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        expect(0, answer("move_mount", fd, b"from", fd, b"to", 0))

    paths = {"path": os.fsencode(place / "to"), "source": os.fsencode(place / "from")}
    check_body(told(sensor, MOUNT, apart(act), 3), path_flags=GIVEN | SOURCE_GIVEN, **paths)


def test_move_mount_of_a_new_file_system_tells_device_and_type(sensor: Sensor, place: Path) -> None:
    def act() -> None:
        context = answer("fsopen", b"tmpfs", 0)
        expect(0, answer("fsconfig", context, FSCONFIG_SET_STRING, b"source", b"a-device", 0))
        expect(0, answer("fsconfig", context, FSCONFIG_CMD_CREATE, None, None, 0))
        made = answer("fsmount", context, 0, 0)
        target = os.open(place / "to", os.O_RDONLY | os.O_DIRECTORY)
        expect(0, answer("move_mount", made, b"", target, b"", F_EMPTY_PATH | T_EMPTY_PATH))

    event = told(sensor, MOUNT, apart(act), 2)
    check_body(
        event,
        flags=F_EMPTY_PATH | T_EMPTY_PATH,
        path=os.fsencode(place / "to"),
        source=b"a-device",
        filesystem=b"tmpfs",
    )


def test_move_mount_of_a_cloned_tree_tells_the_directory_in_its_file_system(sensor: Sensor, place: Path) -> None:
    def act() -> None:
        expect(0, answer("mount", b"none", place / "from", b"tmpfs", 0, None))
        (place / "from/one/two").mkdir(parents=True)
        tree = answer("open_tree", AT_FDCWD, place / "from/one/two", OPEN_TREE_CLONE)
        expect(0, answer("move_mount", tree, b"", AT_FDCWD, place / "to", F_EMPTY_PATH))

    event = told(sensor, MOUNT, apart(act), 3)
    check_body(
        event,
        flags=F_EMPTY_PATH,
        path=os.fsencode(place / "to"),
        path_flags=GIVEN,
        source=b"/one/two",
        filesystem=b"tmpfs",
    )


def test_a_refused_mount_is_told_and_a_wrong_one_is_not(sensor: Sensor, place: Path) -> None:
    def refused() -> None:
        as_nobody()
        expect(-errno.EPERM, answer("mount", b"a-device", place / "to", b"tmpfs", 0, None))

    expected = {"path": os.fsencode(place / "to"), "source": b"a-device", "filesystem": b"tmpfs"}
    check_body(told(sensor, MOUNT, refused), error=errno.EPERM, path_flags=GIVEN, **expected)

    def wrong() -> None:
        expect(-errno.ENODEV, answer("mount", b"none", place / "to", b"no-such-type", 0, None))
        expect(-errno.EINVAL, answer("umount2", place / "to", 0))

    assert told_types(sensor, wrong) == []


def test_an_unmount_is_told_with_its_flags(sensor: Sensor, place: Path) -> None:
    def act() -> None:
        expect(0, answer("mount", b"none", place / "to", b"tmpfs", 0, None))
        os.chdir(place)
        expect(0, answer("umount2", b"to", MNT_DETACH))

    event = told(sensor, UMOUNT, apart(act))
    check_body(event, flags=MNT_DETACH, path=os.fsencode(place / "to"), path_flags=GIVEN)


def test_an_unmount_of_the_own_directory_has_lost_its_beginning(sensor: Sensor, place: Path) -> None:
    def act() -> None:
        expect(0, answer("mount", b"none", place / "to", b"tmpfs", 0, None))
        os.chdir(place / "to")
        expect(0, answer("umount2", b".", MNT_DETACH))

    check_body(told(sensor, UMOUNT, apart(act)), flags=MNT_DETACH, path=b"/.", path_flags=GIVEN | CUT)


def test_a_refused_unmount_is_told(sensor: Sensor) -> None:
    def act() -> None:
        as_nobody()
        expect(-errno.EPERM, answer("umount2", b"/proc", 0))

    check_body(told(sensor, UMOUNT, act), error=errno.EPERM, path=b"/proc", path_flags=GIVEN)


def test_the_old_unmount_of_32_bit_processes_has_no_flags(sensor: Sensor, acts: Acts, place: Path) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("32-BIT CALLS ARE NOT TESTED: only x86-64 has int 0x80")
    program = str(acts.path("int80"))

    def act() -> None:
        expect(0, answer("mount", b"none", place / "to", b"tmpfs", 0, None))
        os.execv(program, [program, "22", f"s:{place}/to", "7"])

    check_body(told(sensor, UMOUNT, apart(act)), path=os.fsencode(place / "to"), path_flags=GIVEN)


# ---- root directories ---------------------------------------------------------------------------


def test_a_chroot_is_told_with_the_kernels_path(sensor: Sensor, place: Path) -> None:
    (place / "link").symlink_to("root")

    def act() -> None:
        os.chdir(place)
        os.chroot("./link")

    check_body(told(sensor, CHROOT, act), path=os.fsencode(place / "root"))


def test_a_chroot_in_a_chroot_is_told_from_the_hosts_root(sensor: Sensor, place: Path) -> None:
    def act() -> None:
        os.chroot(place)
        os.chroot("/root")

    check_body(told(sensor, CHROOT, act, 2), path=os.fsencode(place / "root"))


def test_a_refused_chroot_is_told_and_a_missing_directory_is_not(sensor: Sensor, place: Path) -> None:
    def act() -> None:
        as_nobody()
        os.chdir(place)
        expect(-errno.EPERM, answer("chroot", b"root"))

    check_body(told(sensor, CHROOT, act), error=errno.EPERM, path=os.fsencode(place / "root"), path_flags=GIVEN)
    assert told_types(sensor, lambda: expect(-errno.ENOENT, answer("chroot", place / "missing"))) == []


@pytest.mark.parametrize("old", [b"./old", b"."])
def test_a_pivot_root_is_told_as_it_was_passed(sensor: Sensor, place: Path, old: bytes) -> None:
    def act() -> None:
        expect(0, answer("mount", b"none", place / "root", b"tmpfs", 0, None))
        (place / "root/old").mkdir()
        os.chdir(place / "root")
        expect(0, answer("pivot_root", b".", old))

    event = told(sensor, PIVOT_ROOT, apart(act))
    check_body(event, path=b".", source=old, path_flags=GIVEN | SOURCE_GIVEN)


def test_a_refused_pivot_root_has_absolute_paths(sensor: Sensor, place: Path) -> None:
    def act() -> None:
        as_nobody()
        os.chdir(place)
        expect(-errno.EPERM, answer("pivot_root", b"root", b"to"))

    paths = {"path": os.fsencode(place / "root"), "source": os.fsencode(place / "to")}
    check_body(told(sensor, PIVOT_ROOT, act), error=errno.EPERM, path_flags=GIVEN | SOURCE_GIVEN, **paths)


def test_a_file_that_is_written_after_a_pivot_has_its_path_in_the_new_root(sensor: Sensor, place: Path) -> None:
    def act() -> None:
        expect(0, answer("mount", b"none", place / "root", b"tmpfs", 0, None))
        (place / "root/old").mkdir()
        expect(0, answer("pivot_root", place / "root", place / "root/old"))
        os.chdir("/")
        expect(0, min(answer("creat", b"new", 0o600), 0))
        expect(0, answer("unlink", b"new"))

    pid = told(sensor, PIVOT_ROOT, apart(act)).process.pid
    made = sensor.one(pid, event_pb2.EVENT_TYPE_FILE_CREATE)
    removed = sensor.one(pid, event_pb2.EVENT_TYPE_FILE_DELETE)
    assert [body_of(event).path for event in (made, removed)] == [b"/new", b"/new"]
