"""The courier's channels: what comes from monitor, sensor and evaluators goes into the hub, and what goes back.

A peer that sends what it may not is dropped; the monitor attaches a new one. The
monitor itself is the exception: without it the courier ends. When a new peer is
attached, everything that a former one of that role still had in flight is read
first, so that nothing is judged a repetition that is none.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from typing import Final

from google.protobuf.message import DecodeError

from tocsin.api.content.v1 import content_service_pb2 as content
from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.api.event.v1 import event_pb2
from tocsin.config import CourierConfig
from tocsin.errors import PeerError, WireError
from tocsin.processes import state
from tocsin.processes.channel import NO_DIGEST, Channel, Kind, Message, unexpected
from tocsin.records.field_table import SCHEMA_DIGEST
from tocsin.stream.hub import Hub
from tocsin.stream.loading import ACCEPTED, BUSY, REFUSED, LoadDesk, LoadResult, Upload

log = logging.getLogger("courier")

TICK_S: Final = 1.0
"""Between two heartbeats."""
LOAD_TIMEOUT_S: Final = 120.0
MESSAGES_AT_ONCE: Final = 16
"""Read from one channel before the loop looks at the others."""
CHANNELS_MAX: Final = 4
"""Evaluators attached at a time: the active, the one before it, a candidate, and one more."""
EMPTY_RELEASE: Final = LoadResult(
    REFUSED,
    NO_DIGEST,
    0,
    content.Refusal(
        stage=content.STAGE_RECEIVE, code="EMPTY_RELEASE", message="got no bytes, expected a compiled release"
    ).SerializeToString(),
)


class Links:
    """The channels of the courier."""

    def __init__(
        self,
        monitor: Channel,
        config: CourierConfig,
        loop: asyncio.AbstractEventLoop,
        version: str,
        kernel_release: str,
    ) -> None:
        self._monitor = monitor
        self._loop = loop
        self._version = version
        self._kernel_release = kernel_release
        self._sensor: Channel | None = None
        self._evaluators: list[Channel] = []
        self._evaluators_read = True
        self._unsent_ack = 0
        self._desk = LoadDesk()
        self._state = state.AgentState(start_monotonic_ns=time.monotonic_ns())
        self.hub = Hub(config.subscriber_buffer_bytes, config.max_subscribers)
        self.ended = asyncio.Event()
        """Set when the courier has to end."""
        self.failed = False
        """Whether it ends for a fault of its own."""

    @property
    def healthy(self) -> bool:
        """For grpc.health.v1: false when no events or no detections are to be had."""
        return self._state.health != control.HEALTH_FAILED

    def open(self) -> None:
        """Begins to listen to the monitor, and tells it READY."""
        self._loop.add_reader(self._monitor.fileno(), self._read, self._monitor, self._from_monitor)
        self._tell_monitor(Message(Kind.READY))

    async def tick(self) -> None:
        """Tells the monitor how far the courier is, and waits a second or until the end."""
        self._tell_monitor(Message(Kind.HEARTBEAT, a=self.hub.events_received, b=self.hub.position))
        self._acknowledge()
        try:
            async with asyncio.timeout(TICK_S):
                await self.ended.wait()
        except TimeoutError:
            return

    def _tell_monitor(self, message: Message) -> bool:
        try:
            return self._monitor.send(message)
        except PeerError:
            self.ended.set()
            return False

    def _read(
        self, channel: Channel, take: Callable[[Channel, Message], None], at_most: int = MESSAGES_AT_ONCE
    ) -> None:
        """Takes what waits in a channel; drops a peer that has gone or that sends what it may not."""
        try:
            for _ in range(at_most):
                message = channel.receive()
                if message is None:
                    return
                take(channel, message)
        except (PeerError, WireError) as error:
            self._drop(channel, str(error))
        except Exception:  # the loop would log it and go on with a channel half read
            log.exception("a fault of the courier")
            self.failed = True
            self.ended.set()

    def _drop(self, channel: Channel, reason: str) -> None:
        self._loop.remove_reader(channel.fileno())
        if channel is self._monitor:
            log.info("monitor: %s", reason)
            self.ended.set()
            return
        log.info("%s: %s", "sensor" if channel is self._sensor else "evaluator", reason)
        channel.close()
        if channel is self._sensor:
            self._sensor = None
        elif channel in self._evaluators:
            self._evaluators.remove(channel)

    def _from_monitor(self, _channel: Channel, message: Message) -> None:
        match message.kind:
            case Kind.ATTACH if len(message.fds) == 1:
                self._attach(message.code, Channel(socket.socket(fileno=message.fds[0])), message.a)
            case Kind.STATE:
                self._state = state.unpack(message.payload)
            case Kind.LOAD_RESULT:
                rules = message.b
                self._desk.answer(message.a, LoadResult(message.code, message.digest, rules, message.payload))
            case Kind.SHUTDOWN:
                self.ended.set()
            case _:
                raise unexpected(message)

    def _attach(self, role: int, channel: Channel, epoch: int) -> None:
        match role:
            case control.ROLE_SENSOR:
                if self._sensor is not None:
                    self._finish(self._sensor, self._from_sensor, "replaced")
                self.hub.begin_epoch(epoch)
                self._sensor, self._unsent_ack = channel, 0
                self._loop.add_reader(channel.fileno(), self._read, channel, self._from_sensor)
            case control.ROLE_EVALUATOR:
                self._attach_evaluator(channel)
            case _:
                channel.close()
                raise PeerError(f"ATTACH of a peer with role {role}, expected sensor or evaluator")

    def _attach_evaluator(self, channel: Channel) -> None:
        for former in list(self._evaluators):
            self._read(former, self._from_evaluator, 1 << 20)
        while len(self._evaluators) >= CHANNELS_MAX:
            self._drop(self._evaluators[0], "replaced")
        given_up = self.hub.begin_evaluator()
        if given_up:
            log.warning("%d detection batches given up: their events never came", given_up)
        self._evaluators.append(channel)
        self._evaluators_read = True
        for each in self._evaluators:
            self._loop.add_reader(each.fileno(), self._read, each, self._from_evaluator)

    def _finish(self, channel: Channel, take: Callable[[Channel, Message], None], reason: str) -> None:
        """Reads everything that is in flight, then closes."""
        self._read(channel, take, 1 << 20)
        if channel is self._sensor:
            self._drop(channel, reason)

    def _from_sensor(self, _channel: Channel, message: Message) -> None:
        if message.kind is not Kind.BATCH or message.fds:
            raise unexpected(message)
        try:
            self.hub.take_batch(message.b, message.payload)
        except WireError as error:
            log.warning("sensor: %s", error)
        self._unsent_ack = max(message.b, self._unsent_ack)
        self._acknowledge()
        self._read_evaluators_or_not()

    def _acknowledge(self) -> None:
        """An ACK that finds the channel full goes with the next one."""
        if self._sensor is None or not self._unsent_ack:
            return
        try:
            if self._sensor.send(Message(Kind.ACK, b=self._unsent_ack)):
                self._unsent_ack = 0
        except PeerError as error:
            log.info("sensor: %s", error)  # its channel tells its end to the reader

    def _from_evaluator(self, channel: Channel, message: Message) -> None:
        """Former evaluators first: what they found lies before, and after it would be taken for a repetition."""
        if message.kind is not Kind.DETECTIONS or message.fds:
            raise unexpected(message)
        for former in self._evaluators[: self._evaluators.index(channel)]:
            self._read(former, self._from_evaluator, 1 << 20)
        self.hub.take_detections(message.b, message.a, message.payload)
        self._read_evaluators_or_not()

    def _read_evaluators_or_not(self) -> None:
        """Backpressure: evaluators that are far ahead wait."""
        wanted = self.hub.wants_detections
        if wanted == self._evaluators_read:
            return
        self._evaluators_read = wanted
        for channel in self._evaluators:
            if wanted:
                self._loop.add_reader(channel.fileno(), self._read, channel, self._from_evaluator)
            else:
                self._loop.remove_reader(channel.fileno())

    async def load(self, upload: Upload) -> content.LoadReleaseResponse:
        """Hands a release to the monitor and waits for its answer. Raises PeerError, TimeoutError."""
        if not upload.size_bytes:
            return self._load_response(upload.digest, EMPTY_RELEASE)
        future: asyncio.Future[LoadResult] = self._loop.create_future()
        ticket = self._desk.begin(lambda result: None if future.done() else future.set_result(result))
        sent = self._tell_monitor(Message(Kind.LOAD, a=ticket, digest=upload.digest, fds=(upload.seal(),)))
        if not sent:
            self._desk.give_up(ticket)
            raise PeerError("the monitor does not take requests now: try again")
        try:
            async with asyncio.timeout(LOAD_TIMEOUT_S):
                result = await future
        except TimeoutError:
            self._desk.give_up(ticket)
            raise
        except asyncio.CancelledError:
            self._desk.leave(ticket)
            raise
        if result.outcome == BUSY:
            raise PeerError("another load is under way: try again when it has ended")
        return self._load_response(upload.digest, result)

    def _load_response(self, digest: bytes, result: LoadResult) -> content.LoadReleaseResponse:
        accepted = result.outcome == ACCEPTED
        active = result.digest if result.digest != NO_DIGEST else self._state.release_digest
        response = content.LoadReleaseResponse(
            digest=digest,
            accepted=accepted,
            active_digest=digest if accepted else active,
            active_rules=result.rules or self._state.rules,
        )
        if not accepted:
            try:
                response.refusal.MergeFromString(result.refusal)
            except DecodeError:
                response.refusal.message = "refused, and the evaluator's reason is not readable"
        return response

    def _enrichment(self) -> control.EnrichmentStatus | None:
        """What the enricher counted; None where there is none, or it is not readable."""
        try:
            return control.EnrichmentStatus.FromString(self._state.enrichment) if self._state.enrichment else None
        except DecodeError:
            return None

    def status(self) -> control.GetStatusResponse:
        """The answer to GetStatus."""
        hub, told = self.hub, self._state
        return control.GetStatusResponse(
            version=self._version,
            source=told.source or hub.header.source,  # type: ignore[arg-type]
            health=told.health,  # type: ignore[arg-type]
            health_reason=told.reason,
            processes=[
                control.ProcessStatus(role=p.role, pid=p.pid, restarts=p.restarts, uid=p.uid)  # type: ignore[arg-type]
                for p in told.processes
            ],
            release_digest=told.release_digest if told.release_digest != NO_DIGEST else b"",
            release_name=told.release_name.decode(errors="replace"),
            release_rules=told.rules,
            release_rules_inert=told.rules_inert,
            counters=hub.header.counters,
            events_received=hub.events_received,
            detections=hub.detections,
            events_evaluated=max(hub.events_evaluated, told.evaluator_progress),
            subscribers=hub.subscribers,
            losses=[
                event_pb2.Loss(event_type=kind, reason=reason, count=count, total=count)  # type: ignore[arg-type]
                for (kind, reason), count in sorted(hub.losses.items())
            ],
            schema_digest=SCHEMA_DIGEST,
            uptime_s=max(0, time.monotonic_ns() - told.start_monotonic_ns) // 10**9,
            kernel_release=self._kernel_release,
            enrichment=self._enrichment(),
        )
