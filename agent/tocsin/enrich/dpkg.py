"""dpkg's database: `/var/lib/dpkg/info/<package>.list` names the paths of each package, `status` its version.

The lists of a host are ten and more megabytes. The index over them holds eight bytes for each path: 48 bits of its
hash and the number of a package. A hit is checked in that package's list, so a collision costs time and no truth.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from tocsin.enrich.package import Package, merged_directories, spellings, stamp
from tocsin.enrich.reading import read_whole

ADMIN: Final = "var/lib/dpkg"
MAX_PACKAGES: Final = 1 << 16
MAX_PATHS: Final = 4 << 20
"""Of all packages; 32 MiB of index."""
MAX_LIST_BYTES: Final = 32 << 20
MAX_STATUS_BYTES: Final = 128 << 20
LOCAL: Final = b":"
"""In place of a package, where the host's administrator diverted a file."""


@dataclass(frozen=True, slots=True)
class Diversion:
    """A file that a package would put at `path` lies at `moved_to`, unless it is the diverting package's own."""

    path: bytes
    moved_to: bytes
    package: bytes


class Dpkg:
    """The database below a root directory."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._admin = root / ADMIN
        self._info = self._admin / "info"
        self._stamp: object = None
        self._index: array[int] | None = None
        self._names: list[bytes] = []
        self._versions: dict[bytes, str] = {}
        self._diversions: list[Diversion] = []
        self._merged: frozenset[bytes] = frozenset()
        self.unreadable = 0

    def refresh(self) -> bool:
        """Forgets what was read if the database is another one now; whether it is. It is read when it is needed."""
        now = stamp([self._admin / "status", self._info, self._admin / "diversions"])
        if now == self._stamp:
            return False
        self._stamp = now
        self._index = None
        return True

    def owner(self, path: bytes) -> Package | None:
        """The package that lists the path and did not have its file diverted; the first by name, if several do."""
        if self._index is None:
            self._index = self._read()
        same = spellings(path, self._merged)
        moved_here = next((each for each in self._diversions if each.moved_to in same), None)
        if moved_here is not None:
            same = spellings(moved_here.path, self._merged)
            owners = (name for name in self._listing(same) if _bare(name) != moved_here.package)
        else:
            moved_away = next((each for each in self._diversions if each.path in same), None)
            owners = (name for name in self._listing(same) if not moved_away or _bare(name) == moved_away.package)
        found = min(owners, default=None)
        if found is None:
            return None
        return Package(_bare(found).decode(errors="replace"), self._versions.get(found, ""))

    def _listing(self, paths: tuple[bytes, ...]) -> Iterator[bytes]:
        """Packages whose list has one of the paths."""
        index = self._index or array("Q")
        for path in paths:
            first, last = _key(path, 0), _key(path, MAX_PACKAGES - 1)
            for position in range(bisect_left(index, first), bisect_right(index, last)):
                name = self._names[index[position] & 0xFFFF]
                if path in self._paths(name):
                    yield name

    def _read(self) -> "array[int]":
        self._merged = merged_directories(self._root)
        self._diversions = self._read_diversions()
        self._versions = self._read_versions()
        try:
            self._names = sorted(path.stem.encode() for path in islice(self._info.glob("*.list"), MAX_PACKAGES))
        except OSError:
            self._names = []
        keys: list[int] = []
        for number, name in enumerate(self._names):
            keys += [_key(path, number) for path in self._paths(name)]
            if len(keys) > MAX_PATHS:
                self.unreadable += 1
                break
        keys.sort()
        return array("Q", keys[:MAX_PATHS])

    def _paths(self, name: bytes) -> list[bytes]:
        return self._lines(self._info / f"{name.decode()}.list", MAX_LIST_BYTES)

    def _lines(self, path: Path, max_bytes: int) -> list[bytes]:
        try:
            return read_whole(path, max_bytes).splitlines()
        except FileNotFoundError:
            return []
        except OSError:
            self.unreadable += 1
            return []

    def _read_diversions(self) -> list[Diversion]:
        """Three lines each: path, where it is moved to, diverting package."""
        lines = self._lines(self._admin / "diversions", MAX_LIST_BYTES)
        return [Diversion(*each) for each in zip(lines[0::3], lines[1::3], lines[2::3], strict=False)]

    def _read_versions(self) -> dict[bytes, str]:
        """By name, and by `name:architecture`, as lists are called where several architectures may be installed."""
        versions: dict[bytes, str] = {}
        fields: dict[bytes, bytes] = {}
        for line in [*self._lines(self._admin / "status", MAX_STATUS_BYTES), b""]:
            if line:
                name, colon, value = line.partition(b": ")
                if colon and name in (b"Package", b"Architecture", b"Version"):
                    fields[name] = value.strip()
                continue
            package, version = fields.get(b"Package", b""), fields.get(b"Version", b"").decode(errors="replace")
            versions[package] = versions[package + b":" + fields.get(b"Architecture", b"")] = version
            fields = {}
        return versions


def _key(path: bytes, number: int) -> int:
    return (hash(path) & 0xFFFF_FFFF_FFFF) << 16 | number


def _bare(name: bytes) -> bytes:
    """Without the architecture."""
    return name.partition(b":")[0]
