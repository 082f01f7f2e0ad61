"""The monitor: starts and watches the others, and owns which release is active.

Its life: take the lock, make directories, start courier, sensor and evaluator,
then one loop until SIGTERM. It is root, so it parses nothing: of what children
send it reads headers, and passes payloads and descriptors on.

A load is a state machine of its own: LOADING (a second evaluator proves the
release), SWITCHING (the sensor draws its line), then nothing again. Every way
out of it before the switch leaves the active release as it was.
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
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import BinaryIO, Final

from tocsin import config as configuration
from tocsin.api.content.v1 import content_service_pb2 as content
from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.api.event.v1.batch_pb2 import SOURCE_CORE
from tocsin.config import Config, process_uid
from tocsin.errors import ConfigError, ContentError, PeerError, TocsinError
from tocsin.processes import child as children
from tocsin.processes.channel import NO_DIGEST, Channel, Kind, Message, pair
from tocsin.processes.child import Child, Slot
from tocsin.processes.release_store import STARTER, HeldRelease, ReleaseStore, hold, hold_path
from tocsin.processes.state import AgentState, ProcessState
from tocsin.sandbox.privileges import die_with_parent

log = logging.getLogger("monitor")

TICK_S: Final = 1.0
END_TIMEOUT_S: Final = 5.0
MESSAGES_AT_ONCE: Final = 64
SWITCH_TIMEOUT_S: Final = 30.0
ACCEPTED, REFUSED, BUSY = 0, 1, 2
FAILED_DEATHS: Final = 5
"""A process that died so often in a short time has failed."""


class Step(Enum):
    """How far a load is."""

    LOADING = "loading"
    SWITCHING = "switching"


@dataclass(eq=False, slots=True)
class Load:
    """A release on its way to become active."""

    ticket: int
    courier: Child
    release: HeldRelease
    candidate: Child
    step: Step = Step.LOADING
    switch_s: float = 0.0
    name: bytes = b""
    rules: int = 0
    inert: int = 0


@dataclass(frozen=True, slots=True)
class Active:
    """The active release as its evaluator told it."""

    digest: bytes = NO_DIGEST
    name: bytes = b""
    rules: int = 0
    inert: int = 0


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
        self._config_json = config.to_json()
        self._selector = selectors.DefaultSelector()
        self._sensor = Slot(control.ROLE_SENSOR)
        self._courier = Slot(control.ROLE_COURIER)
        self._evaluator = Slot(control.ROLE_EVALUATOR)
        self._retiring: list[Child] = []
        self._load: Load | None = None
        self._store = ReleaseStore(Path(config.state_dir))
        self._release: HeldRelease | None = None
        self._proven = False
        """Whether an evaluator became ready with the release."""
        self._waiting_releases: deque[str] = deque(("configured", "stored", "packaged"))
        self._active = Active()
        self._kept_fds: tuple[int, ...] = ()
        self._resumes = False
        self._epoch = 0
        self._source = 0
        self._shortfall = ""
        self._troubles: list[str] = []
        """What is wrong until the next release is accepted."""
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
        self._selector.register(wake, selectors.EVENT_READ)
        self._store.prepare()
        try:
            next_tick_s = 0.0
            while not self._ended:
                if time.monotonic() >= next_tick_s:
                    next_tick_s = time.monotonic() + TICK_S
                    self._look_after()
                self._fill_slots()
                for key, _ in self._selector.select(self._timeout_s(next_tick_s)):
                    if isinstance(key.data, tuple):
                        self._serve(*key.data)
        finally:
            self._end_all()

    def _end(self, *_: object) -> None:
        self._ended = True

    def _timeout_s(self, next_tick_s: float) -> float:
        slots = (self._sensor, self._courier, self._evaluator)
        due = [slot.start_at_s for slot in slots if slot.child is None and self._wanted(slot)]
        return max(0.0, min([next_tick_s, *due]) - time.monotonic())

    # --- starting

    def _wanted(self, slot: Slot) -> bool:
        return slot is not self._evaluator or self._release is not None or bool(self._waiting_releases)

    def _fill_slots(self) -> None:
        now_s = time.monotonic()
        for slot in (self._courier, self._sensor, self._evaluator):
            if slot.child is None and now_s >= slot.start_at_s and self._wanted(slot):
                if slot is self._evaluator and not self._choose_release():
                    continue
                slot.child = self._start(slot.role)
                self._brief(slot.child)
                self._tell_state()

    def _start(self, role: int) -> Child:
        child = children.start(role, self._config_json)
        self._selector.register(child.channel, selectors.EVENT_READ, (child, False))
        self._selector.register(child.pidfd, selectors.EVENT_READ, (child, True))
        return child

    def _brief(self, child: Child) -> None:
        """The first message to a new process."""
        if child.role == control.ROLE_SENSOR:
            self._resumes = bool(self._kept_fds)
            if not self._resumes:
                self._epoch += 1
            child.tell(Message(Kind.KEEP, fds=self._kept_fds))
        elif child.role == control.ROLE_EVALUATOR and self._release is not None:
            child.tell(Message(Kind.RELEASE, digest=self._release.digest, fds=(self._release.fd,)))

    def _choose_release(self) -> bool:
        """Whether there is a release for an evaluator."""
        while self._release is None and self._waiting_releases:
            origin = self._waiting_releases.popleft()
            try:
                self._release = self._release_of(origin)
            except (ContentError, OSError) as error:
                self._trouble(f"the {origin} release is not usable: {error}")
        return self._release is not None

    def _release_of(self, origin: str) -> HeldRelease | None:
        if origin == "configured":
            return hold_path(Path(self._config.release)) if self._config.release else None
        return self._store.active() if origin == "stored" else hold_path(STARTER)

    def _trouble(self, words: str) -> None:
        log.warning("%s", words)
        self._troubles = [*self._troubles, words][-4:]

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
            if self._knows(child.channel):
                self._selector.unregister(child.channel)
            log.info("%s: %s", _name(child), error)
            child.kill()

    def _take(self, child: Child, message: Message) -> None:
        match (child.role, message.kind):
            case (control.ROLE_SENSOR, Kind.KEEP):
                self._keep(message.fds)
                return
            case (control.ROLE_COURIER, Kind.LOAD) if len(message.fds) == 1:
                self._begin_load(child, message)
                return
        for fd in message.fds:
            os.close(fd)
        match (child.role, message.kind):
            case (_, Kind.HEARTBEAT):
                child.hears(message)
            case (_, Kind.READY) if not child.ready:
                child.ready = True
                child.hears(Message(Kind.READY))
                self._ready(child, message)
            case (control.ROLE_EVALUATOR, Kind.REFUSED):
                self._refused(child, message.payload)
            case (control.ROLE_SENSOR, Kind.SWITCHED):
                self._switched()
            case _:
                raise PeerError(f"{_name(child)} sent {message.kind.name} with {len(message.fds)} descriptors")

    def _keep(self, fds: tuple[int, ...]) -> None:
        for fd in self._kept_fds:
            os.close(fd)
        self._kept_fds = fds

    def _ready(self, child: Child, message: Message) -> None:
        log.info("%s is ready, pid %d", _name(child), child.pid)
        if child.role == control.ROLE_SENSOR:
            self._source = message.a
            self._shortfall = message.payload.decode(errors="replace")
        elif child.role == control.ROLE_EVALUATOR:
            told = Active(message.digest, message.payload, message.a, message.b)
            if self._load is not None and child is self._load.candidate:
                self._switch(self._load, told)
                return
            self._active, self._proven = told, True
        self._join_all(child)
        self._tell_state()

    def _join_all(self, child: Child) -> None:
        """Channels between a process that became ready and all that are."""
        sensor, courier, evaluator = self._sensor.child, self._courier.child, self._evaluator.child
        candidate = self._load.candidate if self._load and self._load.step is Step.SWITCHING else None
        for one, other in ((sensor, courier), (sensor, evaluator), (courier, evaluator), (courier, candidate)):
            if one is not None and other is not None and child in (one, other) and one.ready and other.ready:
                self._join(one, other)

    def _join(self, one: Child, other: Child, *, waits: bool = False) -> None:
        first, second = pair()
        epoch = self._epoch
        with first, second:
            one.tell(Message(Kind.ATTACH, code=other.role, a=epoch, b=int(waits), fds=(first.fileno(),)))
            other.tell(Message(Kind.ATTACH, code=one.role, a=epoch, fds=(second.fileno(),)))

    # --- deaths

    def _knows(self, what: Channel | int) -> bool:
        return (
            what.fileno() in self._selector.get_map() if isinstance(what, Channel) else what in self._selector.get_map()
        )

    def _buried(self, child: Child) -> None:
        """Reads what it said last, then clears up."""
        if self._knows(child.channel):
            self._serve(child, died=False)
        status = child.process.wait()
        log.log(
            logging.INFO if child in self._retiring else logging.WARNING, "%s ended, status %d", _name(child), status
        )
        self._forget(child)
        slot = next((s for s in (self._sensor, self._courier, self._evaluator) if s.child is child), None)
        if child in self._retiring:
            self._retiring.remove(child)
        elif self._load is not None and child is self._load.candidate:
            self._candidate_died(self._load)
        elif slot is not None:
            slot.died()
            self._after_death(child)
        self._tell_state()

    def _forget(self, child: Child) -> None:
        if self._knows(child.channel):
            self._selector.unregister(child.channel)
        self._selector.unregister(child.pidfd)
        child.channel.close()
        os.close(child.pidfd)

    def _after_death(self, child: Child) -> None:
        load = self._load
        if child.role == control.ROLE_SENSOR:
            if not child.ready and self._resumes:
                log.warning("what the former sensor left cannot be resumed: the next one begins anew")
                self._keep(())
            if load is not None and load.step is Step.SWITCHING:
                self._switched()
        elif child.role == control.ROLE_EVALUATOR and not child.ready and not self._proven:
            self._next_release("its evaluator died of it")

    def _next_release(self, why: str) -> None:
        if self._release is None:
            return
        self._trouble(f"release {self._release.origin} was refused at the start: {why}")
        self._release.close()
        self._release = None

    # --- loads

    def _begin_load(self, courier: Child, message: Message) -> None:
        (fd,) = message.fds
        try:
            if self._load is not None:
                courier.tell(Message(Kind.LOAD_RESULT, code=BUSY, a=message.a))
                return
            release = hold(fd, "load")
        except (ContentError, OSError) as error:
            code = error.code if isinstance(error, ContentError) else "UNREADABLE"
            refusal = content.Refusal(stage=content.STAGE_RECEIVE, code=code, message=str(error))
            self._answer(courier, message.a, REFUSED, refusal.SerializeToString())
            return
        finally:
            os.close(fd)
        if release.digest == self._active.digest and self._proven:
            release.close()
            self._answer(courier, message.a, ACCEPTED)
            return
        candidate = self._start(control.ROLE_EVALUATOR)
        candidate.tell(Message(Kind.RELEASE, digest=release.digest, fds=(release.fd,)))
        self._load = Load(message.a, courier, release, candidate)

    def _answer(self, courier: Child, ticket: int, code: int, refusal: bytes = b"") -> None:
        active = self._active
        message = Message(Kind.LOAD_RESULT, code=code, a=ticket, b=active.rules, digest=active.digest, payload=refusal)
        if courier is self._courier.child and not courier.tell(message):
            log.warning("the courier did not take the answer to a load")

    def _refused(self, child: Child, payload: bytes) -> None:
        if self._load is not None and child is self._load.candidate:
            self._give_up(self._load, payload)
        elif child is self._evaluator.child and not self._proven:
            self._next_release("it does not compile here, or its samples fail")
            self._retire(child)
            self._evaluator.child = None
            self._tell_state()
        else:
            raise PeerError("an evaluator refused what it had accepted")

    def _candidate_died(self, load: Load) -> None:
        stage = content.STAGE_SWITCH if load.step is Step.SWITCHING else content.STAGE_COMPILE
        words = "the evaluator that was to prove the release ended before it was done: it needs too much memory or time"
        refusal = content.Refusal(stage=stage, code="EVALUATOR_DIED", message=words)
        self._give_up(load, refusal.SerializeToString())

    def _give_up(self, load: Load, refusal: bytes) -> None:
        """The load is refused; the active release stays, with its evaluator."""
        self._load = None
        load.release.close()
        if load.candidate.process.returncode is None:
            self._retire(load.candidate)
        sensor, evaluator = self._sensor.child, self._evaluator.child
        if load.step is Step.SWITCHING and sensor and evaluator and sensor.ready and evaluator.ready:
            self._join(sensor, evaluator)
        self._answer(load.courier, load.ticket, REFUSED, refusal)

    def _switch(self, load: Load, told: Active) -> None:
        """The candidate has proved itself."""
        if told.digest != load.release.digest:
            raise PeerError("an evaluator is ready with another release than it was given")
        try:
            self._store.store(load.release)
        except OSError as error:
            refusal = content.Refusal(stage=content.STAGE_STORE, code="NOT_STORED", message=str(error))
            self._give_up(load, refusal.SerializeToString())
            return
        load.step, load.switch_s = Step.SWITCHING, time.monotonic()
        load.name, load.rules, load.inert = told.name, told.rules, told.inert
        courier, sensor = self._courier.child, self._sensor.child
        if courier is not None and courier.ready:
            self._join(courier, load.candidate)
        if sensor is None or not sensor.ready:
            self._switched()
            return
        self._join(sensor, load.candidate, waits=True)
        sensor.tell(Message(Kind.SWITCH))

    def _switched(self) -> None:
        """The sensor gives everything to the candidate from now on."""
        load = self._load
        if load is None or load.step is not Step.SWITCHING:
            return
        former, former_release = self._evaluator.child, self._release
        self._load = None
        self._evaluator.child, self._release, self._proven = load.candidate, load.release, True
        self._active = Active(load.release.digest, load.name, load.rules, load.inert)
        self._troubles = []
        self._waiting_releases.clear()
        try:
            self._store.activate(load.release)
        except OSError as error:
            self._trouble(f"the active release could not be noted for the next start: {error}")
        if former is not None:
            self._retire(former)
        if former_release is not None:
            former_release.close()
        self._answer(load.courier, load.ticket, ACCEPTED)
        self._tell_state()

    def _retire(self, child: Child) -> None:
        child.started_s = time.monotonic()
        self._retiring.append(child)
        child.tell(Message(Kind.SHUTDOWN))

    # --- each second

    def _look_after(self) -> None:
        sensor, now_s = self._sensor.child, time.monotonic()
        in_flight = sensor is not None and sensor.ready and sensor.b > 0
        candidate = self._load.candidate if self._load else None
        for child in (sensor, self._courier.child, self._evaluator.child, candidate):
            if child is None:
                continue
            busy = in_flight and child is self._evaluator.child
            if why := child.hung(self._config.evaluator.hang_timeout_s, in_flight=busy):
                log.warning("%s %s: it is killed", _name(child), why)
                child.kill()
        for child in self._retiring:
            if now_s - child.started_s > END_TIMEOUT_S:
                child.kill()
        load = self._load
        if load is not None and load.step is Step.SWITCHING and now_s - load.switch_s > SWITCH_TIMEOUT_S:
            load.candidate.kill()
        self._tell_state()

    def _health(self) -> tuple[int, str]:
        slots = (self._sensor, self._courier, self._evaluator)
        away = [control.Role.Name(s.role)[5:].lower() for s in slots if s.child is None or not s.child.ready]  # type: ignore[arg-type]
        reasons = list(self._troubles)
        failed = self._release is None and not self._waiting_releases
        if failed:
            reasons.append("no release is usable: nothing is detected; load one with `tocsin content load`")
        for slot in slots:
            if slot.start_at_s > time.monotonic() and len(slot.deaths) >= FAILED_DEATHS:
                failed = True
        if away:
            reasons.append(f"being started: {', '.join(away)}")
        if self._shortfall:
            reasons.append(self._shortfall)
        if self._source and self._source != SOURCE_CORE and not self._shortfall:
            reasons.append("the source is a reduced one")
        health = control.HEALTH_FAILED if failed else control.HEALTH_DEGRADED if reasons else control.HEALTH_OK
        return health, "; ".join(reasons)

    def _tell_state(self) -> None:
        courier = self._courier.child
        if courier is None or not courier.ready:
            return
        health, reason = self._health()
        sensor, evaluator = self._sensor.child, self._evaluator.child
        rows = [ProcessState(control.ROLE_MONITOR, os.getpid(), 0, os.geteuid())]
        for slot in (self._sensor, self._evaluator, self._courier):
            user = children.USERS.get(control.Role.ValueType(slot.role))
            uid = process_uid(user) if user else os.geteuid()
            rows.append(ProcessState(slot.role, slot.child.pid if slot.child else 0, slot.restarts, uid))
        state = AgentState(
            health=health,
            reason=reason,
            source=self._source,
            processes=tuple(rows),
            release_digest=self._active.digest,
            release_name=self._active.name,
            rules=self._active.rules,
            rules_inert=self._active.inert,
            start_monotonic_ns=self._start_ns,
            sensor_progress=sensor.a if sensor else 0,
            evaluator_progress=evaluator.a if evaluator else 0,
        )
        courier.tell(Message(Kind.STATE, payload=state.pack()))

    # --- the end

    def _end_all(self) -> None:
        """No process is left, and no socket."""
        slots = (self._sensor, self._evaluator, self._courier)
        left = [slot.child for slot in slots if slot.child] + self._retiring
        left += [self._load.candidate] if self._load else []
        for child in left:
            child.tell(Message(Kind.SHUTDOWN))
        deadline_s = time.monotonic() + END_TIMEOUT_S
        for child in left:
            while child.process.poll() is None and time.monotonic() < deadline_s:
                time.sleep(0.01)
            if child.process.poll() is None:
                child.kill()
                child.process.wait()
        self._config.socket_path.unlink(missing_ok=True)


def _name(child: Child) -> str:
    return control.Role.Name(control.Role.ValueType(child.role)).removeprefix("ROLE_").lower()


if __name__ == "__main__":
    sys.exit(main())
