"""Settings: read once, into one frozen tree; a process gets the part that it needs.

A setting comes from the command line, else from a TOML file, else from the
embedded default. An unknown key or a value out of its range is a ConfigError.
"""

import json
import os
import pwd
import tomllib
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, cast, get_args, get_origin, get_type_hints

from tocsin.errors import ConfigError

# Users of their own where the package has made none: numbers from the end of
# systemd's range for dynamic users, which no distribution hands out otherwise.
FALLBACK_UID: Final = {"tocsin-evaluator": 65490, "tocsin-courier": 65491, "tocsin-enricher": 65492}


SOURCES: Final = ("auto", "core", "bcc", "netlink", "replay")


def default_runtime_dir() -> str:
    """Root's, else one of the user's own."""
    if os.geteuid() == 0:
        return "/run/tocsin"
    own = os.environ.get("XDG_RUNTIME_DIR", "")
    return f"{own}/tocsin" if own.startswith("/") else f"/tmp/tocsin-{os.getuid()}"  # noqa: S108 - its owner is checked


def default_state_dir() -> str:
    """Root's, else one of the user's own."""
    return "/var/lib/tocsin" if os.geteuid() == 0 else str(Path("~/.local/state/tocsin").expanduser())


DEFAULT_WATCHED_PATHS: Final = (
    "/etc/shadow",
    "/etc/gshadow",
    "/etc/sudoers",
    "/etc/sudoers.d",
    "/etc/ssh",
    "/etc/krb5.keytab",
)
DEFAULT_WATCHED_NAMES: Final = (".ssh", ".gnupg", ".aws", ".azure", ".kube", ".docker", ".netrc", ".pgpass", "token")


@dataclass(frozen=True, slots=True)
class FilterConfig:
    """What the kernel side tells. What is not wanted costs next to nothing."""

    events: tuple[str, ...] = ("all",)
    """Names of event types (FILE_WRITE) or classes (file); a name behind "-" takes away: ["all", "-FILE_TIMES"]."""
    exclude_uids: tuple[int, ...] = ()
    """Real user ids whose processes are not told."""
    exclude_comms: tuple[str, ...] = ()
    """Names of threads (at most 15 bytes) that are not told. Any process can take such a name."""
    exclude_cgroups: tuple[str, ...] = ()
    """Cgroups, as directories under /sys/fs/cgroup, whose processes are not told."""
    own_events: bool = False
    """Whether the agent's own files and connections are told."""
    ignore_paths: tuple[str, ...] = ()
    """Beginnings of paths (at most 127 bytes) on which acts on files are not told."""
    watch_paths: tuple[str, ...] = DEFAULT_WATCHED_PATHS
    """Files, or directories, whose reading is told; directly in a directory, not deeper."""
    watch_names: tuple[str, ...] = DEFAULT_WATCHED_NAMES
    """Names of files, or of their directories, wherever they are, whose reading is told."""
    watch_sockets: tuple[str, ...] = ("docker.sock", "containerd.sock", "crio.sock", "podman.sock")
    """Last parts of Unix sockets' paths; connections to them are told."""
    limits: tuple[str, ...] = ()
    """Most events of a type in a second on one CPU: "FILE_WRITE=2000"."""


@dataclass(frozen=True, slots=True)
class SensorConfig:
    """Where events come from."""

    source: str = "auto"
    """auto, core, bcc, netlink or replay."""
    ring_bytes: int = 16 << 20
    """Size of the kernel's ring buffer; a power of two."""
    drain_interval_ms: int = 15
    """How often the ring is drained."""
    batch_bytes: int = 192 << 10
    """A batch is closed when it is larger."""
    connection_interval_ms: int = 1000
    """Source netlink: from one look at the connections to the next."""
    replay_file: str = ""
    """Recorded batches to show in place of live ones; empty: the packaged recording."""
    start_at_uptime_s: float = 0.0
    """The sensor is started when the host has been up for so long: eBPF stays out of the boot."""
    enrich: bool = True
    """Source core: whether executables are hashed and containers looked up, in a process of their own."""
    filters: FilterConfig = field(default_factory=FilterConfig)


@dataclass(frozen=True, slots=True)
class EvaluatorConfig:
    """Limits of the process that holds the content."""

    memory_bytes: int = 1 << 30
    """RLIMIT_AS."""
    hang_timeout_s: float = 5.0
    """Killed when it makes no progress for so long."""


@dataclass(frozen=True, slots=True)
class CourierConfig:
    """The process that talks gRPC."""

    max_subscribers: int = 64
    subscriber_buffer_bytes: int = 32 << 20
    reader_group: str = "tocsin"
    """Members of this group may read; root and the agent's own user may do everything."""


@dataclass(frozen=True, slots=True)
class Config:
    """Everything."""

    runtime_dir: str = field(default_factory=default_runtime_dir)
    """Sockets and the lock; tmpfs."""
    state_dir: str = field(default_factory=default_state_dir)
    """The active release."""
    release: str = ""
    """Release to start with; empty: the stored active one, else the packaged starter release."""
    sensor: SensorConfig = field(default_factory=SensorConfig)
    evaluator: EvaluatorConfig = field(default_factory=EvaluatorConfig)
    courier: CourierConfig = field(default_factory=CourierConfig)

    @property
    def socket_path(self) -> Path:
        """The gRPC socket."""
        return Path(self.runtime_dir) / "tocsin.sock"

    def to_json(self) -> str:
        """For the command line of a child process."""
        return json.dumps(asdict(self))


def from_mapping(values: dict[str, Any], where: str) -> Config:
    """A Config from parsed TOML or JSON. Raises ConfigError naming `where` and the key."""
    config = _filled(Config, values, f"{where}: ")
    _check_ranges(config, where)
    return config


Table = TypeVar("Table")


def _filled(cls: type[Table], values: object, where: str) -> Table:
    """A table of settings, with the tables in it. `where` ends with what stands before a key."""
    if not isinstance(values, dict):
        raise ConfigError(f"{where.rstrip('.: ')}: expected a table, got {type(values).__name__}")
    kinds = get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in kinds:
            raise ConfigError(f"{where}{key} is no setting; known: {', '.join(sorted(kinds))}")
        arguments[key] = _checked(kinds[key], value, f"{where}{key}")
    return cls(**arguments)


def _checked(kind: Any, value: object, where: str) -> object:
    if is_dataclass(kind):
        return _filled(cast("type[object]", kind), value, f"{where}.")
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: got {value!r}, expected a list")
        return tuple(_checked(get_args(kind)[0], item, where) for item in value)
    accepted = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{where}: got {value!r}, expected {kind.__name__}")
    return value


def _check_ranges(config: Config, where: str) -> None:
    ring = config.sensor.ring_bytes
    if ring < 4096 or ring & (ring - 1) or ring > 1 << 30:
        raise ConfigError(f"{where}: sensor.ring_bytes: got {ring}, expected a power of two, 4096 to 1 GiB")
    if not 1 <= config.sensor.drain_interval_ms <= 1000:
        raise ConfigError(
            f"{where}: sensor.drain_interval_ms: got {config.sensor.drain_interval_ms}, expected 1 to 1000"
        )
    if not 4096 <= config.sensor.batch_bytes <= 512 << 10:
        raise ConfigError(f"{where}: sensor.batch_bytes: got {config.sensor.batch_bytes}, expected 4096 to 524288")
    interval = config.sensor.connection_interval_ms
    if not 10 <= interval <= 60_000:
        raise ConfigError(f"{where}: sensor.connection_interval_ms: got {interval}, expected 10 to 60000")
    if config.sensor.source not in SOURCES:
        known = ", ".join(SOURCES)
        raise ConfigError(f"{where}: sensor.source: got {config.sensor.source!r}, expected one of {known}")


def load(path: Path) -> Config:
    """Reads a TOML file. Raises ConfigError."""
    try:
        return from_mapping(tomllib.loads(path.read_text()), str(path))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}; mend the file or leave --config out") from error


def from_json(text: str) -> Config:
    """The inverse of Config.to_json."""
    return from_mapping(json.loads(text), "child's arguments")


def process_uid(user: str) -> int:
    """Uid of one of the agent's own users; a fixed number where the package has not made the user.

    Not root: the caller's own uid, since it could not change to another.
    """
    if os.geteuid() != 0:
        return os.getuid()
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return FALLBACK_UID[user]
