"""Outcomes of exact checks, remembered by what was checked.

Every field that a rule of the release may look at stands in an event's piece of
the scan buffer, as the exact check sees it: two events of one type with the
same piece have the same outcome. Hosts repeat themselves, so most candidates
are decided without decoding. Bounded; when it is full it starts over.
"""

from typing import Final

MAX_BYTES: Final = 8 << 20
ENTRY_BYTES: Final = 200
"""What an entry costs beside its key, about."""

Key = tuple[int, bytes]
"""Event type, and the event's piece of the scan buffer."""


class Memo:
    """Key -> numbers of the rules that such an event satisfies."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._outcomes: dict[Key, tuple[int, ...]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._outcomes)

    def get(self, key: Key) -> tuple[int, ...] | None:
        """The outcome; None when it is not known."""
        return self._outcomes.get(key)

    def put(self, key: Key, numbers: tuple[int, ...]) -> None:
        """Remembers an outcome that was not known."""
        size = len(key[1]) + ENTRY_BYTES
        if self._bytes + size > self._max_bytes:
            self._outcomes.clear()
            self._bytes = 0
        if size <= self._max_bytes:
            self._outcomes[key] = numbers
            self._bytes += size
