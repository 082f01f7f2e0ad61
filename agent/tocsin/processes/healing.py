"""When running processes are read again: after events whose process or parent was not known.

An image is missing where its exec was lost or its table was full. Reading all
again costs milliseconds, so it is done at most every MIN_S, and ever more seldom
while it teaches nothing.
"""

import time
from typing import Final

from tocsin.kernel.source import EventSource, SourceCounters

MIN_S: Final = 5.0
MAX_S: Final = 300.0


class Healer:
    """Of one source."""

    def __init__(self, source: EventSource) -> None:
        """The source has just been seeded."""
        self._source = source
        self._missing = _missing(source.counters())
        self._wait_s = MIN_S
        self._next_s = time.monotonic() + MIN_S
        self.heals = 0
        """How often running processes were read again."""

    def look(self, counters: SourceCounters) -> None:
        """Reads them again if that is due."""
        missing, now_s = _missing(counters), time.monotonic()
        if missing == self._missing or now_s < self._next_s:
            return
        self._missing = missing
        self.heals += 1
        learnt = self._source.seed()
        self._wait_s = MIN_S if learnt else min(MAX_S, 2 * self._wait_s)
        self._next_s = now_s + self._wait_s


def _missing(counters: SourceCounters) -> int:
    return counters.images_missing + counters.images_dropped
