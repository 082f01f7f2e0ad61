"""The channels of a sensor, an evaluator or an enricher: the monitor's, and those of peers, which come and go.

A peer that is gone, or that sends what it may not, is dropped, and the monitor
attaches another one. The monitor's own end is the end of the process: it is
raised.
"""

import logging
import selectors
from collections.abc import Callable
from typing import Final

from tocsin.errors import PeerError
from tocsin.processes.channel import Channel, Message

MESSAGES_AT_ONCE: Final = 16
"""Read from one channel before the others are looked at."""
Take = Callable[[Message], None]
"""Deals with one message; raises PeerError when the peer may not send it."""


class Peers:
    """Reads channels. Not thread-safe."""

    def __init__(self, monitor: Channel, take: Take, gone: Callable[[Channel], None], log: logging.Logger) -> None:
        """`gone` is told of each peer that was dropped, `log` why."""
        self._monitor = monitor
        self._gone = gone
        self._log = log
        self._peers: dict[Channel, tuple[str, Take]] = {monitor: ("monitor", take)}
        self._held: set[Channel] = set()
        self._selector = selectors.DefaultSelector()
        self._selector.register(monitor, selectors.EVENT_READ)

    def attach(self, name: str, channel: Channel, take: Take, former: Channel | None) -> Channel:
        """Reads a new peer from now on, in place of a former one."""
        self.drop(former, "replaced")
        self._peers[channel] = name, take
        self._selector.register(channel, selectors.EVENT_READ)
        return channel

    def drop(self, channel: Channel | None, reason: str) -> None:
        """Closes a peer's channel; again, or for nobody, is no error."""
        if channel is None or channel not in self._peers:
            return
        name, _ = self._peers.pop(channel)
        self._log.info("%s: %s", name, reason)
        if channel in self._held:
            self._held.remove(channel)
        else:
            self._selector.unregister(channel)
        channel.close()
        self._gone(channel)

    def hold(self, channel: Channel, *, held: bool) -> None:
        """Leaves what comes from a peer unread, or reads on."""
        if held and channel not in self._held:
            self._held.add(channel)
            self._selector.unregister(channel)
        elif not held and channel in self._held:
            self._held.remove(channel)
            self._selector.register(channel, selectors.EVENT_READ)

    def watch(self, fd: int) -> None:
        """`serve` also returns when this becomes readable."""
        self._selector.register(fd, selectors.EVENT_READ)

    def unwatch(self, fd: int) -> None:
        """The inverse of `watch`."""
        self._selector.unregister(fd)

    def serve(self, timeout_s: float) -> None:
        """Waits for messages and takes them. Raises PeerError when the monitor is gone."""
        for key, _ in self._selector.select(timeout_s):
            if isinstance(key.fileobj, Channel):
                self._read(key.fileobj)

    def _read(self, channel: Channel) -> None:
        try:
            for _ in range(MESSAGES_AT_ONCE):
                # the last message may have dropped or held it
                if channel not in self._peers or channel in self._held or (message := channel.receive()) is None:
                    return
                _, take = self._peers[channel]
                take(message)
        except PeerError as error:
            if channel is self._monitor:
                raise
            self.drop(channel, str(error))

    def send(self, channel: Channel, message: Message) -> bool:
        """Sends to a peer without waiting. False: it cannot take it now, or it is gone and was dropped."""
        try:
            return channel.send(message)
        except PeerError as error:
            self.drop(channel, str(error))
            return False
