"""Which container a control group belongs to, by the group's path alone.

Runtimes name the groups that they make after the container: with systemd as
`<runtime>-<id>.scope`, else as a directory `<id>` below one of their own. Where
groups are nested, the outermost counts: the host's runtime made it, while what
runs inside may name its own groups as it likes.
"""

import os
import re
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final


class Runtime(StrEnum):
    """Who runs a container; the value is what subscribers see."""

    UNKNOWN = ""
    """The path is a container's, but does not tell whose."""
    DOCKER = "docker"
    CONTAINERD = "containerd"
    CRIO = "crio"
    PODMAN = "podman"
    LXC = "lxc"
    NSPAWN = "nspawn"


@dataclass(frozen=True, slots=True)
class ContainerRef:
    """What a path tells."""

    id: str
    """The runtime's id; a name where the runtime has no other."""
    runtime: Runtime
    namespace: str = ""
    """Of containerd, where the path has it."""
    pod_uid: str = ""
    """Of Kubernetes, where the path has it."""


HIERARCHIES: Final = ("sys/fs/cgroup", "sys/fs/cgroup/unified")
"""Where the unified hierarchy is mounted, below the root: alone, or beside those of v1."""
MAX_PATH_BYTES: Final = 4096
MAX_GROUPS: Final = 20_000
"""That are looked at in search of one."""
_ID: Final = "[0-9a-f]{64}"
_PREFIXES: Final = {
    "docker": Runtime.DOCKER,
    "cri-containerd": Runtime.CONTAINERD,
    "nerdctl": Runtime.CONTAINERD,
    "crio": Runtime.CRIO,
    "libpod": Runtime.PODMAN,
    "libpod-payload": Runtime.PODMAN,
}
_PARENTS: Final = {
    "docker": Runtime.DOCKER,
    "actions_job": Runtime.DOCKER,
    "ecs": Runtime.DOCKER,
    "libpod_parent": Runtime.PODMAN,
}
"""Top directories below which a plain id is this runtime's."""
_PREFIXED: Final = re.compile(rf"(?P<prefix>{'|'.join(map(re.escape, _PREFIXES))})-(?P<id>{_ID})(?:\.scope)?")
_COLONS: Final = re.compile(rf"[^:]*:(?P<prefix>{'|'.join(map(re.escape, _PREFIXES))}):(?P<id>{_ID})")
"""What containerd makes of systemd's notation when it does not use systemd: `<slice>:<prefix>:<id>`."""
_PLAIN: Final = re.compile(_ID)
_LXC: Final = re.compile(r"lxc\.payload\.(?P<name>[^/]{1,255})")
_MACHINE: Final = re.compile(r"machine-(?P<name>[^/]{1,255})\.scope")
_NSPAWN_UNIT: Final = re.compile(r"systemd-nspawn@(?P<name>[^/]{1,255})\.service")
_POD: Final = re.compile(
    r"(?:.*-)?pod(?P<uid>[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?"
)
_ESCAPED: Final = re.compile(r"\\x([0-9a-f]{2})")
_NAMESPACE: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,75})")


def container_of(path: str) -> ContainerRef | None:
    """The container that the group belongs to; None for a group of the host, or a path that is too long."""
    if len(path) > MAX_PATH_BYTES:
        return None
    parts = [part for part in path.split("/") if part]
    for index, part in enumerate(parts):
        found = _by_name(part, parts[:index])
        if found is not None:
            return found
    return None


def unified_path(cgroup_file: str) -> str:
    """The path of a process's group in the unified hierarchy, by its /proc/<pid>/cgroup; empty where it is not mounted.

    Only this one goes with the group's id. In a hierarchy of v1 a process may
    be in a container's group while in the unified one it is in the runtime's,
    whose id it then shares with processes of the host.
    """
    return next((line.removeprefix("0::") for line in cgroup_file.splitlines() if line.startswith("0::")), "")


def find_group(hierarchy: Path, cgroup_id: int) -> str | None:
    """The path of the group with this id, which is the inode of its directory; None when it is gone or too far.

    `hierarchy`: where the unified hierarchy is mounted. Breadth first, so that a
    group with many below it does not hide the others.
    """
    waiting = deque([str(hierarchy)])
    seen = 0
    while waiting and seen < MAX_GROUPS:
        directory = waiting.popleft()
        try:
            with os.scandir(directory) as entries:
                groups = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            continue
        seen += len(groups)
        for group in groups:
            if group.inode() == cgroup_id:
                return group.path.removeprefix(str(hierarchy))
        waiting += [group.path for group in groups]
    return None


def _by_name(part: str, parents: list[str]) -> ContainerRef | None:
    prefixed = _PREFIXED.fullmatch(part) or _COLONS.fullmatch(part)
    if prefixed:
        pod_uid = _pod_uid([*parents, part.partition(":")[0]])
        return ContainerRef(prefixed["id"], _PREFIXES[prefixed["prefix"]], pod_uid=pod_uid)
    if _PLAIN.fullmatch(part):
        return _by_parents(part, parents)
    if named := _LXC.fullmatch(part):
        return ContainerRef(named["name"], Runtime.LXC)
    if named := _MACHINE.fullmatch(part) or _NSPAWN_UNIT.fullmatch(part):
        return _machine(named["name"])
    return ContainerRef(part, Runtime.LXC) if parents == ["lxc"] else None


def _by_parents(container_id: str, parents: list[str]) -> ContainerRef:
    """A directory that is called by an id and nothing else: the one above tells whose it is, if any does."""
    runtime = _PARENTS.get(parents[0], Runtime.UNKNOWN) if parents else Runtime.UNKNOWN
    pod_uid = _pod_uid(parents)
    if runtime is Runtime.UNKNOWN and not pod_uid and len(parents) == 1 and _NAMESPACE.fullmatch(parents[0]):
        return ContainerRef(container_id, Runtime.CONTAINERD, namespace=parents[0])
    return ContainerRef(container_id, runtime, pod_uid=pod_uid)


def _machine(escaped: str) -> ContainerRef | None:
    """machined also registers virtual machines, and names their scopes `machine-qemu\\x2d…`: no containers."""
    name = _ESCAPED.sub(lambda match: chr(int(match[1], 16)), escaped)
    if name.startswith("qemu-"):
        return None
    if name.startswith("lxc-"):
        return ContainerRef(name, Runtime.LXC)
    return ContainerRef(name, Runtime.NSPAWN)


def _pod_uid(parents: list[str]) -> str:
    """Systemd's slices cannot have `-` inside a name: it stands there as `_`."""
    for part in reversed(parents):
        if found := _POD.fullmatch(part):
            return found["uid"].replace("_", "-")
    return ""
