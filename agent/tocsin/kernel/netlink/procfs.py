"""What /proc says of a process at this moment, as fields of an event.

Meanings are those of docs/EVENTS.md, with two limits: a start is known to the
clock tick, and the image is what the process shows now, not at its exec.
Everything is read through one descriptor of /proc/PID: a pid that is given to
another process meanwhile is not mixed in.
"""

import errno
import os
import stat
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from tocsin.api.event.v1 import event_pb2

TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
UNSET: Final = 0xFFFFFFFF
"""login_uid and session_id where there is none, or no audit in the kernel."""
MAX_ARGV_BYTES: Final = 4096
MAX_CGROUP_NAME_BYTES: Final = 127
"""What an event carries: max_bytes of Process.argv and Process.cgroup_name."""
MAX_COUNTED_BYTES: Final = 8 << 20
"""Arguments and environment are counted within this; the kernel allows 6 MiB."""
CHUNK_BYTES: Final = 16 << 10
_NAMESPACES: Final = (
    ("mnt_ns", "ns/mnt"),
    ("net_ns", "ns/net"),
    ("pid_ns", "ns/pid_for_children"),
    ("user_ns", "ns/user"),
    ("uts_ns", "ns/uts"),
    ("ipc_ns", "ns/ipc"),
    ("cgroup_ns", "ns/cgroup"),
)
_DELETED: Final = b" (deleted)"
_MEMFD: Final = b"/memfd:"


@dataclass(frozen=True, slots=True)
class Image:
    """The program of a process."""

    process: event_pb2.Process
    """Fields 16 to 22, without the time of the exec."""
    exec: event_pb2.Exec


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A process. Each part is None where it could not be read: the image goes first when a process ends."""

    image: Image | None
    task: event_pb2.Process | None
    """All fields but the image's."""


def open_process(pid: int) -> int | None:
    """A descriptor of /proc/PID, for the caller to close; None when the process is gone."""
    try:
        return os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None


def read_process(pid: int) -> Snapshot:
    """What can be read of a process."""
    folder = open_process(pid)
    if folder is None:
        return Snapshot(None, None)
    try:
        return Snapshot(read_image(folder), read_task(folder))
    finally:
        os.close(folder)


def read_image(folder: int) -> Image | None:
    """The program; None of a kernel thread and of a process that has ended."""
    try:
        arguments = _read(folder, "cmdline")
        exe, exe_flag = _link(folder, "exe", event_pb2.IMAGE_FLAG_EXE_TRUNCATED)
        cwd, cwd_flag = _link(folder, "cwd", event_pb2.IMAGE_FLAG_CWD_TRUNCATED)
        executable = os.stat("exe", dir_fd=folder)
        environment = _read(folder, "environ")
    except OSError:
        return None
    exe = exe.removesuffix(_DELETED) if executable.st_nlink == 0 else exe
    argv_flag = event_pb2.IMAGE_FLAG_ARGV_TRUNCATED if len(arguments) > MAX_ARGV_BYTES else 0
    process = event_pb2.Process(
        exe=exe,
        cwd=cwd,
        argv=arguments[:MAX_ARGV_BYTES],
        exe_inode=executable.st_ino,
        exe_dev=os.major(executable.st_dev) << 20 | os.minor(executable.st_dev),
        image_flags=exe_flag | cwd_flag | argv_flag,
    )
    body = event_pb2.Exec(
        exe_mode=executable.st_mode,
        exe_nlink=executable.st_nlink,
        exe_uid=executable.st_uid,
        exe_gid=executable.st_gid,
        argc=arguments.count(b"\0"),
        envc=environment.count(b"\0"),
        argv_bytes=len(arguments),
        exec_flags=_exec_flags(exe, executable),
    )
    return Image(process, body)


def _exec_flags(exe: bytes, executable: os.stat_result) -> int:
    flags = 0
    if executable.st_nlink == 0:
        flags |= event_pb2.EXEC_FLAG_MEMFD if exe.startswith(_MEMFD) else event_pb2.EXEC_FLAG_DELETED
    if executable.st_mode & stat.S_ISUID:
        flags |= event_pb2.EXEC_FLAG_SETUID
    if executable.st_mode & stat.S_ISGID:
        flags |= event_pb2.EXEC_FLAG_SETGID
    return flags


def _read(folder: int, name: str) -> bytes:
    """A file as a whole, up to MAX_COUNTED_BYTES; a short read is its end. Raises OSError."""
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        content = os.read(fd, CHUNK_BYTES)
        if len(content) == CHUNK_BYTES:
            content += os.read(fd, MAX_COUNTED_BYTES)
        return content
    finally:
        os.close(fd)


def _link(folder: int, name: str, truncated: int) -> tuple[bytes, int]:
    """A path and 0; empty and the flag where it is longer than the kernel shows. Raises OSError."""
    try:
        return os.readlink(name.encode(), dir_fd=folder), 0
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return b"", truncated
        raise


def read_task(folder: int) -> event_pb2.Process | None:
    """Everything but the image; of a process that has ended and was not waited for, most of it. None when it is gone.

    What the kernel no longer tells is 0.
    """
    try:
        comm, fields = _stat(folder)
        status = dict(line.partition(b":\t")[::2] for line in _read(folder, "status").splitlines())
        cgroup_id, cgroup_name = _cgroup(_read(folder, "cgroup"))
        process = event_pb2.Process(
            start_boottime_ns=int(fields[19]) * TICK_NS,
            ppid=int(fields[1]),
            comm=comm,
            cap_effective=int(status[b"CapEff"], 16),
            cap_permitted=int(status[b"CapPrm"], 16),
            cgroup_id=cgroup_id,
            cgroup_name=cgroup_name,
            login_uid=_audit(folder, "loginuid"),
            session_id=_audit(folder, "sessionid"),
        )
        process.pid = process.tid = int(status[b"Pid"])
    except OSError:
        return None
    process.uid, process.euid, process.suid = (int(uid) for uid in status[b"Uid"].split()[:3])
    process.gid, process.egid, process.sgid = (int(gid) for gid in status[b"Gid"].split()[:3])
    for field, path in _NAMESPACES:
        setattr(process, field, _namespace(folder, path))
    return process


def _stat(folder: int) -> tuple[bytes, list[bytes]]:
    """Name, and the fields of /proc/PID/stat from the third of proc(5) on. Raises OSError."""
    head, _, tail = _read(folder, "stat").rpartition(b") ")
    if not head:
        raise OSError(errno.ESRCH, os.strerror(errno.ESRCH))
    return head.partition(b"(")[2][:15], tail.split()


def _namespace(folder: int, path: str) -> int:
    try:
        return int(os.readlink(path, dir_fd=folder).partition("[")[2].rstrip("]"))
    except OSError:
        return 0


def _audit(folder: int, name: str) -> int:
    try:
        return int(_read(folder, name))
    except OSError:
        return UNSET


def _cgroup(text: bytes) -> tuple[int, bytes]:
    """Inode of the directory in the unified hierarchy, 0 where there is none; its name.

    Where the unified hierarchy is unused, the name is that of the pids controller.
    """
    root = unified_root()
    lines = [line.split(b":", 2) for line in text.splitlines()]
    path = next((path for _, names, path in lines if not names), b"")
    named = path if path not in (b"", b"/") else next((p for _, names, p in lines if b"pids" in names.split(b",")), b"")
    name = named.rpartition(b"/")[2][:MAX_CGROUP_NAME_BYTES]
    if root is None or not path:
        return 0, name
    try:
        return os.stat(root + path).st_ino, name  # noqa: PTH116 - not text
    except OSError:
        return 0, name


@cache
def unified_root() -> bytes | None:
    """Where the unified control group hierarchy is mounted; None where it is not."""
    candidates = map(Path, ("/sys/fs/cgroup/unified", "/sys/fs/cgroup"))
    return next((os.fsencode(path) for path in candidates if (path / "cgroup.procs").exists()), None)
