"""rpm's database, where it is SQLite (rpm 4.16 and later: Fedora 33, RHEL 9, openSUSE keeps another format).

A table leads from the last part of a path to packages and to the file's place in each; the header of the package, a
blob, has the directory, so that the whole path can be compared. The library is not needed, nor is a program started,
which the sandbox forbids. The database is opened as one that nobody writes: no lock is taken, no file is made; what
was read in the middle of a change is refused by SQLite or by the checks here, and is looked at again after it.

Header: two big-endian numbers (entries, bytes of data), 16 bytes for each entry (tag, type, offset, count), the data.
https://rpm-software-management.github.io/rpm/manual/format_header.html
"""

import sqlite3
import struct
from pathlib import Path
from typing import Final
from urllib.parse import quote

from tocsin.enrich.package import Package, merged_directories, spellings, stamp

DATABASES: Final = ("usr/lib/sysimage/rpm/rpmdb.sqlite", "var/lib/rpm/rpmdb.sqlite")
MAX_HEADER_BYTES: Final = 64 << 20
MAX_CANDIDATES: Final = 256
"""Files of the same name; programs have few namesakes."""

_NAME, _VERSION, _RELEASE, _EPOCH = 1000, 1001, 1002, 1003
_FILE_STATES, _DIRECTORY_INDEXES, _BASENAMES, _DIRECTORIES = 1029, 1116, 1117, 1118
_STATE_NORMAL: Final = 0
_QUERY: Final = (
    "SELECT p.blob, b.idx FROM Basenames b JOIN Packages p ON p.hnum = b.hnum "
    "WHERE b.key = ? AND length(p.blob) <= ? LIMIT ?"
)


class HeaderError(ValueError):
    """A blob is no header of a package."""


class Rpm:
    """The database below a root directory."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._stamp: object = None
        self._connection: sqlite3.Connection | None = None
        self._merged: frozenset[bytes] = frozenset()
        self.unreadable = 0

    def refresh(self) -> bool:
        """Opens the database again if it is another one now; whether it is."""
        now = stamp([self._root / path for path in DATABASES])
        if now == self._stamp:
            return False
        self._stamp = now
        self._open()
        return True

    def owner(self, path: bytes) -> Package | None:
        """The package that installed the path; None when none did or the database cannot be read."""
        if self._connection is None:
            return None
        same = spellings(path, self._merged)
        try:
            name = path.rpartition(b"/")[2].decode()
            for blob, index in self._connection.execute(_QUERY, (name, MAX_HEADER_BYTES, MAX_CANDIDATES)):
                header = Header(blob)
                if header.installed_path(index) in same:
                    return header.package()
        except (sqlite3.Error, HeaderError):
            self.unreadable += 1
        except UnicodeDecodeError:
            return None  # rpm takes UTF-8 only
        return None

    def _open(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._merged = merged_directories(self._root)
        database = next((self._root / path for path in DATABASES if (self._root / path).is_file()), None)
        if database is None:
            return
        try:
            self._connection = sqlite3.connect(f"file:{quote(str(database))}?mode=ro&immutable=1", uri=True)
        except sqlite3.Error:
            self.unreadable += 1


class Header:
    """The header of one package."""

    def __init__(self, blob: bytes) -> None:
        """Raises HeaderError when the sizes in it cannot be true."""
        try:
            entry_count, data_bytes = struct.unpack_from(">II", blob)
        except struct.error as error:
            raise HeaderError(f"got {len(blob)} bytes, expected 8 at least") from error
        data_at = 8 + 16 * entry_count
        if data_at + data_bytes > len(blob):
            raise HeaderError(f"got {len(blob)} bytes, expected {data_at + data_bytes}")
        self._data = blob[data_at : data_at + data_bytes]
        entries = struct.iter_unpack(">IIiI", blob[8:data_at])
        self._entries = {tag: (offset, count) for tag, _, offset, count in entries if 0 <= offset <= data_bytes}

    def installed_path(self, index: int) -> bytes | None:
        """The path of a file of the package; None for one that was left out or has been replaced by another's."""
        at, count = self._entries.get(_DIRECTORY_INDEXES, (0, 0))
        if not 0 <= index < count:
            raise HeaderError(f"got file {index}, expected one below {count}")
        states_at, state_count = self._entries.get(_FILE_STATES, (0, 0))
        if index < state_count and self._data[states_at + index : states_at + index + 1] != bytes([_STATE_NORMAL]):
            return None
        return self._string(_DIRECTORIES, self._number(at + 4 * index)) + self._string(_BASENAMES, index)

    def package(self) -> Package:
        """Name, and `epoch:version-release`, without an epoch of 0."""
        version = b"-".join((self._string(_VERSION, 0), self._string(_RELEASE, 0))).decode(errors="replace")
        epoch = self._number(self._entries[_EPOCH][0]) if _EPOCH in self._entries else 0
        return Package(
            self._string(_NAME, 0).decode(errors="replace"),
            f"{epoch}:{version}" if epoch else version,
        )

    def _number(self, at: int) -> int:
        try:
            return int(struct.unpack_from(">I", self._data, at)[0])
        except struct.error as error:
            raise HeaderError(f"got a number at {at}, expected it within {len(self._data)} bytes") from error

    def _string(self, tag: int, index: int) -> bytes:
        """One of the strings of a tag; each ends with a zero byte."""
        at, count = self._entries.get(tag, (0, 0))
        parts = self._data[at:].split(b"\0", index + 1)
        if not 0 <= index < count or len(parts) < index + 2:
            raise HeaderError(f"got string {index} of tag {tag}, expected one below {count}")
        return parts[index]
