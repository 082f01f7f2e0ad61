"""A cache that never grows beyond its bounds and counts what it does: the least recently used entry goes first.

Bounds are a number of entries and a number of bytes; what an entry weighs is
told by whoever puts it in. Not thread-safe.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class CacheCounters:
    """What a cache did since it was made, and what it holds now."""

    hits: int
    misses: int
    evictions: int
    """Entries that left to make room; an entry that weighs more than the whole cache counts too."""
    entries: int
    size_bytes: int


class BoundedCache(Generic[K, V]):
    """Values by key; `max_entries` of them at most, and `max_bytes` in all."""

    def __init__(self, max_entries: int, max_bytes: int) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._held: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._size_bytes = 0
        self._hits = self._misses = self._evictions = 0

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: K) -> V | None:
        """The value, which is the most recently used from now on; None where there is none."""
        held = self._held.get(key)
        if held is None:
            self._misses += 1
            return None
        self._hits += 1
        self._held.move_to_end(key)
        return held[0]

    def put(self, key: K, value: V, size_bytes: int) -> None:
        """Holds the value, in place of an earlier one with this key."""
        self.forget(key)
        self._held[key] = (value, size_bytes)
        self._size_bytes += size_bytes
        while len(self._held) > self._max_entries or self._size_bytes > self._max_bytes:
            _, (_, freed_bytes) = self._held.popitem(last=False)
            self._size_bytes -= freed_bytes
            self._evictions += 1

    def values(self) -> list[V]:
        """All values, the least recently used first."""
        return [value for value, _ in self._held.values()]

    def forget(self, key: K) -> None:
        """Holds no value with this key any more; that is no eviction."""
        held = self._held.pop(key, None)
        if held is not None:
            self._size_bytes -= held[1]

    def clear(self) -> None:
        """Holds nothing any more; that is no eviction."""
        self._held.clear()
        self._size_bytes = 0

    def counters(self) -> CacheCounters:
        """Hits, misses and evictions so far; entries and bytes now."""
        return CacheCounters(self._hits, self._misses, self._evictions, len(self._held), self._size_bytes)
