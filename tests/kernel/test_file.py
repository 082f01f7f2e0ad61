"""Files: each system call of the file programs, each way to name a file, what is told and what is not."""

import ctypes
import errno
import mmap
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kernel.acting import Acts, fork_and  # type: ignore[import-not-found]
from kernel.calling import compat, ended  # type: ignore[import-not-found]
from kernel.sensing import Sensor  # type: ignore[import-not-found]
from kernel.telling import (  # type: ignore[import-not-found]
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_SYMLINK_NOFOLLOW,
    answer,
    body_of,
    check_body,
    expect,
    told,
    told_types,
)
from tocsin.api.event.v1 import event_pb2
from tocsin.config import FilterConfig, SensorConfig

WRITE, CREATE, READ = (
    event_pb2.EVENT_TYPE_FILE_WRITE,
    event_pb2.EVENT_TYPE_FILE_CREATE,
    event_pb2.EVENT_TYPE_FILE_READ,
)
DELETE, RENAME = event_pb2.EVENT_TYPE_FILE_DELETE, event_pb2.EVENT_TYPE_FILE_RENAME
LINK, SYMLINK = event_pb2.EVENT_TYPE_FILE_LINK, event_pb2.EVENT_TYPE_FILE_SYMLINK
CHMOD, CHOWN = event_pb2.EVENT_TYPE_FILE_CHMOD, event_pb2.EVENT_TYPE_FILE_CHOWN
XATTR, TRUNCATE = event_pb2.EVENT_TYPE_FILE_XATTR, event_pb2.EVENT_TYPE_FILE_TRUNCATE
TIMES, MKDIR = event_pb2.EVENT_TYPE_FILE_TIMES, event_pb2.EVENT_TYPE_DIRECTORY_CREATE
CUT, GIVEN = event_pb2.PATH_FLAG_PATH_TRUNCATED, event_pb2.PATH_FLAG_PATH_AS_GIVEN
SOURCE_GIVEN = event_pb2.PATH_FLAG_SOURCE_AS_GIVEN
UNKNOWN = 0xFFFFFFFF
NOBODY = 65534
UTIME_STRUCT = struct.pack("qqqq", 1, 2, 3, 4)

Told = tuple["event_pb2.EventType.ValueType", dict[str, bytes | int]]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder that everybody may enter, with a file in it."""
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    (tmp_path / "file").write_bytes(b"0123456789")
    return tmp_path


def of_file(path: Path | int) -> dict[str, bytes | int]:
    """What the kernel knows about a file, as stat tells it."""
    found = os.stat(path)
    return {
        "mode": found.st_mode,
        "inode": found.st_ino,
        "dev": os.major(found.st_dev) << 20 | os.minor(found.st_dev),
        "uid": found.st_uid,
        "gid": found.st_gid,
    }


def given(path: Path, **more: bytes | int) -> dict[str, bytes | int]:
    """A body that knows its file by the path only, which the process passed."""
    named: dict[str, bytes | int] = {"path": os.fsencode(path), "path_flags": GIVEN, "uid": UNKNOWN, "gid": UNKNOWN}
    return named | more


def as_nobody() -> None:
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


# ---- opening ------------------------------------------------------------------------------------

HOW = struct.pack("QQQ", os.O_WRONLY | os.O_CREAT, 0o640, 0)
OPENS: dict[str, tuple[Callable[[Path], int], int]] = {
    "open": (lambda p: answer("open", p, os.O_WRONLY | os.O_CREAT, 0o640), os.O_WRONLY | os.O_CREAT),
    "creat": (lambda p: answer("creat", p, 0o640), os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    "openat": (lambda p: answer("openat", AT_FDCWD, p, os.O_RDWR | os.O_CREAT, 0o640), os.O_RDWR | os.O_CREAT),
    "openat2": (lambda p: answer("openat2", AT_FDCWD, p, HOW, 24), os.O_WRONLY | os.O_CREAT),
}


@pytest.mark.parametrize("name", OPENS)
def test_an_open_that_makes_a_file_is_told_and_the_next_one_writes(sensor: Sensor, place: Path, name: str) -> None:
    opens, flags = OPENS[name]
    path = place / "new"
    for kind in (CREATE, WRITE):
        event = told(sensor, kind, lambda: expect(3, min(opens(path), 3)))
        check_body(event, path=os.fsencode(path), open_flags=flags, **of_file(path))


def test_a_file_without_a_name_is_told_as_made(sensor: Sensor, place: Path) -> None:
    event = told(sensor, CREATE, lambda: os.open(place, os.O_TMPFILE | os.O_RDWR, 0o600))
    body = event.file_create
    assert (body.open_flags & os.O_TMPFILE, body.mode, body.path_flags) == (os.O_TMPFILE, 0o100600, 0)
    assert body.path.startswith(os.fsencode(place) + b"/#")
    assert body.inode > 0


def test_an_open_for_reading_that_empties_the_file_is_told_as_writing(sensor: Sensor, place: Path) -> None:
    event = told(sensor, WRITE, lambda: os.open(place / "file", os.O_RDONLY | os.O_TRUNC))
    flags = os.O_TRUNC | os.O_CLOEXEC
    check_body(event, path=os.fsencode(place / "file"), open_flags=flags, **of_file(place / "file"))


@pytest.mark.parametrize(("flags", "kind"), [(os.O_WRONLY, WRITE), (os.O_RDONLY | os.O_TRUNC, WRITE)])
def test_a_refused_open_for_writing_is_told_with_its_error(
    sensor: Sensor, place: Path, flags: int, kind: "event_pb2.EventType.ValueType"
) -> None:
    def act() -> None:
        as_nobody()
        expect(-errno.EACCES, answer("openat", AT_FDCWD, place / "file", flags))

    event = told(sensor, kind, act)
    check_body(event, **given(place / "file", error=errno.EACCES, open_flags=flags))


def test_an_immutable_answer_is_told_and_a_missing_file_is_not(sensor: Sensor, place: Path) -> None:
    def missing() -> None:
        expect(-errno.ENOENT, answer("open", place / "missing", os.O_WRONLY))
        expect(-errno.ENOENT, answer("unlink", place / "missing"))
        expect(-errno.ENOENT, answer("chmod", place / "missing", 0o777))

    assert told_types(sensor, missing) == []
    event = told(sensor, DELETE, lambda: expect(-errno.EPERM, answer("unlink", Path("/proc/self/status"))))
    check_body(event, **given(Path("/proc/self/status"), error=errno.EPERM))


def test_an_open_through_a_symlink_shows_the_files_own_path(sensor: Sensor, place: Path) -> None:
    (place / "link").symlink_to("file")
    event = told(sensor, WRITE, lambda: answer("open", place / "link", os.O_WRONLY))
    check_body(event, path=os.fsencode(place / "file"), open_flags=os.O_WRONLY, **of_file(place / "file"))


def test_devices_pipes_and_descriptors_without_access_are_not_told(sensor: Sensor, place: Path) -> None:
    os.mkfifo(place / "fifo")

    def act() -> None:
        os.open("/dev/null", os.O_RDWR)
        os.open("/dev/zero", os.O_RDWR)
        os.open(place / "fifo", os.O_RDWR)
        os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
        os.open(place / "file", os.O_PATH)
        os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        os.pipe()
        socket.socketpair()

    assert told_types(sensor, act) == []


@pytest.mark.parametrize(
    ("name", "kind", "number"),
    [("loop", stat.S_IFBLK, os.makedev(7, 0)), ("mem", stat.S_IFCHR, os.makedev(1, 1))],
)
def test_a_block_device_and_the_memory_device_are_told(
    sensor: Sensor, place: Path, name: str, kind: int, number: int
) -> None:
    path = place / name
    os.mknod(path, kind | 0o600, number)
    try:
        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))
    except OSError as error:
        pytest.skip(f"OPENING THE DEVICE {name} IS NOT TESTED: {error.strerror}")
    event = told(sensor, WRITE, lambda: answer("open", path, os.O_RDWR | os.O_NONBLOCK))
    check_body(event, path=os.fsencode(path), open_flags=os.O_RDWR | os.O_NONBLOCK, **of_file(path))


# ---- names --------------------------------------------------------------------------------------


def named_acts(place: Path) -> dict[str, tuple[Callable[[], int], Told]]:
    """Each system call on names: what to do, and what must be told."""
    old, new, folder = place / "file", place / "new", place / "folder"
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    pair = given(new, source=os.fsencode(old)) | {"path_flags": GIVEN | SOURCE_GIVEN}
    link = given(new, source=b"../says/this")
    return {
        "unlink": (lambda: answer("unlink", old), (DELETE, given(old))),
        "unlinkat": (lambda: answer("unlinkat", fd, b"file", 0), (DELETE, given(old))),
        "unlinkat of a folder": (
            lambda: answer("unlinkat", fd, b"folder", 0x200),
            (DELETE, given(folder, open_flags=0x200)),
        ),
        "rmdir": (lambda: answer("rmdir", folder), (DELETE, given(folder))),
        "rename": (lambda: answer("rename", old, new), (RENAME, pair)),
        "renameat": (lambda: answer("renameat", fd, b"file", fd, b"new"), (RENAME, pair)),
        "renameat2": (lambda: answer("renameat2", fd, b"file", fd, b"new", 1), (RENAME, pair | {"open_flags": 1})),
        "link": (lambda: answer("link", old, new), (LINK, pair)),
        "linkat": (lambda: answer("linkat", fd, b"file", fd, b"new", 0x400), (LINK, pair | {"open_flags": 0x400})),
        "symlink": (lambda: answer("symlink", b"../says/this", new), (SYMLINK, link)),
        "symlinkat": (lambda: answer("symlinkat", b"../says/this", fd, b"new"), (SYMLINK, link)),
        "mkdir": (lambda: answer("mkdir", new, 0o1750), (MKDIR, given(new, mode=0o1750))),
        "mkdirat": (lambda: answer("mkdirat", fd, b"new", 0o700), (MKDIR, given(new, mode=0o700))),
        "mknod": (lambda: answer("mknod", new, 0o010600, 0), (CREATE, given(new, mode=0o010600))),
        "mknodat": (lambda: answer("mknodat", fd, b"new", 0o100640, 0), (CREATE, given(new, mode=0o100640))),
    }


NAMED = (
    *("unlink", "unlinkat", "unlinkat of a folder", "rmdir", "rename", "renameat", "renameat2", "link"),
    *("linkat", "symlink", "symlinkat", "mkdir", "mkdirat", "mknod", "mknodat"),
)


@pytest.mark.parametrize("name", NAMED)
def test_each_call_on_names_is_told_with_every_field(sensor: Sensor, place: Path, name: str) -> None:
    (place / "folder").mkdir()
    act, (kind, expected) = named_acts(place)[name]
    check_body(told(sensor, kind, lambda: expect(0, act())), **expected)


@pytest.mark.parametrize("name", NAMED)
def test_each_refused_call_on_names_is_told_with_its_error(sensor: Sensor, place: Path, name: str) -> None:
    (place / "folder").mkdir()
    act, (kind, expected) = named_acts(place)[name]

    def refused() -> None:
        as_nobody()
        got = act()
        expect(got if got in (-errno.EACCES, -errno.EPERM) else -errno.EACCES, got)

    event = told(sensor, kind, refused)
    assert event.process.euid == NOBODY
    check_body(event, **expected | {"error": body_of(event).error})
    assert body_of(event).error in (errno.EACCES, errno.EPERM)


def test_linking_a_descriptor_shows_the_kernels_path_as_source(sensor: Sensor, place: Path) -> None:
    fd = os.open(place / "file", os.O_RDONLY)
    event = told(sensor, LINK, lambda: expect(0, answer("linkat", fd, b"", AT_FDCWD, place / "new", AT_EMPTY_PATH)))
    os.close(fd)
    check_body(event, **given(place / "new", source=os.fsencode(place / "file"), open_flags=AT_EMPTY_PATH))


# ---- attributes ---------------------------------------------------------------------------------


def attribute_acts(place: Path) -> dict[str, tuple[Callable[[], int], Told]]:
    """Each system call on attributes: what to do, and what must be told, the file's own facts apart."""
    path = place / "file"
    fd = os.open(path, os.O_RDWR)
    # Not `user.`: tmpfs has those since 6.6 only.
    value = (b"trusted.tocsin", b"value", 5, 0)
    attribute: dict[str, bytes | int] = {"attribute": b"trusted.tocsin"}
    args = struct.pack("QII", 0, 0, 0)
    return {
        "chmod": (lambda: answer("chmod", path, 0o4711), (CHMOD, given(path, mode=0o4711))),
        "fchmod": (lambda: answer("fchmod", fd, 0o4711), (CHMOD, {})),
        "fchmodat": (lambda: answer("fchmodat", AT_FDCWD, path, 0o4711), (CHMOD, given(path, mode=0o4711))),
        "fchmodat2": (
            lambda: answer("fchmodat2", AT_FDCWD, path, 0o700, AT_SYMLINK_NOFOLLOW),
            (CHMOD, given(path, mode=0o700, open_flags=AT_SYMLINK_NOFOLLOW)),
        ),
        "fchmodat2 of a descriptor": (
            lambda: answer("fchmodat2", fd, b"", 0o700, AT_EMPTY_PATH),
            (CHMOD, {"open_flags": AT_EMPTY_PATH}),
        ),
        "chown": (lambda: answer("chown", path, 12, 34), (CHOWN, given(path, uid=12, gid=34))),
        "lchown": (lambda: answer("lchown", path, -1, 34), (CHOWN, given(path, uid=UNKNOWN, gid=34))),
        "fchown": (lambda: answer("fchown", fd, 12, -1), (CHOWN, {"uid": 12, "gid": UNKNOWN})),
        "fchownat": (
            lambda: answer("fchownat", AT_FDCWD, path, 12, 34, AT_SYMLINK_NOFOLLOW),
            (CHOWN, given(path, uid=12, gid=34, open_flags=AT_SYMLINK_NOFOLLOW)),
        ),
        "fchownat of a descriptor": (
            lambda: answer("fchownat", fd, b"", 12, 34, AT_EMPTY_PATH),
            (CHOWN, {"uid": 12, "gid": 34, "open_flags": AT_EMPTY_PATH}),
        ),
        "setxattr": (lambda: answer("setxattr", path, *value), (XATTR, given(path) | attribute)),
        "lsetxattr": (lambda: answer("lsetxattr", path, *value), (XATTR, given(path) | attribute)),
        "fsetxattr": (lambda: answer("fsetxattr", fd, *value), (XATTR, attribute)),
        "setxattrat": (
            lambda: answer("setxattrat", AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, b"trusted.tocsin", args, 16),
            (XATTR, given(path, open_flags=AT_SYMLINK_NOFOLLOW) | attribute),
        ),
        "removexattr": (
            lambda: answer("removexattr", path, b"trusted.there"),
            (XATTR, given(path, attribute=b"trusted.there")),
        ),
        "lremovexattr": (
            lambda: answer("lremovexattr", path, b"trusted.there"),
            (XATTR, given(path, attribute=b"trusted.there")),
        ),
        "fremovexattr": (
            lambda: answer("fremovexattr", fd, b"trusted.there"),
            (XATTR, {"attribute": b"trusted.there"}),
        ),
        "removexattrat": (
            lambda: answer("removexattrat", fd, b"", AT_EMPTY_PATH, b"trusted.there"),
            (XATTR, {"attribute": b"trusted.there", "open_flags": AT_EMPTY_PATH}),
        ),
        "truncate": (lambda: answer("truncate", path, 5), (TRUNCATE, given(path, size=5))),
        "ftruncate": (lambda: answer("ftruncate", fd, 1 << 33), (TRUNCATE, {"size": 1 << 33})),
        "utime": (lambda: answer("utime", path, None), (TIMES, given(path))),
        "utimes": (lambda: answer("utimes", path, None), (TIMES, given(path))),
        "futimesat": (lambda: answer("futimesat", AT_FDCWD, path, None), (TIMES, given(path))),
        "utimensat": (
            lambda: answer("utimensat", AT_FDCWD, path, UTIME_STRUCT, AT_SYMLINK_NOFOLLOW),
            (TIMES, given(path, open_flags=AT_SYMLINK_NOFOLLOW)),
        ),
        "utimensat of a descriptor": (lambda: answer("utimensat", fd, None, UTIME_STRUCT, 0), (TIMES, {})),
    }


ATTRIBUTES = (
    *("chmod", "fchmod", "fchmodat", "fchmodat2", "fchmodat2 of a descriptor", "chown", "lchown", "fchown"),
    *("fchownat", "fchownat of a descriptor", "setxattr", "lsetxattr", "fsetxattr", "setxattrat", "removexattr"),
    *("lremovexattr", "fremovexattr", "removexattrat", "truncate", "ftruncate", "utime", "utimes", "futimesat"),
    *("utimensat", "utimensat of a descriptor"),
)


def possible(act: Callable[[], int], name: str) -> None:
    """In a child, so that nothing is done before it is to be told."""

    def ends_with_errno() -> None:
        os._exit(max(-act(), 0))

    status = os.waitstatus_to_exitcode(os.waitpid(fork_and(ends_with_errno), 0)[1])
    if status in (errno.ENOSYS, errno.EOPNOTSUPP):
        pytest.skip(f"{name} IS NOT TESTED: {os.strerror(status)}")


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_each_call_on_attributes_is_told_with_every_field(sensor: Sensor, place: Path, name: str) -> None:
    path = place / "file"
    act, (kind, expected) = attribute_acts(place)[name]
    os.setxattr(path, "trusted.there", b"1")
    possible(act, name)
    os.setxattr(path, "trusted.there", b"1")
    event = told(sensor, kind, lambda: expect(0, act()))
    facts = {} if "path" in expected else of_file(path) | {"path": os.fsencode(path)}
    check_body(event, **facts | expected)


@pytest.mark.parametrize("name", ["chmod", "fchmod", "chown", "fchown", "setxattr", "truncate", "utimensat"])
def test_each_refused_call_on_attributes_is_told_with_its_error(sensor: Sensor, place: Path, name: str) -> None:
    path = place / "file"
    path.chmod(0o644)
    act, (kind, expected) = attribute_acts(place)[name]

    def refused() -> None:
        as_nobody()
        got = act()
        expect(got if got in (-errno.EACCES, -errno.EPERM) else -errno.EPERM, got)

    event = told(sensor, kind, refused)
    facts = {} if "path" in expected else of_file(path) | {"path": os.fsencode(path)}
    if name == "fchmod":  # what was asked for: the file's own bits have not changed
        facts["mode"] = 0o4711
    check_body(event, **facts | expected | {"error": body_of(event).error})
    assert body_of(event).error in (errno.EACCES, errno.EPERM)


# ---- paths --------------------------------------------------------------------------------------


def test_a_relative_path_begins_at_the_working_directory_and_keeps_its_dots(sensor: Sensor, place: Path) -> None:
    def act() -> None:
        os.chdir(place)
        expect(0, answer("unlink", b"./../" + os.fsencode(place.name) + b"/file"))

    body = body_of(told(sensor, DELETE, act))
    assert body.path == os.fsencode(place) + b"/./../" + os.fsencode(place.name) + b"/file"


def test_a_relative_path_at_the_root_has_one_slash(sensor: Sensor, place: Path) -> None:
    def act() -> None:
        os.chdir("/")
        expect(0, answer("unlink", os.fsencode(place / "file")[1:]))

    check_body(told(sensor, DELETE, act), **given(place / "file"))


def test_an_absolute_path_below_another_root_is_told_from_the_hosts_root(sensor: Sensor, place: Path) -> None:
    def act() -> None:
        os.chroot(place)
        expect(0, answer("unlink", b"/file"))

    check_body(told(sensor, DELETE, act), **given(place / "file"))


def test_an_unlink_through_a_symlink_is_told_as_it_was_named(sensor: Sensor, place: Path) -> None:
    (place / "folder").mkdir()
    (place / "folder/inner").write_bytes(b"")
    (place / "link").symlink_to("folder")
    event = told(sensor, DELETE, lambda: expect(0, answer("unlink", place / "link/inner")))
    check_body(event, **given(place / "link/inner"))


def test_names_need_not_be_utf8(sensor: Sensor, place: Path) -> None:
    path = os.fsencode(place) + b"/\xff\xfe\n\x01"
    event = told(sensor, CREATE, lambda: answer("creat", path, 0o600))
    assert event.file_create.path == path
    event = told(sensor, DELETE, lambda: expect(0, answer("unlink", path)))
    assert event.file_delete.path == path


def test_a_file_in_another_mount_namespace_has_that_ones_path(sensor: Sensor, place: Path) -> None:
    (place / "mount").mkdir()

    def act() -> None:
        expect(0, answer("unshare", 0x20000))
        expect(0, answer("mount", None, b"/", None, 0x44000, None))
        expect(0, answer("mount", b"tmpfs", place / "mount", b"tmpfs", 0, None))
        expect(3, min(answer("creat", place / "mount/inside", 0o600), 3))

    event = told(sensor, CREATE, act)
    assert event.file_create.path == os.fsencode(place / "mount/inside")
    assert event.file_create.path_flags == 0
    assert event.process.mnt_ns != event.parent.mnt_ns


def descend(place: Path, names: list[bytes]) -> int:
    """Makes nested folders; a descriptor of the innermost."""
    inner = os.open(place, os.O_DIRECTORY | os.O_RDONLY)
    for name in names:
        os.mkdir(name, dir_fd=inner)
        inner = os.open(name, os.O_DIRECTORY | os.O_RDONLY, dir_fd=inner)
    return inner


@pytest.mark.parametrize("names", [[b"n" * 3] * 80, [b"n" * 250] * 20], ids=["deep", "long"])
def test_a_path_that_is_cut_keeps_its_tail_and_says_so(sensor: Sensor, place: Path, names: list[bytes]) -> None:
    whole = b"/".join([os.fsencode(place), *names, b"end"])
    inner = descend(place, names)
    event = told(sensor, CREATE, lambda: answer("openat", inner, b"end", os.O_CREAT | os.O_WRONLY, 0o600))
    assert event.file_create.path_flags == CUT
    assert whole.endswith(event.file_create.path)
    assert len(event.file_create.path) > 150
    event = told(sensor, DELETE, lambda: expect(0, answer("unlinkat", inner, b"end", 0)))
    assert event.file_delete.path_flags == CUT | GIVEN
    assert whole.endswith(event.file_delete.path)


def test_a_long_relative_path_behind_a_long_directory_keeps_its_tail(sensor: Sensor, place: Path) -> None:
    names = [b"d" * 250] * 12
    inner = descend(place, names)
    more = b"/".join([b"e" * 250] * 8)
    descend_fd = inner
    for name in more.split(b"/"):
        os.mkdir(name, dir_fd=descend_fd)
        descend_fd = os.open(name, os.O_DIRECTORY | os.O_RDONLY, dir_fd=descend_fd)
    os.close(os.open(b"end", os.O_CREAT | os.O_WRONLY, dir_fd=descend_fd))
    event = told(sensor, DELETE, lambda: expect(0, answer("unlinkat", inner, more + b"/end", 0)))
    whole = b"/".join([os.fsencode(place), *names, more, b"end"])
    assert event.file_delete.path == whole[-4095:]
    assert event.file_delete.path_flags == CUT | GIVEN


def test_a_file_below_a_mount_that_was_taken_away_has_no_beginning(sensor: Sensor, place: Path) -> None:
    (place / "mount").mkdir()

    def act() -> None:
        expect(0, answer("unshare", 0x20000))
        expect(0, answer("mount", None, b"/", None, 0x44000, None))
        expect(0, answer("mount", b"tmpfs", place / "mount", b"tmpfs", 0, None))
        os.chdir(place / "mount")
        expect(0, answer("umount2", place / "mount", 2))
        expect(3, min(answer("creat", b"inside", 0o600), 3))

    event = told(sensor, CREATE, act)
    assert (event.file_create.path, event.file_create.path_flags) == (b"/inside", CUT)


def test_an_open_whose_name_is_rewritten_meanwhile_shows_the_file_that_was_opened(sensor: Sensor, place: Path) -> None:
    """Another process exchanges two names in shared memory; what is told must be what fstat says, open by open."""
    names = [os.fsencode(place / name) for name in ("aaaa", "aaab")]
    for name in names:
        Path(os.fsdecode(name)).write_bytes(b"")
    shared = mmap.mmap(-1, 4096)
    shared[: len(names[0]) + 1] = names[0] + b"\0"
    last, least, most = len(names[0]) - 1, 300, 8000
    report = os.pipe()

    def rewrite() -> None:
        while shared[4095] == 0:
            shared[last] = ord("b")
            shared[last] = ord("a")

    def act() -> None:
        opened: list[int] = []
        buffer = (ctypes.c_char * 4096).from_buffer(shared)
        while len(opened) < least or (len(set(opened)) < 2 and len(opened) < most):
            fd = answer("openat", AT_FDCWD, buffer, os.O_WRONLY)
            opened.append(os.fstat(fd).st_ino)
            os.close(fd)
        os.write(report[1], struct.pack(f"{len(opened)}Q", *opened))

    rewriter, pid = fork_and(rewrite), fork_and(act)
    ended(pid)
    shared[4095] = 1
    os.waitpid(rewriter, 0)
    raw = os.read(report[0], 8 * most)
    opened = struct.unpack(f"{len(raw) // 8}Q", raw)
    sensor.settle()
    paths = {os.stat(name).st_ino: name for name in names}
    assert set(opened) == set(paths), "the race did not happen: both files must have been opened"
    bodies = [event.file_write for event in sensor.of(pid, WRITE)]
    assert [(body.inode, body.path) for body in bodies] == [(inode, paths[inode]) for inode in opened]


# ---- reads, filters, limits ---------------------------------------------------------------------


@pytest.fixture
def filtered(request: pytest.FixtureRequest) -> Iterator[Callable[..., Sensor]]:
    """Opens sensors with filters of the test's choice."""
    opened: list[Sensor] = []

    def open_filtered(**filters: object) -> Sensor:
        chosen = {"events": ("process", "file")} | filters
        opened.append(Sensor(SensorConfig(filters=FilterConfig(**chosen))))  # type: ignore[arg-type]
        return opened[-1]

    yield open_filtered
    for sensor in opened:
        sensor.close()


def read(path: Path) -> Callable[[], None]:
    def act() -> None:
        os.close(os.open(path, os.O_RDONLY))

    return act


def test_reads_are_told_of_watched_paths_and_names_only(filtered: Callable[..., Sensor], place: Path) -> None:
    for name in ("watched/one", "watched/deep/two", "home/.secrets/key", "home/token", "home/other"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).touch(0o600)
    (place / "file").chmod(0o600)
    sensor = filtered(watch_paths=(str(place / "watched"),), watch_names=(".secrets", "token"))
    for name in ("watched/one", "home/.secrets/key", "home/token"):
        event = told(sensor, READ, read(place / name))
        check_body(event, path=os.fsencode(place / name), open_flags=os.O_CLOEXEC, **of_file(place / name))
        refused = told(sensor, READ, refused_read(place / name))
        check_body(refused, **given(place / name, error=errno.EACCES, open_flags=os.O_RDONLY))
    for name in ("watched/deep/two", "home/other", "file"):
        assert told_types(sensor, read(place / name)) == []
        assert told_types(sensor, refused_read(place / name)) == []
    (place / "innocent").symlink_to("home/token")
    event = told(sensor, READ, read(place / "innocent"))
    assert event.file_read.path == os.fsencode(place / "home/token")


def refused_read(path: Path) -> Callable[[], None]:
    def act() -> None:
        as_nobody()
        expect(-errno.EACCES, answer("open", path, os.O_RDONLY))

    return act


def test_ignored_paths_are_not_told_unless_the_path_may_lead_elsewhere(
    filtered: Callable[..., Sensor], place: Path
) -> None:
    ignored = place / "ignored"
    ignored.mkdir()
    sensor = filtered(ignore_paths=(f"{ignored}/",))
    assert told_types(sensor, lambda: os.close(os.open(ignored / "new", os.O_CREAT | os.O_WRONLY))) == []
    assert told_types(sensor, lambda: os.unlink(ignored / "new")) == []
    assert told_types(sensor, lambda: os.chmod(ignored / "..", 0o755)) == ["FILE_CHMOD"]
    assert told_types(sensor, lambda: os.rename(place / "file", ignored / "file")) == ["FILE_RENAME"]
    assert told_types(sensor, lambda: os.rename(ignored / "file", ignored / "again")) == []
    assert told_types(sensor, lambda: os.rename(ignored / "again", place / "file")) == ["FILE_RENAME"]


def test_a_path_that_lost_its_head_is_never_ignored(filtered: Callable[..., Sensor], place: Path) -> None:
    sensor = filtered(ignore_paths=("/nnn",))
    inner = descend(place, [b"nnn"] * 80)
    event = told(sensor, CREATE, lambda: answer("openat", inner, b"end", os.O_CREAT | os.O_WRONLY, 0o600))
    assert event.file_create.path.startswith(b"/nnn")


def test_excluded_users_names_and_groups_are_not_told(filtered: Callable[..., Sensor], place: Path) -> None:
    place.chmod(0o777)
    sensor = filtered(exclude_uids=(NOBODY,), exclude_comms=("quiet-one",))

    def by_nobody() -> None:
        as_nobody()
        os.mkdir(place / "one")

    def by_name() -> None:
        answer("prctl", 15, b"quiet-one\0", 0, 0, 0)
        os.mkdir(place / "two")

    assert "DIRECTORY_CREATE" not in told_types(sensor, by_nobody)
    assert "DIRECTORY_CREATE" not in told_types(sensor, by_name)
    assert told_types(sensor, lambda: os.mkdir(place / "three")) == ["DIRECTORY_CREATE"]


def test_an_excluded_control_group_is_not_told(filtered: Callable[..., Sensor], place: Path) -> None:
    root = next(
        (p for p in map(Path, ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")) if (p / "cgroup.procs").exists()), None
    )
    if root is None:
        pytest.skip("CONTROL GROUPS ARE NOT TESTED: no unified hierarchy is mounted")
    group = root / f"tocsin-test-{os.getpid()}"
    group.mkdir()
    try:
        sensor = filtered(exclude_cgroups=(str(group),))

        def inside() -> None:
            (group / "cgroup.procs").write_text(str(os.getpid()))
            os.mkdir(place / "one")

        assert "DIRECTORY_CREATE" not in told_types(sensor, inside)
        assert told_types(sensor, lambda: os.mkdir(place / "two")) == ["DIRECTORY_CREATE"]
    finally:
        group.rmdir()


def test_types_that_are_off_are_not_told(filtered: Callable[..., Sensor], place: Path) -> None:
    sensor = filtered(events=("process", "FILE_DELETE"))

    def act() -> None:
        os.close(os.open(place / "new", os.O_CREAT | os.O_WRONLY))
        os.chmod(place / "new", 0o600)
        os.unlink(place / "new")

    assert told_types(sensor, act) == ["FILE_DELETE"]


@pytest.mark.parametrize("own_events", [False, True])
def test_own_files_are_told_only_when_asked_for(place: Path, own_events: bool) -> None:
    sensor = Sensor(
        SensorConfig(filters=FilterConfig(events=("process", "file"), own_events=own_events)), own_pid=os.getpid()
    )
    try:
        expected = ["DIRECTORY_CREATE"] if own_events else []
        assert told_types(sensor, lambda: os.mkdir(place / "new")) == expected
    finally:
        sensor.close()


def test_what_is_over_the_limit_is_counted_and_nothing_is_missing(place: Path) -> None:
    limit, acts = 20, 200
    sensor = Sensor(
        SensorConfig(filters=FilterConfig(events=("process", "file"), limits=(f"DIRECTORY_CREATE={limit}",)))
    )
    try:

        def make_many() -> None:
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            for number in range(acts):
                os.mkdir(place / str(number))

        pid = fork_and(make_many)
        ended(pid)
        sensor.settle()
        counted = next(c for c in sensor.counted().types if c.event_type == MKDIR)
        received = sum(1 for event in sensor.events if event.type == MKDIR)
        lost = {loss.reason: loss.count for loss in counted.lost}
        assert counted.generated == received + sum(lost.values())
        assert counted.generated >= acts
        assert set(lost) == {event_pb2.LOSS_REASON_THROTTLED}
        assert limit <= len(sensor.of(pid, MKDIR)) <= acts - limit
    finally:
        sensor.close()


# ---- 32-bit calls -------------------------------------------------------------------------------


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="32-BIT CALLS ARE NOT TESTED: only x86-64 has int 0x80")
def test_32_bit_calls_are_told_like_others(sensor: Sensor, acts: Acts, place: Path) -> None:
    path, program = place / "file", acts.path("int80")
    text = f"s:{path}"
    pid, results = compat(
        program,
        (5, text, os.O_WRONLY),
        (193, text, 5, 1),
        (182, text, 65535, 34),
        (212, text, 65535, 0xFFFFFFFF),
    )
    assert [min(result, 0) for result in results] == [0, 0, 0, 0], "does this kernel take 32-bit calls?"
    check_body(
        sensor.one(pid, WRITE), path=os.fsencode(path), open_flags=os.O_WRONLY, **of_file(path) | {"gid": 0, "uid": 0}
    )
    check_body(sensor.one(pid, TRUNCATE), **given(path, size=(1 << 32) + 5))
    sensor.one(pid, CHOWN, 2)
    narrow, wide = sensor.of(pid, CHOWN)
    check_body(narrow, **given(path, uid=UNKNOWN, gid=34))
    check_body(wide, **given(path, uid=65535, gid=UNKNOWN))
    pid, results = compat(program, (10, text))
    assert results == [0]
    check_body(sensor.one(pid, DELETE), **given(path))
