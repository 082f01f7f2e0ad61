"""What /proc and stat say about a process: never the sensor's own ways to know it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tocsin.api.event.v1 import event_pb2

TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
NAMESPACES: Final = {
    "mnt_ns": "mnt",
    "net_ns": "net",
    "pid_ns": "pid_for_children",
    "user_ns": "user",
    "uts_ns": "uts",
    "ipc_ns": "ipc",
    "cgroup_ns": "cgroup",
}
UNIFIED: Final = next(
    (path for path in map(Path, ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")) if (path / "cgroup.procs").exists()), None
)


def release() -> tuple[int, ...]:
    """Of the running kernel: major, minor."""
    return tuple(map(int, os.uname().release.split(".")[:2]))


def stat_fields(pid: int) -> list[str]:
    """/proc/PID/stat behind the name; the first is field 3 of proc(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()


def start_ticks(pid: int) -> int:
    """Start of a process since boot in clock ticks."""
    return int(stat_fields(pid)[22 - 3])


def task(pid: int) -> dict[str, int | bytes]:
    """What the fixed part of a Process message has to say, start_boottime_ns in ticks."""
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    uids, gids = (list(map(int, status[name].split())) for name in ("Uid", "Gid"))
    found: dict[str, int | bytes] = {
        "pid": pid,
        "ppid": int(status["PPid"]),
        "start_ticks": start_ticks(pid),
        "uid": uids[0],
        "euid": uids[1],
        "suid": uids[2],
        "gid": gids[0],
        "egid": gids[1],
        "sgid": gids[2],
        "cap_effective": int(status["CapEff"], 16),
        "cap_permitted": int(status["CapPrm"], 16),
        "comm": Path(f"/proc/{pid}/comm").read_bytes()[:-1],
        "login_uid": audit(pid, "loginuid"),
        "session_id": audit(pid, "sessionid"),
    }
    for field, name in NAMESPACES.items():
        found[field] = namespace(pid, name)
    if UNIFIED is not None:
        found["cgroup_id"] = cgroup_id(pid)
    return found


def audit(pid: int, name: str) -> int:
    """loginuid or sessionid; unset where the kernel has no audit."""
    path = Path(f"/proc/{pid}/{name}")
    return int(path.read_text()) if path.exists() else 0xFFFFFFFF


def namespace(pid: int, name: str) -> int:
    """Inode of a namespace."""
    return int(os.readlink(f"/proc/{pid}/ns/{name}").partition("[")[2].rstrip("]"))


def cgroup_id(pid: int) -> int:
    """Inode of the directory of the process's cgroup in the unified hierarchy."""
    assert UNIFIED is not None
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    relative = next(line[3:] for line in lines if line.startswith("0::"))
    return (UNIFIED / relative.lstrip("/")).stat().st_ino


def cgroup_name(pid: int) -> bytes:
    """Last part of the cgroup's path; of the pids controller where the unified hierarchy is unused."""
    lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    unified = next((path for _, names, path in lines if not names), "/")
    pids = next((path for _, names, path in lines if "pids" in names.split(",")), "/")
    return os.fsencode(unified if unified != "/" else pids).rpartition(b"/")[2]


def ancestors(pid: int) -> list[bytes]:
    """Executables of parent, grandparent and so on as they are now, up to the first that may not be read."""
    found = []
    while (pid := int(stat_fields(pid)[4 - 3])) != 0:
        try:
            found.append(os.readlink(f"/proc/{pid}/exe".encode()).removesuffix(b" (deleted)"))
        except PermissionError:
            break
    return found


def image(pid: int) -> dict[str, int | bytes]:
    """What the image part has to say for a process whose paths and arguments are short."""
    executable = os.stat(f"/proc/{pid}/exe")
    return {
        "exe": os.readlink(f"/proc/{pid}/exe".encode()),
        "cwd": os.readlink(f"/proc/{pid}/cwd".encode()),
        "argv": Path(f"/proc/{pid}/cmdline").read_bytes(),
        "cgroup_name": cgroup_name(pid),
        "exe_inode": executable.st_ino,
        "exe_dev": os.major(executable.st_dev) << 20 | os.minor(executable.st_dev),
    }


def without_seeded_argv(process: event_pb2.Process, expected: Mapping[str, int | bytes]) -> dict[str, int | bytes]:
    """Before 5.18 nobody reads the arguments of processes that are older than the sensor: they are flagged."""
    cut = event_pb2.IMAGE_FLAG_SEEDED | event_pb2.IMAGE_FLAG_ARGV_TRUNCATED
    if release() >= (5, 18) or process.image_flags & cut != cut:
        return dict(expected)
    return {name: value for name, value in expected.items() if name not in ("argv", "image_flags")}


def check(process: event_pb2.Process, expected: Mapping[str, int | bytes]) -> None:
    """Compares every field that is expected and names all that differ."""
    expected = without_seeded_argv(process, expected)
    got = {
        name: process.start_boottime_ns // TICK_NS if name == "start_ticks" else getattr(process, name)
        for name in expected
    }
    wrong = {name: f"got {got[name]!r}, expected {value!r}" for name, value in expected.items() if got[name] != value}
    assert not wrong, f"process {process.pid}: {wrong}"
