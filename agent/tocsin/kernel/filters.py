"""What the kernel side is told about what is wanted: a FilterConfig as contents of the filter maps.

Layouts are those of bpf/maps/maps.h. Importance is what decides who waits when
the ring fills: the least important types are held back first, the most
important never.
"""

import os
import struct
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final

from tocsin.api.event.v1 import event_pb2 as pb
from tocsin.config import FilterConfig
from tocsin.errors import ConfigError

EVENT_TYPES: Final = 64
"""Room for types in the maps."""
NAME_BYTES: Final = 32
COMM_BYTES: Final = 16
PREFIX_BYTES: Final = 128
FILTER_UIDS, FILTER_COMMS, FILTER_CGROUPS, FILTER_PATHS = 1, 2, 4, 8
IGNORE, WATCH, ASK_PATH, SOCKET = 1, 2, 4, 8
_SETTINGS: Final = struct.Struct(f"<QQII{EVENT_TYPES}I{EVENT_TYPES}I8x")
SETTINGS_BYTES: Final = _SETTINGS.size
_SIGHTINGS_FOR: Final = struct.Struct("<I4x")
"""The last members."""


def event_types(*names: str) -> frozenset[int]:
    """Numbers of event types by their names without EVENT_TYPE_."""
    return frozenset(pb.EventType.Value(f"EVENT_TYPE_{name}") for name in names)


CLASSES: Final = {
    "process": event_types("EXEC", "FORK", "EXIT"),
    "privilege": event_types("CREDENTIALS", "PTRACE", "PROCESS_WRITE", "PRCTL", "SIGNAL"),
    "isolation": event_types("NAMESPACE", "MOUNT", "UMOUNT", "PIVOT_ROOT", "CHROOT"),
    "file": frozenset(
        v for n, v in pb.EventType.items() if n.startswith(("EVENT_TYPE_FILE_", "EVENT_TYPE_DIRECTORY_"))
    ),
    "memory": event_types("MEMFD_CREATE", "MEMORY_EXECUTABLE"),
    "kernel": event_types("MODULE_LOAD", "MODULE_UNLOAD", "BPF", "KEXEC", "PERF_EVENT_OPEN", "IO_PORTS"),
    "network": event_types(
        "TCP_CONNECT",
        "TCP_ACCEPT",
        "TCP_CLOSE",
        "SOCKET_LISTEN",
        "SOCKET_BIND",
        "RAW_SOCKET",
        "UNIX_CONNECT",
        "UDP_FLOW",
    ),
    "dns": event_types("DNS_QUERY", "DNS_ANSWER"),
}
"""Names for groups of event types in the configuration."""
TOLD: Final = frozenset().union(*CLASSES.values())
"""Every type that the kernel side tells."""
QUIET_OWN: Final = CLASSES["file"] | CLASSES["network"] | CLASSES["memory"] | CLASSES["dns"] | CLASSES["kernel"]
"""What the agent does itself all day: told only when it is asked for."""
_LEAST: Final = event_types(
    "FILE_WRITE",
    "FILE_READ",
    "FILE_TIMES",
    "FILE_CHMOD",
    "FILE_CHOWN",
    "FILE_XATTR",
    "FILE_TRUNCATE",
    "UDP_FLOW",
    "PRCTL",
)
_LESS: Final = event_types(
    "FORK", "FILE_CREATE", "FILE_DELETE", "FILE_RENAME", "FILE_LINK", "FILE_SYMLINK", "DIRECTORY_CREATE", "TCP_CLOSE"
)


def wanted(events: Sequence[str]) -> frozenset[int]:
    """The event types that `FilterConfig.events` names. Raises ConfigError."""
    chosen: frozenset[int] = frozenset()
    for name in events:
        found = _named(name.removeprefix("-"))
        chosen = chosen - found if name.startswith("-") else chosen | found
    return chosen


def _named(name: str) -> frozenset[int]:
    if name == "all":
        return TOLD
    if name in CLASSES:
        return CLASSES[name]
    known = {pb.EventType.Name(pb.EventType.ValueType(kind)).removeprefix("EVENT_TYPE_"): kind for kind in TOLD}
    if name not in known:
        raise ConfigError(f"sensor.filters: no event type or class {name!r}; known: {', '.join([*CLASSES, *known])}")
    return frozenset((known[name],))


def settings(config: FilterConfig, types: Collection[int], own_pid: int, ring_bytes: int) -> bytes:
    """struct settings. `own_pid`: the agent's first process, 0: none."""
    limits = [0] * EVENT_TYPES
    for text in config.limits:
        name, _, count = text.partition("=")
        if not count.isdigit():
            raise ConfigError(f"sensor.filters.limits: got {text!r}, expected a type and a number: FILE_WRITE=2000")
        for kind in _named(name):
            limits[kind] = min(int(count), 0xFFFFFFFF)
    ring_limits = [_ring_limit(kind, ring_bytes) for kind in range(EVENT_TYPES)]
    filters = (
        FILTER_UIDS * bool(config.exclude_uids)
        | FILTER_COMMS * bool(config.exclude_comms)
        | FILTER_CGROUPS * bool(config.exclude_cgroups)
        | FILTER_PATHS * bool(config.ignore_paths)
    )
    quiet = frozenset() if config.own_events else QUIET_OWN
    return _SETTINGS.pack(_mask(types), _mask(quiet), own_pid, filters, *limits, *ring_limits)


def for_somebody_new(settings: bytes) -> bytes:
    """A struct settings that asks for sightings for somebody who has seen none yet."""
    fixed, last = settings[: -_SIGHTINGS_FOR.size], settings[-_SIGHTINGS_FOR.size :]
    (former,) = _SIGHTINGS_FOR.unpack(last)
    return fixed + _SIGHTINGS_FOR.pack(former % 0xFFFFFFFF + 1)


def _mask(types: Collection[int]) -> int:
    return sum(1 << kind for kind in types)


def _ring_limit(kind: int, ring_bytes: int) -> int:
    if kind in _LEAST:
        return ring_bytes // 2
    return ring_bytes // 4 * 3 if kind in _LESS else 0


def excluded(config: FilterConfig) -> Iterator[bytes]:
    """Keys of the map `excluded`. Raises ConfigError."""
    for uid in config.exclude_uids:
        if not 0 <= uid < 1 << 32:
            raise ConfigError(f"sensor.filters.exclude_uids: got {uid}, expected 0 to 4294967295")
        yield struct.pack("<I16s", FILTER_UIDS, struct.pack("<I", uid))
    for comm in config.exclude_comms:
        yield struct.pack("<I16s", FILTER_COMMS, _bounded(comm, COMM_BYTES, "exclude_comms"))
    for cgroup in config.exclude_cgroups:
        try:
            inode = Path(cgroup).stat().st_ino
        except OSError as error:
            raise ConfigError(f"sensor.filters.exclude_cgroups: {cgroup}: {error.strerror}") from error
        yield struct.pack("<I16s", FILTER_CGROUPS, struct.pack("<Q", inode))


def path_verdicts(config: FilterConfig) -> dict[bytes, int]:
    """Keys and values of the trie `path_verdicts`. Raises ConfigError."""
    found: dict[bytes, int] = {}
    for verdict, where, paths in (
        (IGNORE, "ignore_paths", config.ignore_paths),
        (WATCH, "watch_paths", config.watch_paths),
    ):
        for path in paths:
            raw = _bounded(path, PREFIX_BYTES, where)
            if not raw.startswith(b"/"):
                raise ConfigError(f"sensor.filters.{where}: {path!r} is not absolute")
            key = struct.pack(f"<I{PREFIX_BYTES}s", 8 * len(raw), raw)
            found[key] = found.get(key, 0) | verdict
    return found


def name_verdicts(config: FilterConfig) -> dict[bytes, int]:
    """Keys and values of the map `name_verdicts`: names, and the last parts of watched paths and sockets.

    Raises ConfigError.
    """
    found: dict[bytes, int] = {}
    for verdict, where, names in (
        (WATCH, "watch_names", config.watch_names),
        (ASK_PATH, "watch_paths", [Path(path).name for path in config.watch_paths]),
        (SOCKET, "watch_sockets", config.watch_sockets),
    ):
        for name in names:
            key = _bounded(name, NAME_BYTES, where).ljust(NAME_BYTES, b"\0")
            found[key] = found.get(key, 0) | verdict
    return found


def _bounded(text: str, size: int, where: str) -> bytes:
    """The bytes of a name that has to leave room for a NUL in `size` bytes."""
    raw = os.fsencode(text)
    if not raw or len(raw) >= size or b"\0" in raw:
        raise ConfigError(
            f"sensor.filters.{where}: {text!r} has {len(raw)} bytes, expected 1 to {size - 1}, without NUL"
        )
    return raw
