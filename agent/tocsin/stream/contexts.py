"""What the enricher told, for subscribers who come later: the newest word on each file and group, bounded.

The courier keeps it as it came in batches' headers. A courier that was replaced is told everything anew.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from google.protobuf.message import Message

from tocsin.api.event.v1 import batch_pb2
from tocsin.records import framing

MAX_BYTES: Final = 8 << 20
"""Of serialised contexts; the oldest go first."""
BATCH_BYTES: Final = 256 << 10
"""A batch for a new subscriber is closed when it is larger."""
Key = tuple[int, ...]


class Contexts:
    """Executables and containers, the one told last at the end."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._size_bytes = 0
        self._known: OrderedDict[Key, bytes] = OrderedDict()
        """As fields of a serialised BatchHeader."""

    def note(self, header: batch_pb2.BatchHeader) -> None:
        """Keeps what a batch tells."""
        for one in header.executables:
            self._keep((one.dev, one.inode, one.size, one.mtime_ns), header.EXECUTABLES_FIELD_NUMBER, one)
        for other in header.containers:
            self._keep((other.cgroup_id,), header.CONTAINERS_FIELD_NUMBER, other)
        while self._size_bytes > self._max_bytes:
            _, oldest = self._known.popitem(last=False)
            self._size_bytes -= len(oldest)

    def _keep(self, key: Key, number: int, context: Message) -> None:
        field = framing.field(number, context.SerializeToString())
        self._size_bytes += len(field) - len(self._known.pop(key, b""))
        self._known[key] = field

    def batches(self, position: int) -> Iterator[bytes]:
        """Serialised batches at a position that hold no event, and in all everything that is kept."""
        place = batch_pb2.BatchHeader(start_position=position, end_position=position).SerializeToString()
        header = place
        for field in self._known.values():
            header += field
            if len(header) >= BATCH_BYTES:
                yield framing.header_field(header)
                header = place
        if header != place:
            yield framing.header_field(header)


def tells_once(header: batch_pb2.BatchHeader) -> bool:
    """Whether it has what is not said again: names, executables, containers."""
    return bool(header.users or header.groups or header.executables or header.containers)
