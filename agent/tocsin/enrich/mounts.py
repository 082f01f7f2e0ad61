"""On which mount an open file lies: the device that the kernel knows it by, and the kind of file system.

stat's device is not always the one of the kernel's superblock, which events carry: btrfs gives each subvolume a
number of its own, and overlayfs each layer. `/proc/<pid>/mountinfo` has the superblock's.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_ANSWERED_ELSEWHERE: Final = frozenset(
    {"9p", "afs", "autofs", "ceph", "cifs", "coda", "fuse", "fuseblk", "nfs", "nfs4", "smb3"}
)


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount."""

    dev: int
    """Of the superblock: major << 20 | minor."""
    kind: str
    """Type of file system, as in /proc/filesystems."""

    @property
    def may_hang(self) -> bool:
        """Whether another host, or a program of some user, answers what is read here; or does not."""
        return self.kind.partition(".")[0] in _ANSWERED_ELSEWHERE


def mount_of(fd: int, pid: int) -> Mount | None:
    """The mount of an open file, which this process or process `pid` sees; None when neither does any more."""
    mount_id = _mount_id(fd)
    for process in ("self", str(pid)):
        try:
            with Path(f"/proc/{process}/mountinfo").open(errors="replace") as lines:
                found = find_mount(lines, mount_id)
        except OSError:
            continue
        if found is not None:
            return found
    return None


def find_mount(mountinfo: Iterable[str], mount_id: str) -> Mount | None:
    """The mount with this id among the lines of a mountinfo (see proc_pid_mountinfo(5))."""
    for line in mountinfo:
        if line.startswith(f"{mount_id} "):
            major, _, minor = line.split(" ", 3)[2].partition(":")
            kind = line.partition(" - ")[2].partition(" ")[0]
            return Mount(int(major) << 20 | int(minor), kind)
    return None


def _mount_id(fd: int) -> str:
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        if line.startswith("mnt_id:"):
            return line.split()[1]
    return ""
