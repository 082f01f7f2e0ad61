"""What the monitor knows of the agent, told to the courier each second.

A fixed struct, for the monitor is root and runs no parser: it only writes this.
The courier reads it with every bound checked. Integers are little-endian.
"""

import struct
from dataclasses import dataclass
from typing import Final

from tocsin.errors import WireError
from tocsin.processes.channel import NO_DIGEST

MAGIC: Final = b"TST1"
MAX_TEXT_BYTES: Final = 1024
MAX_ENRICHMENT_BYTES: Final = 4096
MAX_PROCESSES: Final = 64
_HEAD: Final = struct.Struct("<4sBBHHHHIIqQQ32s")
"""Magic, health, source, sizes of reason, name and enrichment, count of processes, rules, inert, start, two progresses,
digest."""
_PROCESS: Final = struct.Struct("<BIII")


@dataclass(frozen=True, slots=True)
class ProcessState:
    """One process of the agent."""

    role: int
    """tocsin.api.control.v1.Role."""
    pid: int
    """0 while it is being restarted."""
    restarts: int
    uid: int


@dataclass(frozen=True, slots=True)
class AgentState:
    """The agent at one moment."""

    health: int = 0
    """tocsin.api.control.v1.Health; 0: not known yet."""
    reason: str = ""
    """Why health is not OK."""
    source: int = 0
    """tocsin.api.event.v1.Source."""
    processes: tuple[ProcessState, ...] = ()
    release_digest: bytes = NO_DIGEST
    """SHA-256 of the active release; zeros: none."""
    release_name: bytes = b""
    """As the evaluator told it: bytes that the monitor has not read."""
    rules: int = 0
    rules_inert: int = 0
    """Rules that this host's event schema cannot serve."""
    start_monotonic_ns: int = 0
    """CLOCK_MONOTONIC at the agent's start."""
    sensor_progress: int = 0
    """Counter `a` of the sensor's last heartbeat."""
    evaluator_progress: int = 0
    """Counter `a` of the active evaluator's last heartbeat."""
    enrichment: bytes = b""
    """What the enricher's last heartbeat said: a serialised EnrichmentStatus that the monitor has not read."""

    def pack(self) -> bytes:
        """For a STATE message. Texts longer than MAX_TEXT_BYTES are cut, an enrichment that is too long is left out.

        Raises ValueError for other excesses.
        """
        if len(self.processes) > MAX_PROCESSES or len(self.release_digest) != len(NO_DIGEST):
            raise ValueError(f"got {len(self.processes)} processes and a digest of {len(self.release_digest)} bytes")
        reason = self.reason.encode(errors="replace")[:MAX_TEXT_BYTES]
        name = self.release_name[:MAX_TEXT_BYTES]
        enrichment = self.enrichment if len(self.enrichment) <= MAX_ENRICHMENT_BYTES else b""
        numbers = (len(self.processes), self.rules, self.rules_inert, self.start_monotonic_ns)
        try:
            head = _HEAD.pack(
                MAGIC,
                self.health,
                self.source,
                len(reason),
                len(name),
                len(enrichment),
                *numbers,
                self.sensor_progress,
                self.evaluator_progress,
                self.release_digest,
            )
            rows = [_PROCESS.pack(p.role, p.pid, p.restarts, p.uid) for p in self.processes]
        except struct.error as error:
            raise ValueError(f"{self}: {error}") from error
        return b"".join((head, reason, name, enrichment, *rows))


def unpack(data: bytes) -> AgentState:
    """The inverse of AgentState.pack. Raises WireError for anything that pack does not make."""
    if len(data) < _HEAD.size:
        raise WireError(f"state of {len(data)} bytes, expected at least {_HEAD.size}")
    fields = _HEAD.unpack_from(data)
    magic, health, source, reason_size, name_size, enrichment_size, count = fields[:7]
    too_long = max(reason_size, name_size) > MAX_TEXT_BYTES or enrichment_size > MAX_ENRICHMENT_BYTES
    if magic != MAGIC or too_long or count > MAX_PROCESSES:
        sizes = f"{reason_size}, {name_size} and {enrichment_size}"
        raise WireError(f"state with magic {magic!r}, texts of {sizes} bytes, {count} processes")
    name_at = _HEAD.size + reason_size
    enrichment_at = name_at + name_size
    rows_at = enrichment_at + enrichment_size
    expected = rows_at + count * _PROCESS.size
    if len(data) != expected:
        raise WireError(f"state of {len(data)} bytes, expected {expected}")
    rules, rules_inert, start_monotonic_ns, sensor_progress, evaluator_progress, digest = fields[7:]
    return AgentState(
        health=health,
        reason=data[_HEAD.size : name_at].decode(errors="replace"),
        source=source,
        processes=tuple(ProcessState(*row) for row in _PROCESS.iter_unpack(data[rows_at:])),
        release_digest=digest,
        release_name=data[name_at:enrichment_at],
        enrichment=data[enrichment_at:rows_at],
        rules=rules,
        rules_inert=rules_inert,
        start_monotonic_ns=start_monotonic_ns,
        sensor_progress=sensor_progress,
        evaluator_progress=evaluator_progress,
    )
