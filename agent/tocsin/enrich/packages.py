"""Which package of the distribution owns a path, on demand; dpkg's and rpm's databases are read, no program is run.

That a package owns a path says what should lie there, not that nobody has replaced it: the digests tell that.
A path is of the host's own tree: what lies in a container's is not for this database.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tocsin.enrich.cache import BoundedCache, CacheCounters
from tocsin.enrich.dpkg import Dpkg
from tocsin.enrich.package import Package
from tocsin.enrich.rpm import Rpm

CACHE_ENTRIES: Final = 16_384
CACHE_BYTES: Final = 4 << 20
ENTRY_BYTES: Final = 200
REFRESH_S: Final = 10.0
"""A change of a database shows within this time: while packages are installed it changes all the time."""


class Packages:
    """The package databases of a root directory."""

    def __init__(self, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic) -> None:
        self._databases: tuple[Dpkg, Rpm] = (Dpkg(root), Rpm(root))
        self._clock = clock
        self._refresh_at_s = 0.0
        self._known: BoundedCache[bytes, tuple[Package | None]] = BoundedCache(CACHE_ENTRIES, CACHE_BYTES)

    def owner(self, path: bytes) -> Package | None:
        """The package that owns the path; None when none does, or there is no database that can be read."""
        self._refresh()
        known = self._known.get(path)
        if known is None:
            owners = (database.owner(path) for database in self._databases)
            known = (next((owner for owner in owners if owner is not None), None),)
            self._known.put(path, known, ENTRY_BYTES + len(path))
        return known[0]

    def counters(self) -> CacheCounters:
        """Of the cache."""
        return self._known.counters()

    @property
    def unreadable(self) -> int:
        """Times that a database could not be read, or was not what it should be."""
        return sum(database.unreadable for database in self._databases)

    def _refresh(self) -> None:
        now_s = self._clock()
        if now_s >= self._refresh_at_s:
            self._refresh_at_s = now_s + REFRESH_S
            for database in self._databases:
                if database.refresh():
                    self._known.clear()
