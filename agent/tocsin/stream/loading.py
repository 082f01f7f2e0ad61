"""A release on its way from a caller to the monitor: bytes into sealed memory, a ticket, an answer.

The courier does not look into the bytes; it counts and hashes them. One load at
a time: its ticket stays taken until the monitor answers, also when the caller
has gone.
"""

import fcntl
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

from tocsin.errors import PeerError

MAX_RELEASE_BYTES: Final = 64 << 20
MAX_CHUNK_BYTES: Final = 1 << 20
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


class TooBigError(PeerError):
    """A caller sent more than the limit."""


class Upload:
    """The bytes of a release while they arrive. Close it, or use it as a context."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("release", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._hash = hashlib.sha256()
        self.size_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    @property
    def digest(self) -> bytes:
        """SHA-256 of what came so far."""
        return self._hash.digest()

    def add(self, chunk: bytes) -> None:
        """Takes the next bytes. Raises TooBigError."""
        if len(chunk) > MAX_CHUNK_BYTES:
            raise TooBigError(f"chunk of {len(chunk)} bytes, expected at most {MAX_CHUNK_BYTES}")
        if self.size_bytes + len(chunk) > MAX_RELEASE_BYTES:
            raise TooBigError(f"release of more than {MAX_RELEASE_BYTES} bytes")
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(self._fd, rest) :]
        self._hash.update(chunk)
        self.size_bytes += len(chunk)

    def seal(self) -> int:
        """Makes the bytes immutable for everyone; their file descriptor, which stays the upload's."""
        fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, _SEALS)
        return self._fd


@dataclass(frozen=True, slots=True)
class LoadResult:
    """The monitor's answer."""

    outcome: int
    """0 accepted, 1 refused, 2 busy."""
    digest: bytes
    """SHA-256 of the release that is active now; zeros: not told."""
    rules: int
    """Rules of that release; 0: not told."""
    refusal: bytes
    """Serialised Refusal."""


ACCEPTED: Final = 0
REFUSED: Final = 1
BUSY: Final = 2


class LoadDesk:
    """Hands out tickets, one at a time."""

    def __init__(self) -> None:
        self._last_ticket = 0
        self._on_result: Callable[[LoadResult], None] | None = None
        self._pending = False

    def begin(self, on_result: Callable[[LoadResult], None]) -> int:
        """A ticket for a load that begins. Raises PeerError while another is under way."""
        if self._pending:
            raise PeerError("another load is under way: try again when it has ended")
        self._pending = True
        self._last_ticket += 1
        self._on_result = on_result
        return self._last_ticket

    def answer(self, ticket: int, result: LoadResult) -> bool:
        """Passes on the monitor's answer; False: nobody waits for it."""
        if not self._pending or ticket != self._last_ticket:
            return False
        on_result = self._on_result
        self._pending, self._on_result = False, None
        if on_result is None:
            return False
        on_result(result)
        return True

    def leave(self, ticket: int) -> None:
        """The caller has gone; the ticket stays taken until its answer comes."""
        if ticket == self._last_ticket:
            self._on_result = None

    def give_up(self, ticket: int) -> None:
        """The load was never sent, or its answer is not waited for any longer."""
        if ticket == self._last_ticket:
            self._pending, self._on_result = False, None
