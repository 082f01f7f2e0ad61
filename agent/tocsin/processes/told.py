"""Which losses in the kernel subscribers were told of.

The kernel's counters outlive a sensor, and so must this: what was lost while no
sensor ran is the difference. It stands in a memory file whose descriptor the
monitor keeps with those of the source.
"""

import os
import struct
from collections import Counter
from typing import Final

from tocsin.api.event.v1 import batch_pb2
from tocsin.errors import KernelError
from tocsin.kernel.source import SourceCounters

Key = tuple[int, int]
"""Event type and loss reason."""
_ROW: Final = struct.Struct("<IIQ")
"""Event type, reason, count."""
_MAX_BYTES: Final = 4096
"""One page is written in one piece, whenever the writer is killed."""


class ToldLosses:
    """The memory file. `fd` is its descriptor."""

    def __init__(self, kept_fd: int | None = None) -> None:
        """`kept_fd`: what a former sensor left; None: nothing was told yet. Raises KernelError when unreadable."""
        self.fd = os.memfd_create("told-losses", os.MFD_CLOEXEC) if kept_fd is None else kept_fd
        try:
            raw = os.pread(self.fd, _MAX_BYTES, 0)
            self._counts: Counter[Key] = Counter({(kind, reason): n for kind, reason, n in _ROW.iter_unpack(raw)})
        except (OSError, struct.error) as error:
            raise KernelError(f"losses told by the former sensor are not readable: {error}") from error

    def counters(self) -> SourceCounters:
        """The losses that were told, as counters of a source."""
        return SourceCounters(
            [
                batch_pb2.TypeCounter(
                    event_type=kind,  # type: ignore[arg-type]
                    lost=[batch_pb2.LossCounter(reason=reason, count=count)],  # type: ignore[arg-type]
                )
                for (kind, reason), count in self._counts.items()
            ]
        )

    def note(self, counts: Counter[Key]) -> None:
        """Subscribers were told of so many; fewer than before is no news. Counts only grow, so no row goes away."""
        if counts <= self._counts:
            return
        self._counts = counts
        os.pwrite(self.fd, b"".join(_ROW.pack(*key, count) for key, count in sorted(counts.items())), 0)


def lost(counters: SourceCounters) -> Counter[Key]:
    """What a source's counters say about losses."""
    return Counter({(each.event_type, loss.reason): loss.count for each in counters.types for loss in each.lost})
