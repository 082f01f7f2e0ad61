"""The monitor: starts and watches the others, keeps what has to outlive them, and tells how it is.

Its life: take the lock, make directories, start courier, sensor, evaluator and
enricher, then one loop until SIGTERM. It is root, so it parses nothing: of what children
send it reads headers, and passes payloads and descriptors on. Which release is
active is decided in `loads`.
"""

import argparse
import fcntl
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Final

from tocsin import config as configuration
from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.api.event.v1.batch_pb2 import SOURCE_CORE
from tocsin.config import Config, process_uid
from tocsin.errors import ConfigError, PeerError, TocsinError
from tocsin.processes.channel import Kind, Message
from tocsin.processes.child import USERS, Child, Slot, role_name
from tocsin.processes.crew import Crew
from tocsin.processes.loads import Active, Loads
from tocsin.processes.release_store import ReleaseStore
from tocsin.processes.state import AgentState, ProcessState
from tocsin.sandbox.privileges import die_with_parent

log = logging.getLogger("monitor")

TICK_S: Final = 1.0
MESSAGES_AT_ONCE: Final = 64
FAILED_DEATHS: Final = 5
"""A process that died so often in a short time has failed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs until SIGTERM; 1 when it cannot start."""
    parser = argparse.ArgumentParser(prog="tocsin.processes.monitor")
    parser.add_argument("--config", required=True, help="settings as JSON")
    parser.add_argument("--parent", type=int, default=0, help="ends when this parent does")
    arguments = parser.parse_args(argv)
    level = os.environ.get("TOCSIN_LOG_LEVEL", "INFO")
    logging.basicConfig(stream=sys.stderr, level=level, format="%(name)s: %(message)s")
    try:
        if arguments.parent:
            die_with_parent(arguments.parent)
        config = configuration.from_json(arguments.config)
        lock = take_lock(config)
        with lock:
            Monitor(config).run()
    except (TocsinError, OSError) as error:
        log.error("cannot start: %s", error)  # noqa: TRY400 - an operator's error, not the program's
        return 1
    return 0


def take_lock(config: Config) -> BinaryIO:
    """Makes the directories and takes the agent's lock, held while what is returned is open. Raises ConfigError."""
    runtime = Path(config.runtime_dir)
    try:
        runtime.mkdir(mode=0o755, parents=True, exist_ok=True)
        Path(config.state_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
        if runtime.stat().st_uid != os.geteuid():
            raise ConfigError(f"{runtime} belongs to uid {runtime.stat().st_uid}, expected {os.geteuid()}: remove it")
        fd = os.open(runtime / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or runtime}: {error.strerror}; name another runtime_dir or state_dir"
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        other = os.pread(fd, 20, 0).decode(errors="replace").strip()
        os.close(fd)
        raise ConfigError(
            f"another agent runs on {runtime} (pid {other}): end it, or name another runtime_dir"
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return os.fdopen(fd, "rb")


class Monitor:
    """The loop over the children."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._crew = Crew(config.to_json())
        self._store = ReleaseStore(Path(config.state_dir))
        self._loads = Loads(self._crew, self._store, config.release)
        self._kept_fds: tuple[int, ...] = ()
        self._resumes = False
        """Whether the sensor was given what its predecessor left."""
        uptime_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        self._crew.sensor.start_at_s = time.monotonic() + max(0.0, config.sensor.start_at_uptime_s - uptime_s)
        self._source = 0
        self._shortfall = ""
        self._start_ns = time.monotonic_ns()
        self._ended = False

    def run(self) -> None:
        """Until SIGTERM or SIGINT. Raises OSError when it cannot start processes at all."""
        wake, signalled = socket.socketpair()
        wake.setblocking(False)
        signalled.setblocking(False)
        signal.set_wakeup_fd(signalled.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        self._crew.selector.register(wake, selectors.EVENT_READ)
        self._store.prepare()
        try:
            next_tick_s = 0.0
            while not self._ended:
                if time.monotonic() >= next_tick_s:
                    next_tick_s = time.monotonic() + TICK_S
                    self._look_after()
                self._fill_slots()
                for key, _ in self._crew.selector.select(self._timeout_s(next_tick_s)):
                    if isinstance(key.data, tuple):
                        self._serve(*key.data)
        finally:
            self._crew.end(self._loads.candidate)
            self._config.socket_path.unlink(missing_ok=True)

    def _end(self, *_: object) -> None:
        self._ended = True

    def _timeout_s(self, next_tick_s: float) -> float:
        due = [slot.start_at_s for slot in self._crew.slots if slot.child is None and self._wanted(slot)]
        return max(0.0, min([next_tick_s, *due]) - time.monotonic())

    # --- starting

    def _wanted(self, slot: Slot) -> bool:
        if slot is self._crew.enricher:
            return self._config.sensor.enrich and self._source == SOURCE_CORE
        return slot is not self._crew.evaluator or not self._loads.exhausted

    def _told(self, slot: Slot) -> bool:
        """Whether the state speaks of it: an enricher only where there is something to enrich."""
        return slot is not self._crew.enricher or self._wanted(slot)

    def _fill_slots(self) -> None:
        now_s = time.monotonic()
        for slot in self._crew.slots:
            if slot.child is None and now_s >= slot.start_at_s and self._wanted(slot):
                if slot is self._crew.evaluator and not self._loads.choose():
                    continue
                slot.child = self._crew.start(slot.role)
                self._brief(slot.child)
                self._tell_state()

    def _brief(self, child: Child) -> None:
        """The first message to a new process."""
        if child.role == control.ROLE_SENSOR:
            self._resumes = bool(self._kept_fds)
            if not self._resumes:
                self._crew.epoch += 1
            child.tell(Message(Kind.KEEP, fds=self._kept_fds))
        elif child.role == control.ROLE_EVALUATOR:
            self._loads.brief(child)

    # --- what children say

    def _serve(self, child: Child, died: bool) -> None:
        if died:
            self._buried(child)
            return
        try:
            for _ in range(MESSAGES_AT_ONCE):
                message = child.channel.receive()
                if message is None:
                    return
                self._take(child, message)
        except PeerError as error:
            self._crew.stop_hearing(child)
            log.info("%s: %s", child.name, error)
            child.kill()

    def _take(self, child: Child, message: Message) -> None:
        match (child.role, message.kind):
            case (control.ROLE_SENSOR, Kind.KEEP):
                self._keep(message.fds)
                return
            case (control.ROLE_COURIER, Kind.LOAD) if len(message.fds) == 1:
                self._loads.begin(child, message)
                return
        for fd in message.fds:
            os.close(fd)
        match (child.role, message.kind):
            case (_, Kind.HEARTBEAT):
                child.hears(message)
                return
            case (_, Kind.READY) if not child.ready:
                child.ready = True
                child.hears(Message(Kind.READY))
                self._ready(child, message)
            case (control.ROLE_EVALUATOR, Kind.REFUSED):
                self._loads.refused(child, message.payload)
            case (control.ROLE_SENSOR, Kind.SWITCHED):
                self._loads.switched()
            case _:
                raise PeerError(f"{child.name} sent {message.kind.name} with {len(message.fds)} descriptors")
        self._tell_state()

    def _keep(self, fds: tuple[int, ...]) -> None:
        for fd in self._kept_fds:
            os.close(fd)
        self._kept_fds = fds

    def _ready(self, child: Child, message: Message) -> None:
        log.info("%s is ready, pid %d", child.name, child.pid)
        if child.role == control.ROLE_EVALUATOR:
            self._loads.ready(child, Active(message.digest, message.payload, message.a, message.b))
            return
        if child.role == control.ROLE_SENSOR:
            self._source = message.a
            self._shortfall = message.payload.decode(errors="replace")
        self._crew.join_all(child, self._loads.successor)

    # --- deaths

    def _buried(self, child: Child) -> None:
        """Reads what it said last, then clears up."""
        if self._crew.hears(child):
            self._serve(child, died=False)
        status = child.process.wait()
        expected = child in self._crew.retiring
        log.log(logging.INFO if expected else logging.WARNING, "%s ended, status %d", child.name, status)
        self._crew.forget(child)
        slot = self._crew.slot_of(child)
        if expected:
            self._crew.retiring.remove(child)
        elif child is self._loads.candidate:
            self._loads.candidate_died()
        elif slot is not None:
            slot.died()
            self._after_death(child)
        self._tell_state()

    def _after_death(self, child: Child) -> None:
        if child.role == control.ROLE_SENSOR:
            if not child.ready and self._resumes:
                log.warning("what the former sensor left cannot be resumed: the next one begins anew")
                self._keep(())
            self._loads.switched()
        elif child.role == control.ROLE_EVALUATOR:
            self._loads.evaluator_died(child)

    # --- each second

    def _look_after(self) -> None:
        sensor, evaluator = self._crew.sensor.child, self._crew.evaluator.child
        in_flight = sensor is not None and sensor.ready and sensor.b > 0
        for child in (*(slot.child for slot in self._crew.slots), self._loads.candidate):
            if child is None:
                continue
            busy = in_flight and child is evaluator
            if why := child.hung(self._config.evaluator.hang_timeout_s, in_flight=busy):
                log.warning("%s %s: it is killed", child.name, why)
                child.kill()
        self._crew.kill_late()
        self._loads.kill_late()
        self._tell_state()

    def _health(self) -> tuple[control.Health.ValueType, str]:
        reasons = list(self._loads.troubles)
        failed = self._loads.exhausted
        if failed:
            reasons.append("no release is usable: nothing is detected; load one with `tocsin content load`")
        for slot in self._crew.slots:
            if slot.start_at_s > time.monotonic() and len(slot.deaths) >= FAILED_DEATHS:
                failed |= slot is not self._crew.enricher
        slots = filter(self._told, self._crew.slots)
        away = [role_name(slot.role) for slot in slots if slot.child is None or not slot.child.ready]
        if away:
            reasons.append(f"being started: {', '.join(away)}")
        if self._shortfall:
            reasons.append(self._shortfall)
        elif self._source and self._source != SOURCE_CORE:
            reasons.append("the source is a reduced one")
        health = control.HEALTH_FAILED if failed else control.HEALTH_DEGRADED if reasons else control.HEALTH_OK
        return health, "; ".join(reasons)

    def _processes(self) -> tuple[ProcessState, ...]:
        rows = [ProcessState(control.ROLE_MONITOR, os.getpid(), 0, os.geteuid())]
        slots = (self._crew.sensor, self._crew.evaluator, self._crew.courier, self._crew.enricher)
        for slot in filter(self._told, slots):
            user = USERS.get(control.Role.ValueType(slot.role))
            uid = process_uid(user) if user else os.geteuid()
            rows.append(ProcessState(slot.role, slot.child.pid if slot.child else 0, slot.restarts, uid))
        return tuple(rows)

    def _tell_state(self) -> None:
        courier = self._crew.courier.child
        if courier is None or not courier.ready:
            return
        health, reason = self._health()
        active = self._loads.active
        sensor, evaluator = self._crew.sensor.child, self._crew.evaluator.child
        enricher = self._crew.enricher.child
        state = AgentState(
            health=health,
            reason=reason,
            source=self._source,
            processes=self._processes(),
            release_digest=active.digest,
            release_name=active.name,
            rules=active.rules,
            rules_inert=active.inert,
            start_monotonic_ns=self._start_ns,
            sensor_progress=sensor.a if sensor else 0,
            evaluator_progress=evaluator.a if evaluator else 0,
            enrichment=enricher.said if enricher else b"",
        )
        courier.tell(Message(Kind.STATE, payload=state.pack()))


if __name__ == "__main__":
    sys.exit(main())
