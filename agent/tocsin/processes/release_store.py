"""Compiled releases as the monitor holds them: opaque bytes in sealed memory, and files named by their digest."""

import fcntl
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import tocsin
from tocsin.errors import ContentError
from tocsin.files import replace

STARTER: Final = Path(tocsin.__file__).with_name("starter.release")
MAX_RELEASE_BYTES: Final = 64 << 20
COPY_BYTES: Final = 1 << 20
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


@dataclass(frozen=True, slots=True)
class HeldRelease:
    """A release in sealed memory."""

    fd: int
    digest: bytes
    origin: str
    """For people."""

    def close(self) -> None:
        """Gives the memory back."""
        os.close(self.fd)


def hold(fd: int, origin: str) -> HeldRelease:
    """Copies a regular file or memory file into sealed memory. Raises ContentError, OSError."""
    state = os.fstat(fd)
    if not stat.S_ISREG(state.st_mode):
        raise ContentError("UNREADABLE", f"{origin}: no regular file")
    if state.st_size > MAX_RELEASE_BYTES:
        raise ContentError("TOO_LARGE", f"{origin}: {state.st_size} bytes, expected at most {MAX_RELEASE_BYTES}")
    held = os.memfd_create("release", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    digest, at = hashlib.sha256(), 0
    while at < MAX_RELEASE_BYTES and (chunk := os.pread(fd, COPY_BYTES, at)):
        digest.update(chunk)
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(held, rest) :]
        at += len(chunk)
    fcntl.fcntl(held, fcntl.F_ADD_SEALS, _SEALS)
    return HeldRelease(held, digest.digest(), origin)


def hold_path(path: Path) -> HeldRelease:
    """The release in a file. Raises ContentError, OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return hold(fd, str(path))
    finally:
        os.close(fd)


class ReleaseStore:
    """The directory `content` below the state directory."""

    def __init__(self, state_dir: Path) -> None:
        self._dir = state_dir / "content"
        self._active = self._dir / "active"

    def prepare(self) -> None:
        """Makes the directory. Raises OSError."""
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)

    def store(self, release: HeldRelease) -> None:
        """Writes the release under its digest. Raises OSError."""
        at, chunks = 0, []
        while chunk := os.pread(release.fd, COPY_BYTES, at):
            chunks.append(chunk)
            at += len(chunk)
        replace(self._path(release.digest.hex()), b"".join(chunks))

    def activate(self, release: HeldRelease) -> None:
        """Makes a stored release the one to start with, and removes the others. Raises OSError."""
        replace(self._active, f"{release.digest.hex()}\n".encode())
        for other in self._dir.glob("*.release"):
            if other != self._path(release.digest.hex()):
                other.unlink(missing_ok=True)

    def active(self) -> HeldRelease | None:
        """The stored active release; None when there is none. Raises ContentError, OSError."""
        try:
            name = self._active.read_text().strip()
        except FileNotFoundError:
            return None
        if len(name) != 64 or not name.isalnum():
            raise ContentError("UNREADABLE", f"{self._active}: {name[:80]!r} is no digest")
        held = hold_path(self._path(name))
        if held.digest.hex() != name:
            held.close()
            raise ContentError("UNREADABLE", f"{self._path(name)}: its bytes have digest {held.digest.hex()}")
        return held

    def _path(self, name: str) -> Path:
        return self._dir / f"{name}.release"
