"""Arguments that several verbs share, and what they mean."""

import argparse
import pwd
from pathlib import Path
from typing import Final

from tocsin import config as configuration
from tocsin.api.event.v1 import batch_pb2, event_pb2
from tocsin.errors import ConfigError

EVENT_TYPES: Final = {
    name.removeprefix("EVENT_TYPE_").lower(): number for name, number in event_pb2.EventType.items() if number
}
SECONDS_OF_UNIT: Final = {"s": 1, "m": 60, "h": 3600}
LEVELS: Final = {name.removeprefix("LEVEL_").lower(): number for name, number in batch_pb2.Level.items() if number}


def add_agent(parser: argparse.ArgumentParser) -> None:
    """How the agent is found."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings (TOML); default: built in")
    parser.add_argument("--socket", type=Path, metavar="PATH", help="the agent's socket; default: from the settings")


def add_json(parser: argparse.ArgumentParser, what: str) -> None:
    """Output for programs."""
    parser.add_argument("--json", action="store_true", help=f"print {what}")


def add_sources(parser: argparse.ArgumentParser, what: str = "directory with Sigma rules and their samples") -> None:
    """Where the content is."""
    parser.add_argument("paths", type=Path, nargs="+", metavar="DIR", help=f"{what}; several make one release")


def sources(arguments: argparse.Namespace) -> list[Path]:
    """Where the content is. Raises ConfigError when nothing is there."""
    return [existing(path, "file or directory") for path in arguments.paths]


def add_event_filter(parser: argparse.ArgumentParser) -> None:
    """Which events."""
    parser.add_argument("--for", dest="seconds", type=seconds, metavar="DURATION", help="end after so long (15s, 2m)")
    parser.add_argument(
        "--type", action="append", default=[], choices=sorted(EVENT_TYPES), help="only such events; may be repeated"
    )
    parser.add_argument(
        "--uid", action="append", default=[], type=uid, metavar="USER", help="only of this user; may be repeated"
    )


def read_config(arguments: argparse.Namespace) -> configuration.Config:
    """The settings. Raises ConfigError."""
    path: Path | None = arguments.config
    return configuration.load(path) if path else configuration.Config()


def socket_path(arguments: argparse.Namespace) -> Path:
    """Where the agent listens. Raises ConfigError."""
    path: Path | None = arguments.socket
    return path or read_config(arguments).socket_path


def seconds(text: str) -> float:
    """A duration greater than zero: 15, 15s, 2m, 1h."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in SECONDS_OF_UNIT else (text, "s")
    try:
        value = float(number) * SECONDS_OF_UNIT[unit]
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a duration such as 15s, 2m or 1h")
    return value


def uid(text: str) -> int:
    """A user id from a number or a name."""
    if text.isascii() and text.isdigit() and int(text) < 1 << 32:
        return int(text)
    try:
        return pwd.getpwnam(text).pw_uid
    except KeyError:
        raise argparse.ArgumentTypeError(f"{text!r} is no user of this host, and no user id") from None


def existing(path: Path, what: str) -> Path:
    """The path. Raises ConfigError when nothing is there."""
    if not path.exists():
        raise ConfigError(f"{path}: no such {what}")
    return path
