"""The enricher: looks up what the kernel saw for the first time, and gives it to the sensor.

Its life: load libraries, enter the sandbox, start the hasher's thread, then one
loop: the ring that the sensor gave, the hasher's answers, the channels. It reads
files that strangers wrote, which is why no other process does. No event waits for
it, and none is lost with it.
"""

import argparse
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Final

from tocsin import config as configuration
from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.enrich.contexts import Enricher, Loop
from tocsin.enrich.hashes import Hasher
from tocsin.enrich.running import running
from tocsin.errors import PeerError, TocsinError
from tocsin.processes.channel import Channel, Kind, Message, unexpected
from tocsin.processes.peers import Peers
from tocsin.records import framing
from tocsin.ring.drain import Ring
from tocsin.sandbox.profiles import enter_enricher

log = logging.getLogger("enricher")

HEARTBEAT_S: Final = 1.0
BLOCKED_RETRY_S: Final = 0.05


def main(argv: Sequence[str] | None = None) -> int:
    """Runs until the monitor ends it; 1 when it cannot start."""
    parser = argparse.ArgumentParser(prog="tocsin.processes.enricher")
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--config", required=True)
    arguments = parser.parse_args(argv)
    level = os.environ.get("TOCSIN_LOG_LEVEL", "INFO")
    logging.basicConfig(stream=sys.stderr, level=level, format="%(name)s: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        configuration.from_json(arguments.config)
        monitor = Channel(socket.socket(fileno=arguments.control_fd))
        framing.index(b"")  # opens the native library: no memory becomes executable later
        hasher = Hasher()
        log.info("%s", enter_enricher(configuration.process_uid("tocsin-enricher")))
    except (TocsinError, OSError) as error:
        log.error("cannot start: %s", error)  # noqa: TRY400 - an operator's error, not the program's
        return 1
    hasher.start()
    try:
        Work(monitor, hasher).run()
    except PeerError as error:
        log.info("monitor: %s", error)
    hasher.stop()
    return 0


class Work:
    """The loop over channels, ring and hasher."""

    def __init__(self, monitor: Channel, hasher: Hasher) -> None:
        """The hasher runs already."""
        self._monitor = monitor
        self._enricher = Enricher(hasher)
        self._peers = Peers(monitor, self._from_monitor, self._gone, log)
        self._peers.watch(hasher.fileno())
        self._sensor: Channel | None = None
        self._ring: Ring | None = None
        self._ring_fd = -1
        self._loop: Loop | None = None
        self._ended = False

    def run(self) -> None:
        """Until SHUTDOWN. Raises PeerError when the monitor is gone."""
        self._monitor.send(Message(Kind.READY))
        next_beat_s = 0.0
        while not self._ended:
            more = self._loop is not None and self._loop.turn()
            idle = self._send()
            now_s = time.monotonic()
            if now_s >= next_beat_s:
                next_beat_s = now_s + HEARTBEAT_S
                self._monitor.send(Message(Kind.HEARTBEAT, payload=self._status().SerializeToString()))
            self._peers.serve(0.0 if more else next_beat_s - now_s if idle else BLOCKED_RETRY_S)

    def _status(self) -> control.EnrichmentStatus:
        counted = self._enricher.counters()
        if self._loop is not None:
            counted |= {"sightings.malformed": self._loop.malformed, "contexts.dropped": self._loop.dropped}
        counters = [control.EnrichmentCounter(name=name, count=count) for name, count in counted.items()]
        return control.EnrichmentStatus(counters=counters)

    def _send(self) -> bool:
        """Gives the sensor what it takes now; False when there is more for it."""
        while self._loop is not None and self._sensor is not None and (payload := self._loop.next()) is not None:
            if not self._peers.send(self._sensor, Message(Kind.CONTEXT, payload=payload)):
                return False
            self._loop.sent()
        return True

    def _gone(self, _: Channel) -> None:
        self._sensor = None

    def _from_monitor(self, message: Message) -> None:
        match message.kind:
            case Kind.ATTACH if len(message.fds) == 1 and message.code == control.ROLE_SENSOR:
                channel = Channel(socket.socket(fileno=message.fds[0]))
                self._sensor = self._peers.attach("sensor", channel, self._from_sensor, self._sensor)
            case Kind.SHUTDOWN:
                self._ended = True
            case _:
                raise unexpected(message)

    def _from_sensor(self, message: Message) -> None:
        match message.kind:
            case Kind.RING if len(message.fds) == 1:
                self._read_from(message.fds[0], message.a)
            case Kind.TELL_ALL if not message.fds and self._loop is not None:
                self._loop.tell_everything()
            case _:
                raise unexpected(message)

    def _read_from(self, fd: int, size_bytes: int) -> None:
        """Another ring, or the same of another sensor, which is told everything; what ran unseen is looked up."""
        if self._ring is not None:
            self._peers.unwatch(self._ring_fd)
            self._ring.close()
            os.close(self._ring_fd)
        self._ring_fd, self._ring = fd, Ring(fd, size_bytes)
        self._peers.watch(fd)
        self._loop = Loop(self._ring, self._enricher, earlier=running())
        self._loop.tell_everything()


if __name__ == "__main__":
    sys.exit(main())
