"""The source `core`: eBPF programs through libbpf and CO-RE.

Programs stay attached as long as somebody holds their links: this process, or
the monitor, to which `handover` gives them. A later sensor resumes from those
descriptors at the committed position, and nothing is lost between. Nothing is
pinned: when the agent is gone, so are its programs.
"""

import logging
import mmap
import os
import platform
import struct
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Final, Protocol

from tocsin.api.event.v1.batch_pb2 import SOURCE_CORE, LossCounter, Source, TypeCounter
from tocsin.api.event.v1.event_pb2 import (
    LOSS_REASON_RECORD_TOO_BIG,
    LOSS_REASON_RING_FULL,
    LOSS_REASON_SCRATCH_BUSY,
    LOSS_REASON_SKIPPED,
    LOSS_REASON_THROTTLED,
    EventType,
)
from tocsin.config import SensorConfig
from tocsin.errors import KernelError, TocsinError
from tocsin.kernel import acts, filters, libbpf
from tocsin.kernel.filters import EVENT_TYPES
from tocsin.kernel.objects import read_object
from tocsin.kernel.proof import prove
from tocsin.kernel.skipped import Skipped
from tocsin.kernel.source import Drained, SourceCounters
from tocsin.ring.drain import Ring

OBJECT: Final = "sensor.bpf.o"
OLD_OBJECT: Final = "sensor_before_5_12.bpf.o"
BTF: Final = Path("/sys/kernel/btf/vmlinux")
MOUNTS: Final = Path("/proc/self/mountinfo")
CAP_PERFMON: Final = 38
CAP_BPF: Final = 39
CAP_SYS_ADMIN: Final = 21

_MAPS: Final = ("events", "counters", "drained", "sightings", "settings", "acts")
"""What a resumed source needs; `acts` loses its programs when nobody holds it."""
_ITERATORS: Final = 2
"""Of images, of connections; in this order behind the maps."""
_PROCESSES: Final = ("on_exec", "on_fork", "on_exit", "on_free")
"""Always attached: what they keep, the others use."""
_COUNTERS: Final = struct.Struct(f"<Q{EVENT_TYPES * 5}QQQ")
"""struct counters of bpf/maps/maps.h."""
_OF_ENRICHMENT: Final = {"sightings": mmap.PAGESIZE, "sighted_files": 1, "sighted_groups": 1}
"""Maps that stay empty without it, and how small they can be."""
MAX_ANCESTOR_PASSES: Final = 16
_U32: Final = struct.Struct("<I")
_DRAINED: Final = struct.Struct("<QQ")
"""struct drained of bpf/maps/maps.h."""
_REASONS: Final = (
    LOSS_REASON_RING_FULL,
    LOSS_REASON_SCRATCH_BUSY,
    LOSS_REASON_RECORD_TOO_BIG,
    LOSS_REASON_THROTTLED,
    LOSS_REASON_SKIPPED,
)

log = logging.getLogger("sensor")


@dataclass(frozen=True, slots=True)
class Chosen:
    """The programs for some event types on this host."""

    tellers: tuple[acts.Teller, ...]
    """Those that on_syscall calls."""
    iterators: tuple[str, str]
    attached: tuple[str, ...]
    """By name, the iterators too."""
    cgroup: Path | None
    """Where those for control groups are attached."""

    @property
    def programs(self) -> frozenset[str]:
        """Names of all."""
        return frozenset((*self.attached, *(teller.program for teller in self.tellers)))


def open_core(config: SensorConfig, kept_fds: list[int], own_pid: int = 0) -> "CoreSource":
    """Loads and attaches the programs, or resumes from the descriptors of an earlier handover.

    `own_pid`: the agent's first process, 0: none of the processes is the agent's.
    Raises KernelError that says what is missing and what to do, ConfigError for filters that make no sense.
    """
    if kept_fds:
        return CoreSource(kept_fds, None)
    types = filters.wanted(config.filters.events)
    check_requirements()
    name = object_name()
    loaded = libbpf.BpfObject(read_object(name), name)
    loaded.resize("events", config.ring_bytes)
    if not config.enrich:
        for map_name, least in _OF_ENRICHMENT.items():
            loaded.resize(map_name, least)
    try:
        source = CoreSource(start(loaded, config, types, own_pid), loaded)
        prove(source, types)
    except TocsinError:
        loaded.close()
        raise
    return source


class Programs(Protocol):
    """Maps and programs that can be loaded and attached: libbpf.BpfObject, and what BCC compiled."""

    def keep_only(self, names: Collection[str]) -> None:
        """Leaves every other program out, before load."""

    def load(self) -> None:
        """Verifies and loads all programs and maps."""

    def attach(self, names: Collection[str], cgroup: Path | None = None) -> dict[str, int]:
        """Attaches programs, those for cgroups to `cgroup`; link descriptors by name."""

    def program_fds(self) -> dict[str, int]:
        """Descriptors of the programs by name, after load."""

    def map_fd(self, name: str) -> int:
        """Descriptor of a map, after load."""

    def close(self) -> None:
        """Closes what was loaded. Descriptors that were duplicated stay."""


def start(
    loaded: Programs, config: SensorConfig, types: frozenset[int], own_pid: int, left_out: Collection[str] = ()
) -> list[int]:
    """Loads what the types need, says what is wanted, attaches; the descriptors of `handover`.

    `left_out`: programs that tell of what the types need, and are not loaded all the same.
    """
    chosen = choose(types, left_out)
    loaded.keep_only(chosen.programs)
    loaded.load()
    _set_filters(loaded, config, types, own_pid)
    _set_acts(loaded, chosen.tellers)
    links = loaded.attach(chosen.attached, chosen.cgroup)
    first = [loaded.map_fd(name) for name in _MAPS] + [links.pop(name) for name in chosen.iterators]
    programs = loaded.program_fds()
    return [*first, *links.values(), *(programs[name] for name in links)]


def choose(types: frozenset[int], left_out: Collection[str] = ()) -> Chosen:
    """What these types need, as far as this host has a place for it."""
    tellers = tuple(teller for teller in acts.wanted_tellers(types) if teller.program not in left_out)
    possible, cgroup = _possible_hooks(types)
    hooks = [hook for hook in possible if hook.program not in left_out]
    iterators = _iterators()
    attached = [*_PROCESSES, *iterators, *(hook.program for hook in hooks), *(["on_syscall"] if tellers else [])]
    return Chosen(tellers, iterators, tuple(attached), cgroup)


def _iterators() -> tuple[str, str]:
    """Those that read what was there before, as far as this kernel lets them."""
    reads_memory = libbpf.has_function("bpf_copy_from_user_task")
    return "seed_images" if reads_memory else "seed_images_without_argv", "seed_connections"


def _possible_hooks(types: frozenset[int]) -> tuple[list[acts.Hook], Path | None]:
    """The programs to attach that this host has a place for, and the control group for those that need one."""
    possible = libbpf.has_tracepoints({hook.tracepoint for hook in acts.HOOKS if hook.tracepoint})
    cgroup = cgroup_root()
    hooks: list[acts.Hook] = []
    for hook in acts.wanted_hooks(types):
        if hook.cgroup and cgroup is None:
            log.warning("no cgroup2 hierarchy is mounted: %s is left out, UDP and DNS are not told", hook.program)
        elif not hook.tracepoint or hook.tracepoint in possible:
            hooks.append(hook)
    return hooks, cgroup


def cgroup_root(mounts: Path = MOUNTS) -> Path | None:
    """Where the cgroup2 hierarchy is mounted, its root before a part of it; None: it is not."""
    found = [line.split() for line in mounts.read_text().splitlines() if " - cgroup2 " in line]
    found.sort(key=lambda fields: fields[3] != "/")
    return Path(found[0][4]) if found else None


def _set_filters(loaded: Programs, config: SensorConfig, types: frozenset[int], own_pid: int) -> None:
    chosen = config.filters
    for key in filters.excluded(chosen):
        libbpf.update(loaded.map_fd("excluded"), b"\1", key)
    for name, verdicts in (
        ("path_verdicts", filters.path_verdicts(chosen)),
        ("name_verdicts", filters.name_verdicts(chosen)),
    ):
        for key, verdict in verdicts.items():
            libbpf.update(loaded.map_fd(name), bytes((verdict,)), key)
    libbpf.update(loaded.map_fd("settings"), filters.settings(chosen, types, own_pid, config.ring_bytes))


def _set_acts(loaded: Programs, tellers: Sequence[acts.Teller]) -> None:
    """Fills the tables: number -> act, act -> program."""
    programs = loaded.program_fds()
    for teller in tellers:
        for act in teller.syscalls:
            libbpf.update(loaded.map_fd("acts"), _U32.pack(programs[teller.program]), _U32.pack(act))
    for number, (native, compat) in acts.numbers(tellers, platform.machine()).items():
        libbpf.update(loaded.map_fd("syscalls"), _U32.pack(native) + _U32.pack(compat), _U32.pack(number))


def check_requirements() -> None:
    """Raises KernelError for the first thing that eBPF needs and this process or host lacks."""
    effective = int(_status_field("CapEff"), 16)
    needed = {"CAP_BPF": CAP_BPF, "CAP_PERFMON": CAP_PERFMON}
    missing = [name for name, bit in needed.items() if not effective >> bit & 1]
    if missing and not effective >> CAP_SYS_ADMIN & 1:
        raise KernelError(f"no privilege to load eBPF: {' and '.join(missing)} missing; run as root (sudo make run)")
    if not BTF.exists():
        raise KernelError(
            f"{BTF} is missing: this kernel ({os.uname().release}) has no BTF (CONFIG_DEBUG_INFO_BTF); "
            "use your distribution's kernel, 5.10 or newer"
        )


def object_name() -> str:
    """The object for the running kernel."""
    major, minor = os.uname().release.split(".")[:2]
    version = int(major), int("".join(takewhile(str.isdigit, minor)))
    return OBJECT if version >= (5, 12) else OLD_OBJECT


def _status_field(name: str) -> str:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return line.split()[1]
    raise KernelError(f"/proc/self/status has no {name}: mount /proc")


class CoreSource:
    """An EventSource on the kernel's ring buffer."""

    def __init__(self, fds: list[int], loaded: Programs | None, kind: Source.ValueType = SOURCE_CORE) -> None:
        """`fds`: maps, iterator links, program links, programs, in the order of `handover`. `kind`: who made these."""
        self.kind = kind
        if len(fds) <= len(_MAPS) + _ITERATORS:
            raise KernelError(f"got {len(fds)} descriptors to resume from: not a handover of this version")
        self._fds = fds
        self._loaded = loaded
        self._ring_fd, self._counters_fd, self._drained_fd, self._sightings_fd, self._settings_fd, _ = fds[: len(_MAPS)]
        self._images_link, self._connections_link = fds[len(_MAPS) : len(_MAPS) + _ITERATORS]
        self.skipped = Skipped(fds[len(_MAPS) + _ITERATORS :])
        """What the kernel skipped of what is attached."""
        self._ring = Ring(self._ring_fd, libbpf.max_entries(self._ring_fd))
        self._position, self._events = _DRAINED.unpack(libbpf.lookup(self._drained_fd, _DRAINED.size)[0])
        self._uncommitted: deque[tuple[int, int]] = deque()
        self._ring.commit(self._position)  # the last sensor may have died between the two marks

    def drain(self, max_bytes: int) -> Drained:
        """See EventSource."""
        start, first = self._position, self._events
        body, end, count, malformed = self._ring.drain(start, max_bytes)
        if end != start:
            self._position, self._events = end, first + count
            self._uncommitted.append((end, self._events))
        return Drained(body, count, start, end, first, malformed)

    def commit(self, position: int) -> None:
        """See EventSource. The mark that survives this process is set before the space is given back."""
        newest: tuple[int, int] | None = None
        while self._uncommitted and self._uncommitted[0][0] <= position:
            newest = self._uncommitted.popleft()
        if newest is not None:
            libbpf.update(self._drained_fd, _DRAINED.pack(*newest))
            self._ring.commit(newest[0])

    def counters(self) -> SourceCounters:
        """See EventSource; summed over the CPUs."""
        per_cpu = libbpf.lookup(self._counters_fd, _COUNTERS.size, per_cpu=True)
        totals = [sum(column) for column in zip(*(_COUNTERS.unpack(raw) for raw in per_cpu), strict=True)]
        table = [totals[1 + i * EVENT_TYPES : 1 + (i + 1) * EVENT_TYPES] for i in range(5)]
        skipped = self.skipped.counts()
        table.append([skipped[kind] for kind in range(EVENT_TYPES)])
        types = [
            TypeCounter(
                event_type=EventType.ValueType(kind),
                generated=table[0][kind],
                lost=[
                    LossCounter(reason=reason, count=lost[kind])
                    for reason, lost in zip(_REASONS, table[1:], strict=True)
                    if lost[kind]
                ],
            )
            for kind in range(EVENT_TYPES)
            if table[0][kind] or skipped[kind]
        ]
        return SourceCounters(types, images_missing=totals[-2], images_dropped=totals[-1])

    def seed(self) -> int:
        """See EventSource. Connections take two passes: listening ports, then their connections.

        Processes take as many as it takes until each knows its ancestors.
        """
        seeded = len(libbpf.run_iterator(self._images_link)) // 4
        for _ in range(MAX_ANCESTOR_PASSES):
            if not libbpf.run_iterator(self._images_link):
                break
        libbpf.run_iterator(self._connections_link)
        libbpf.run_iterator(self._connections_link)
        return seeded

    def sightings(self) -> tuple[int, int]:
        """See EventSource."""
        settings = libbpf.lookup(self._settings_fd, filters.SETTINGS_BYTES)[0]
        libbpf.update(self._settings_fd, filters.for_somebody_new(settings))
        return self._sightings_fd, libbpf.max_entries(self._sightings_fd)

    def handover(self) -> list[int]:
        """See EventSource."""
        return list(self._fds)

    def close(self) -> None:
        """See EventSource."""
        self._ring.close()
        if self._loaded is not None:
            self._loaded.close()
        else:
            for fd in self._fds:
                os.close(fd)
