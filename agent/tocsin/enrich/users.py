"""Names of the host's users: read whole, bounded, read again when the user database's file changes.

Only for people and for rules on names; an event itself carries numbers.
"""

import pwd
from pathlib import Path
from typing import Final

from tocsin.api.event.v1 import batch_pb2

MAX_USERS: Final = 10_000
MAX_BYTES: Final = 128 << 10
"""Of names and numbers together: they travel in a batch's header."""
MAX_NAME_BYTES: Final = 256
ENTRY_BYTES: Final = 12
PASSWD: Final = Path("/etc/passwd")


class Users:
    """The users, as they were when `refresh` was called last."""

    def __init__(self, path: Path = PASSWD) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self.known: list[batch_pb2.User] = []

    def refresh(self) -> bool:
        """Reads the users again if the file is another one now; whether it is."""
        try:
            state = self._path.stat()
        except OSError:
            return False
        stamp = (state.st_mtime_ns, state.st_ino)
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        self.known = _read()
        return True


def _read() -> list[batch_pb2.User]:
    known: dict[int, batch_pb2.User] = {}
    size_bytes = 0
    for entry in pwd.getpwall():
        size_bytes += len(entry.pw_name) + ENTRY_BYTES
        if len(known) >= MAX_USERS or size_bytes > MAX_BYTES:
            break
        if len(entry.pw_name) <= MAX_NAME_BYTES and 0 <= entry.pw_uid < 1 << 32:
            name = entry.pw_name.encode(errors="replace").decode()
            known.setdefault(entry.pw_uid, batch_pb2.User(uid=entry.pw_uid, name=name))
    return list(known.values())
