"""What runs already: the programs and control groups that were there before somebody looked."""

import os
from collections.abc import Iterator
from pathlib import Path

from tocsin.enrich.cgroups import HIERARCHIES, unified_path
from tocsin.enrich.hashes import FileKey, Request
from tocsin.enrich.mounts import mount_of
from tocsin.enrich.reading import locate
from tocsin.enrich.sightings import Sighting

DELETED = b" (deleted)"


def running(root: Path = Path("/")) -> Iterator[Sighting]:
    """A sighting for each process with a program. One that ends meanwhile, or may not be read, is left out."""
    for name in os.listdir(root / "proc"):  # noqa: PTH208 - names are wanted
        if name.isdigit():
            try:
                yield _sighting(root, int(name))
            except OSError:  # a thread of the kernel, too
                continue


def _sighting(root: Path, pid: int) -> Sighting:
    """Raises OSError."""
    process = root / f"proc/{pid}"
    executable = _executable(process, pid)
    group = unified_path((process / "cgroup").read_text(errors="replace"))
    return Sighting(pid, _group_id(root, group), executable)


def _executable(process: Path, pid: int) -> Request:
    located = locate(process / "exe", follow=True)
    try:
        state, mount = os.fstat(located), mount_of(located, pid)
    finally:
        os.close(located)
    dev = mount.dev if mount else os.major(state.st_dev) << 20 | os.minor(state.st_dev)
    path = os.fsencode((process / "exe").readlink()).removesuffix(DELETED)
    return Request(FileKey(dev, state.st_ino, state.st_size, state.st_mtime_ns), pid, path)


def _group_id(root: Path, path: str) -> int:
    """The directory's inode; 0 when it is not found."""
    for hierarchy in HIERARCHIES:
        try:
            return (root / hierarchy / path.lstrip("/")).stat().st_ino
        except OSError:
            continue
    return 0
