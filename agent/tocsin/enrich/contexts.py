"""The enricher's work: looks at what the kernel saw for the first time, and tells what it found once.

Sightings of executables and control groups come from a ring buffer of their own. What is found travels beside the
events, never in them: as fields of a batch's header, serialised here, so that the sensor appends them unread.

Nothing waits for it. When it is slow the kernel's ring fills, and what does not fit is not looked at; when
its reader is slow, what it found first is dropped and counted. Names of containers and paths come from whoever starts
them: the enricher's process parses what they say so that none with more privileges has to.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Final, Protocol

from tocsin.api.event.v1 import batch_pb2
from tocsin.enrich.cache import BoundedCache
from tocsin.enrich.cgroups import HIERARCHIES, ContainerRef, container_of, find_group, unified_path
from tocsin.enrich.containers import Container, Containers
from tocsin.enrich.hashes import Digests, Executable, Hasher
from tocsin.enrich.packages import Packages
from tocsin.enrich.reading import read_whole
from tocsin.enrich.sightings import Sighting, read_sighting, records
from tocsin.errors import WireError

MAX_PAYLOAD_BYTES: Final = 64 << 10
"""Of context in one message, and so in one batch's header; more than any single context takes."""
MAX_WAITING_BYTES: Final = 4 << 20
"""Of context that the sensor has not taken."""
TOLD_ENTRIES: Final = 20_000
TOLD_BYTES: Final = 8 << 20
DRAIN_BYTES: Final = 256 << 10
EARLIER_AT_ONCE: Final = 16
"""Sightings from before that one turn looks at."""

Context = batch_pb2.Executable | batch_pb2.Container
"""What is told."""


class SightingRing(Protocol):
    """The part of tocsin.ring.drain.Ring that is needed."""

    def consumer(self) -> int:
        """See Ring."""

    def drain(self, start: int, max_bytes: int) -> tuple[bytes, int, int, int]:
        """See Ring."""

    def commit(self, position: int) -> None:
        """See Ring."""


class Enricher:
    """Turns sightings into contexts, each told once while it is remembered."""

    def __init__(self, hasher: Hasher, root: Path = Path("/")) -> None:
        """The hasher runs already. `root`: where the host's files are."""
        self._root = root
        self._hasher = hasher
        self._containers = Containers(root)
        self._packages = Packages(root)
        self._told: BoundedCache[object, Context] = BoundedCache(TOLD_ENTRIES, TOLD_BYTES)
        self._groups: BoundedCache[int, bool] = BoundedCache(TOLD_ENTRIES, TOLD_BYTES)

    def see(self, sighting: Sighting) -> Iterator[Context]:
        """What can be told at once: the container. The executable is asked for, and told by `answers`."""
        if sighting.cgroup_id and self._groups.get(sighting.cgroup_id) is None:
            self._groups.put(sighting.cgroup_id, value=True, size_bytes=8)
            ref = self._container_of(sighting)
            if ref is not None:
                yield self._tell(sighting.cgroup_id, _container_message(sighting, self._containers.describe(ref)))
        if sighting.executable is not None:
            self._hasher.ask(sighting.executable)

    def answers(self) -> Iterator[Context]:
        """Executables that have been looked at since the last call."""
        for answer in self._hasher.take():
            yield self._tell(answer.key, self._executable_message(answer))

    def everything(self) -> Iterator[Context]:
        """What was told and is remembered: for somebody who has just begun to listen."""
        yield from self._told.values()

    def counters(self) -> dict[str, int]:
        """What was done, kept and refused since the start, by name."""
        hashed = self._hasher.counters()
        caches = {"hashes": hashed.cache, "containers": self._containers.counters()}
        caches |= {"packages": self._packages.counters(), "told": self._told.counters()}
        counted = {f"{name}.{key}": count for name, cache in caches.items() for key, count in asdict(cache).items()}
        counted |= {"hashes.files": hashed.hashed_files, "hashes.bytes": hashed.hashed_bytes}
        counted |= {"hashes.waiting": hashed.waiting, "packages.unreadable": self._packages.unreadable}
        counted |= {f"hashes.{failure.name.lower()}": count for failure, count in hashed.failures.items()}
        return counted | {f"containers.{each.name.lower()}": n for each, n in self._containers.troubles.items()}

    def _tell(self, key: object, context: Context) -> Context:
        self._told.put(key, context, context.ByteSize())
        return context

    def _container_of(self, sighting: Sighting) -> ContainerRef | None:
        """By the process while it lives, else by the group's own directory."""
        try:
            raw = read_whole(self._root / f"proc/{sighting.pid}/cgroup", MAX_PAYLOAD_BYTES)
        except OSError:
            paths = (find_group(self._root / mounted, sighting.cgroup_id) for mounted in HIERARCHIES)
            return container_of(next((path for path in paths if path is not None), ""))
        return container_of(unified_path(raw.decode(errors="replace")))

    def _executable_message(self, answer: Executable) -> batch_pb2.Executable:
        digests = answer.digests or Digests(b"", b"", b"")
        owner = self._packages.owner(answer.path) if answer.of_host else None
        return batch_pb2.Executable(
            dev=answer.key.dev,
            inode=answer.key.inode,
            size=answer.key.size_bytes,
            mtime_ns=answer.key.mtime_ns,
            path=answer.path,
            sha256=digests.sha256,
            sha1=digests.sha1,
            md5=digests.md5,
            package=owner.name if owner else "",
            package_version=owner.version if owner else "",
            error=answer.failure.value if answer.failure else "",
        )


class Loop:
    """One turn after the other: reads the ring, takes answers, sends."""

    def __init__(
        self,
        ring: SightingRing,
        enricher: Enricher,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
        earlier: Iterable[Sighting] = (),
    ) -> None:
        """`earlier`: what the ring does not tell, for it was there before; looked at bit by bit."""
        self._earlier = iter(earlier)
        self._ring = ring
        self._enricher = enricher
        self._position = ring.consumer()
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._max_waiting_bytes = max_waiting_bytes
        self.malformed = 0
        """Records that are no sightings."""
        self.dropped = 0
        """Messages that the sensor did not take in time."""

    def turn(self) -> bool:
        """Reads what the kernel saw and what the hasher found; what comes of it waits to be sent.

        Returns whether there is more to look at.
        """
        found: list[Context] = []
        body, end, _, malformed = self._ring.drain(self._position, DRAIN_BYTES)
        self.malformed += malformed
        for record in records(body):
            try:
                found += self._enricher.see(read_sighting(record))
            except WireError:
                self.malformed += 1
        more = end != self._position
        self._ring.commit(end)
        self._position = end
        for sighting in islice(self._earlier, EARLIER_AT_ONCE):
            found += self._enricher.see(sighting)
            more = True
        self._keep([*found, *self._enricher.answers()])
        return more

    def tell_everything(self) -> None:
        """All that is known is sent again: somebody new listens."""
        self._keep(self._enricher.everything())

    def next(self) -> bytes | None:
        """The message that is to be sent next: fields of a BatchHeader. None when there is none."""
        return self._waiting[0] if self._waiting else None

    def sent(self) -> None:
        """That message is on its way."""
        self._waiting_bytes -= len(self._waiting.popleft())

    def _keep(self, contexts: Iterable[Context]) -> None:
        for payload in payloads(contexts):
            self._waiting.append(payload)
            self._waiting_bytes += len(payload)
        while self._waiting_bytes > self._max_waiting_bytes:
            self.sent()
            self.dropped += 1


def payloads(contexts: Iterable[Context]) -> Iterator[bytes]:
    """Serialised BatchHeaders with nothing but contexts, in order, each of MAX_PAYLOAD_BYTES at most.

    Appended to another serialised BatchHeader they become part of it: that is
    how protobuf merges messages.
    """
    header = batch_pb2.BatchHeader()
    size_bytes = 0
    for context in contexts:
        added_bytes = context.ByteSize() + 8
        if size_bytes + added_bytes > MAX_PAYLOAD_BYTES:
            yield header.SerializeToString()
            header.Clear()
            size_bytes = 0
        size_bytes += added_bytes
        if isinstance(context, batch_pb2.Executable):
            header.executables.append(context)
        else:
            header.containers.append(context)
    if size_bytes:
        yield header.SerializeToString()


def _container_message(sighting: Sighting, container: Container) -> batch_pb2.Container:
    return batch_pb2.Container(
        id=container.id,
        runtime=container.runtime.value,
        name=container.name,
        image=container.image,
        labels=[batch_pb2.Label(key=key, value=value) for key, value in container.labels],
        cgroup_id=sighting.cgroup_id,
        pod_name=container.pod_name,
        pod_namespace=container.pod_namespace,
        pod_uid=container.pod_uid,
    )
