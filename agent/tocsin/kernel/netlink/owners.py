"""Whose a socket is: by the descriptors in /proc, within a budget."""

import os
from collections.abc import Collection, Iterable
from typing import Final

MAX_LINKS: Final = 20_000
"""Descriptors read in one search: at about 10 µs each, 0.2 s of the sensor's time at the most."""


def find_owners(inodes: Collection[int], candidates: Iterable[int], budget: int = MAX_LINKS) -> dict[int, int]:
    """Socket inode -> pid of the first candidate that has it open; those not found within the budget are left out."""
    wanted, found = set(inodes), {}
    for pid in candidates:
        if not wanted or budget <= 0:
            break
        folder = f"/proc/{pid}/fd"
        try:
            names = os.listdir(folder)  # noqa: PTH208 - names, ten thousand times
        except OSError:
            continue
        budget -= len(names)
        for inode in _sockets(folder, names):
            if inode in wanted:
                wanted.discard(inode)
                found[inode] = pid
    return found


def _sockets(folder: str, names: list[str]) -> Iterable[int]:
    for name in names:
        try:
            link = os.readlink(f"{folder}/{name}")  # noqa: PTH115
        except OSError:
            continue
        if link.startswith("socket:["):
            yield int(link[8:-1])
