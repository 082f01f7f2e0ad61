"""Which source events come from: the one that is configured, or the most capable that this host allows."""

import logging
import os
from collections.abc import Callable
from typing import Final

from tocsin.config import SensorConfig
from tocsin.errors import KernelError, TocsinError
from tocsin.kernel.core import check_requirements, open_core
from tocsin.kernel.guard import AttachGuard
from tocsin.kernel.replay import open_replay
from tocsin.kernel.source import EventSource

log = logging.getLogger("sensor")

Opened = tuple[EventSource, str]
"""A source, and what it cannot see in words; empty when it sees all."""


def open_source(config: SensorConfig, kept_fds: list[int], guard: AttachGuard) -> Opened:
    """The source. `kept_fds`: what a former sensor left; then its source is resumed, not chosen anew.

    Raises KernelError, or ConfigError for settings that make no sense.
    """
    if kept_fds:
        guard.resume()
        return _resumed_bcc(kept_fds) if config.source == "bcc" else (open_core(config, kept_fds), "")
    if config.source == "auto":
        return _first(config, guard)
    return OPENERS[config.source](config, guard)


def _first(config: SensorConfig, guard: AttachGuard) -> Opened:
    """The first that this host allows; recorded events where none is."""
    reasons = []
    for name in AUTOMATIC:
        try:
            source, shortfall = OPENERS[name](config, guard)
        except KernelError as error:
            log.warning("source %s: %s", name, error)
            reasons.append(f"{name}: {error}")
        else:
            return source, "; ".join([shortfall, *reasons]) if shortfall else ""
    return open_replay(config), f"recorded events are shown, none of this host: {'; '.join(reasons)}"


def _core(config: SensorConfig, guard: AttachGuard) -> Opened:
    return _guarded(guard, lambda: (open_core(config, [], own_pid=os.getppid()), ""))


def _bcc(config: SensorConfig, guard: AttachGuard) -> Opened:
    from tocsin.kernel.bcc import source as bcc  # only for those who use it

    return _guarded(guard, lambda: bcc.open_bcc(config, own_pid=os.getppid()))


def _resumed_bcc(kept_fds: list[int]) -> Opened:
    from tocsin.kernel.bcc import source as bcc

    return bcc.resume_bcc(kept_fds), bcc.shortfall(frozenset(), ())


def _guarded(guard: AttachGuard, open_programs: Callable[[], Opened]) -> Opened:
    """Opens a source of eBPF behind the marker, which stays only when it is open."""
    check_requirements()
    guard.arm()
    try:
        return open_programs()
    except TocsinError:
        guard.disarm()
        raise


def _netlink(config: SensorConfig, _: AttachGuard) -> Opened:
    from tocsin.kernel.netlink import source as netlink  # pyroute2 is large: only for those who use it

    return netlink.open_netlink(config), netlink.shortfall()


def _replay(config: SensorConfig, _: AttachGuard) -> Opened:
    return open_replay(config), "recorded events are shown, none of this host: sensor.source is replay"


OPENERS: Final = {"core": _core, "bcc": _bcc, "netlink": _netlink, "replay": _replay}
"""How each source is opened."""
AUTOMATIC: Final = ("core", "netlink")
"""What `auto` tries. Not bcc: it takes half a minute, and where core fails it mostly fails too."""
