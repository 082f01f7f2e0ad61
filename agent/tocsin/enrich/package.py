"""A package, and the ways in which one path of the host may be spelled in a package database."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Package:
    """A package that is installed."""

    name: str
    version: str
    """As the distribution writes it; empty where the database does not have it."""


def merged_directories(root: Path) -> frozenset[bytes]:
    """Names such as `bin`: directories of the root that are links to those of the same name in /usr."""
    try:
        links = [path for path in root.iterdir() if path.is_symlink()]
    except OSError:
        return frozenset()
    return frozenset(link.name.encode() for link in links if str(link.readlink()).strip("/") == f"usr/{link.name}")


def spellings(path: bytes, merged: frozenset[bytes]) -> tuple[bytes, ...]:
    """The path, and the other one by which a package may list the same file: /bin/ls is /usr/bin/ls.

    https://wiki.debian.org/UsrMerge
    """
    parts = path.split(b"/", 3)
    if len(parts) == 4 and parts[1] == b"usr" and parts[2] in merged:
        return path, b"/".join((b"", parts[2], parts[3]))
    if len(parts) >= 3 and parts[1] in merged:
        return path, b"/usr" + path
    return (path,)


def stamp(paths: list[Path]) -> tuple[tuple[int, int, int] | None, ...]:
    """What tells whether files have changed: for each its time of change, size and inode; None for one that is not."""
    states: list[tuple[int, int, int] | None] = []
    for path in paths:
        try:
            state = path.stat()
        except OSError:
            states.append(None)
        else:
            states.append((state.st_mtime_ns, state.st_size, state.st_ino))
    return tuple(states)
