"""Names of the host's users and groups: read whole, bounded, read again when the database's file changes.

Only for people and for rules on names; an event itself carries numbers. The names come by way of the host's name
service, so that those of a directory stand beside those of the files, where the directory lists them.
"""

import grp
import pwd
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, Generic, TypeVar

from tocsin.api.event.v1 import batch_pb2

MAX_NAMES: Final = 10_000
MAX_BYTES: Final = 128 << 10
"""Of names and numbers together: they travel in a batch's header."""
MAX_NAME_BYTES: Final = 256
ENTRY_BYTES: Final = 12
PASSWD: Final = Path("/etc/passwd")
GROUP: Final = Path("/etc/group")

M = TypeVar("M")


class _Names(Generic[M]):
    """One database, as it was when `refresh` was called last."""

    def __init__(self, path: Path, entries: Callable[[], Iterable[tuple[int, str]]], message: Callable[..., M]) -> None:
        self._path = path
        self._entries = entries
        self._message = message
        self._stamp: tuple[int, int] | None = None
        self.known: list[M] = []

    def refresh(self) -> bool:
        """Reads the names again if the file is another one now; whether it is."""
        try:
            state = self._path.stat()
        except OSError:
            return False
        stamp = (state.st_mtime_ns, state.st_ino)
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        self.known = [self._message(number, name) for number, name in bounded(self._entries()).items()]
        return True


def bounded(entries: Iterable[tuple[int, str]]) -> dict[int, str]:
    """The first name of each number, as text that protobuf takes, up to MAX_NAMES and MAX_BYTES.

    A number that no kernel has and a name that is too long are left out.
    """
    known: dict[int, str] = {}
    size_bytes = 0
    for number, name in entries:
        raw = name.encode(errors="replace")
        size_bytes += len(raw) + ENTRY_BYTES
        if len(known) >= MAX_NAMES or size_bytes > MAX_BYTES:
            break
        if len(raw) <= MAX_NAME_BYTES and 0 <= number < 1 << 32:
            known.setdefault(number, raw.decode())
    return known


class Users(_Names[batch_pb2.User]):
    """The users."""

    def __init__(self, path: Path = PASSWD) -> None:
        super().__init__(
            path,
            lambda: ((entry.pw_uid, entry.pw_name) for entry in pwd.getpwall()),
            lambda uid, name: batch_pb2.User(uid=uid, name=name),
        )


class Groups(_Names[batch_pb2.Group]):
    """The groups."""

    def __init__(self, path: Path = GROUP) -> None:
        super().__init__(
            path,
            lambda: ((entry.gr_gid, entry.gr_name) for entry in grp.getgrall()),
            lambda gid, name: batch_pb2.Group(gid=gid, name=name),
        )
