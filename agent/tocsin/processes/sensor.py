"""The sensor: takes events from the kernel and hands the same bytes to courier and evaluator.

Its life: be given the descriptors of its predecessor or none, open the source,
give its descriptors to the monitor, seed, drop privileges, then one loop: drain,
frame, push, send, commit. Telemetry never waits for the evaluator, whose outlet
drops and counts; the courier's does not drop: when it is full, nothing is
drained and the kernel counts what its ring cannot hold.

What the enricher tells travels in batches of its own, unread: if it cannot be read,
no event is lost with it.

What the courier's channel has taken is committed, and which losses it was told
of is noted; a later sensor goes on there.
"""

import argparse
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tocsin import config as configuration
from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.config import SensorConfig
from tocsin.errors import PeerError, TocsinError
from tocsin.kernel.choice import open_source
from tocsin.kernel.guard import AttachGuard
from tocsin.kernel.source import Drained, EventSource
from tocsin.processes.batching import Batcher, tells_context
from tocsin.processes.channel import Channel, Kind, Message, unexpected
from tocsin.processes.outlet import Outlet, Queued
from tocsin.processes.peers import Peers
from tocsin.processes.told import ToldLosses
from tocsin.records import framing
from tocsin.sandbox.profiles import enter_sensor

log = logging.getLogger("sensor")

EVALUATOR_QUEUE_BYTES: Final = 64 << 20
COURIER_QUEUE_BYTES: Final = 32 << 20
HEARTBEAT_S: Final = 1.0
KEEP_TIMEOUT_S: Final = 30.0
MAX_CONTEXT_BYTES: Final = 64 << 10
"""Of one message of the enricher."""
DRAINS_AT_ONCE: Final = 16
"""Before the channels are looked at again."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs until the monitor ends it; 1 when it cannot start."""
    parser = argparse.ArgumentParser(prog="tocsin.processes.sensor")
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--config", required=True)
    arguments = parser.parse_args(argv)
    level = os.environ.get("TOCSIN_LOG_LEVEL", "INFO")
    logging.basicConfig(stream=sys.stderr, level=level, format="%(name)s: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        settings = configuration.from_json(arguments.config)
        config, guard = settings.sensor, AttachGuard(Path(settings.state_dir))
        monitor = Channel(socket.socket(fileno=arguments.control_fd))
        framing.index(b"")
        kept_fds = kept_descriptors(monitor)
        told = ToldLosses(kept_fds.pop() if kept_fds else None)
        source, shortfall = open_source(config, kept_fds, guard)
        fds = source.handover()
        if fds:
            monitor.send(Message(Kind.KEEP, fds=(*fds, told.fd)))
        seeded = source.seed()
        log.info("%d processes known; %s", seeded, enter_sensor(source.kind))
        monitor.send(Message(Kind.READY, a=source.kind, payload=shortfall.encode(errors="replace")))
    except (TocsinError, OSError) as error:
        log.error("cannot start: %s", error)  # noqa: TRY400 - an operator's error, not the program's
        return 1
    try:
        Sensor(config, monitor, source, Batcher(source, told.counters(), shortfall), told).run(guard)
    except PeerError as error:
        log.info("monitor: %s", error)
    return 0


def kept_descriptors(monitor: Channel) -> list[int]:
    """What the monitor kept of a former sensor. Raises PeerError when it says something else."""
    with selectors.DefaultSelector() as selector:
        selector.register(monitor, selectors.EVENT_READ)
        if not selector.select(KEEP_TIMEOUT_S):
            raise PeerError(f"got no KEEP from the monitor in {KEEP_TIMEOUT_S} s")
    message = monitor.receive()
    if message is None or message.kind is not Kind.KEEP:
        raise PeerError(f"got {message.kind.name if message else 'nothing'}, expected KEEP")
    return list(message.fds)


class Sensor:
    """The loop."""

    def __init__(
        self, config: SensorConfig, monitor: Channel, source: EventSource, batcher: Batcher, told: ToldLosses
    ) -> None:
        self._config = config
        self._monitor = monitor
        self._source = source
        self._told = told
        self._batcher = batcher
        self._peers = Peers(monitor, self._from_monitor, self._gone, log)
        self._courier: Channel | None = None
        self._evaluator: Channel | None = None
        self._candidate: Channel | None = None
        self._enricher: Channel | None = None
        self._to_courier = Outlet(COURIER_QUEUE_BYTES, lossy=False)
        self._to_evaluator = Outlet(EVALUATOR_QUEUE_BYTES, lossy=True)
        self._events = 0
        self._position = 0
        self._first_index = 0
        self._last_batch_s = 0.0
        self._ended = False

    def run(self, guard: AttachGuard) -> None:
        """Until SHUTDOWN. Raises PeerError when the monitor is gone."""
        interval_s = self._config.drain_interval_ms / 1000
        next_drain_s = next_beat_s = time.monotonic()
        while not self._ended:
            self._peers.serve(max(0.0, next_drain_s - time.monotonic()))
            now_s = time.monotonic()
            if now_s >= next_drain_s:
                backlog = self._drain()
                next_drain_s = time.monotonic() if backlog else now_s + interval_s
            self._flush()
            if now_s >= next_beat_s:
                next_beat_s = now_s + HEARTBEAT_S
                guard.look()
                self._monitor.send(Message(Kind.HEARTBEAT, a=self._events, b=self._to_evaluator.in_flight))
        self._source.close()
        guard.disarm()

    def _drain(self) -> bool:
        """Takes what the source has; whether it has more."""
        for _ in range(DRAINS_AT_ONCE):
            if self._to_courier.full:
                return False
            drained = self._source.drain(self._config.batch_bytes)
            self._position, self._first_index = drained.end, drained.first_index + drained.count
            if drained.end == drained.start:
                self._beat()
                return False
            self._events += drained.count
            self._push(self._batcher.make(drained))
            if len(drained.body) < self._config.batch_bytes // 2:
                return False
        return True

    def _beat(self) -> None:
        """A batch without events, each second in which there was none: counters and losses go out all the same."""
        if time.monotonic() - self._last_batch_s >= HEARTBEAT_S:
            self._push_without_events()

    def _push_without_events(self, context: bytes = b"") -> None:
        nothing = Drained(b"", 0, self._position, self._position, self._first_index)
        self._push(self._batcher.make(nothing, context))

    def _push(self, batch: Queued) -> None:
        self._last_batch_s = time.monotonic()
        self._to_courier.push(batch)
        self._to_evaluator.push(Queued(batch.start, batch.end, batch.count, batch.payload))
        self._flush()

    def _flush(self) -> None:
        """The courier first: what it was sent is committed, and no later sensor sends it again."""
        if self._courier is not None and (sent := self._send_all(self._courier, self._to_courier)):
            self._source.commit(sent[-1].end)
            self._told.note(sent[-1].told)
        if self._evaluator is not None:
            self._send_all(self._evaluator, self._to_evaluator)
        for reason, count in self._to_evaluator.take_losses().items():
            self._batcher.losses.count(reason, count)
        if self._enricher is not None:
            self._peers.hold(self._enricher, held=self._to_courier.full)

    def _send_all(self, channel: Channel, outlet: Outlet) -> list[Queued]:
        """As much as the channel takes now; what it took."""
        sent: list[Queued] = []
        while (batch := outlet.next()) is not None:
            if not self._peers.send(channel, Message(Kind.BATCH, a=batch.start, b=batch.end, payload=batch.payload)):
                break
            outlet.sent()
            sent.append(batch)
        return sent

    def _gone(self, channel: Channel) -> None:
        if channel is self._courier:
            self._courier = None
            self._to_courier.peer_died()
        elif channel is self._enricher:
            self._enricher = None
        elif channel is self._candidate:
            self._candidate = None
            self._to_evaluator.erase_line()
        elif channel is self._evaluator:
            self._evaluator = None
            switching = self._to_evaluator.switching
            self._to_evaluator.peer_died()
            if switching and self._candidate is not None:
                self._take_candidate()

    def _from_monitor(self, message: Message) -> None:
        match message.kind:
            case Kind.ATTACH if len(message.fds) == 1:
                channel = Channel(socket.socket(fileno=message.fds[0]))
                self._attach(message.code, channel, waits=bool(message.b))
            case Kind.SWITCH if self._candidate is not None:
                self._to_evaluator.draw_line()
                if self._evaluator is None:
                    self._to_evaluator.erase_line()
                    self._take_candidate()
                self._cross_line()
            case Kind.SWITCH:
                log.info("SWITCH, but the candidate is gone")
            case Kind.SHUTDOWN:
                self._ended = True
            case _:
                raise unexpected(message)

    def _attach(self, role: int, channel: Channel, *, waits: bool) -> None:
        if role == control.ROLE_ENRICHER:
            self._enricher = self._peers.attach("enricher", channel, self._from_enricher, self._enricher)
            self._give_sightings(self._enricher)
            return
        if role == control.ROLE_COURIER:
            self._courier = self._peers.attach("courier", channel, self._from_courier, self._courier)
        elif role == control.ROLE_EVALUATOR and waits:
            self._candidate = self._peers.attach("candidate", channel, self._from_evaluator, self._candidate)
        elif role == control.ROLE_EVALUATOR:
            self._peers.drop(self._candidate, "given up")
            self._evaluator = self._peers.attach("evaluator", channel, self._from_evaluator, self._evaluator)
        else:
            channel.close()
            raise PeerError(f"ATTACH of a peer with role {role}, expected courier, evaluator or enricher")
        self._tell_newcomer()

    def _tell_newcomer(self) -> None:
        """What was told once is told again."""
        self._batcher.tell_names()
        if self._enricher is not None:
            self._peers.send(self._enricher, Message(Kind.TELL_ALL))

    def _give_sightings(self, enricher: Channel) -> None:
        ring = self._source.sightings()
        if ring is not None:
            fd, size_bytes = ring
            self._peers.send(enricher, Message(Kind.RING, a=size_bytes, fds=(fd,)))

    def _from_enricher(self, message: Message) -> None:
        payload = message.payload
        if message.kind is not Kind.CONTEXT or message.fds:
            raise unexpected(message)
        if len(payload) > MAX_CONTEXT_BYTES or not tells_context(payload):
            raise PeerError(f"got a CONTEXT of {len(payload)} bytes that holds something else, or more")
        self._push_without_events(payload)

    def _from_courier(self, message: Message) -> None:
        if message.kind is not Kind.ACK:
            raise unexpected(message)
        self._to_courier.acknowledge(message.b)

    def _from_evaluator(self, message: Message) -> None:
        if message.kind is not Kind.ACK:
            raise unexpected(message)
        self._to_evaluator.acknowledge(message.b)
        self._cross_line()

    def _cross_line(self) -> None:
        if self._candidate is not None and self._to_evaluator.cross_line():
            former, self._evaluator = self._evaluator, None
            self._peers.drop(former, "its successor takes over")
            self._take_candidate()

    def _take_candidate(self) -> None:
        self._evaluator, self._candidate = self._candidate, None
        self._tell_newcomer()
        self._monitor.send(Message(Kind.SWITCHED, a=self._to_evaluator.sent_position))


if __name__ == "__main__":
    sys.exit(main())
