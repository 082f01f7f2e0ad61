"""Which release is active: the one to start with, and how another one takes its place.

A load is a state machine: LOADING (a second evaluator, the candidate, proves
the release), SWITCHING (the sensor draws its line), then nothing again. Every
way out of it before the switch leaves the active release as it was. One load is
under way at a time. Releases are opaque bytes here.
"""

import logging
import os
import time
from collections import deque
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from tocsin.api.content.v1 import content_service_pb2 as content
from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.errors import ContentError, PeerError
from tocsin.processes.channel import NO_DIGEST, Kind, Message
from tocsin.processes.child import Child
from tocsin.processes.crew import Crew
from tocsin.processes.release_store import STARTER, HeldRelease, ReleaseStore, hold, hold_path
from tocsin.stream.loading import ACCEPTED, BUSY, REFUSED

log = logging.getLogger("monitor")

SWITCH_TIMEOUT_S: Final = 30.0
TROUBLES_KEPT: Final = 4


class Step(Enum):
    """How far a load is."""

    LOADING = "loading"
    SWITCHING = "switching"


@dataclass(frozen=True, slots=True)
class Active:
    """A release as its evaluator told it."""

    digest: bytes = NO_DIGEST
    name: bytes = b""
    rules: int = 0
    inert: int = 0


@dataclass(eq=False, slots=True)
class Load:
    """A release on its way to become active."""

    ticket: int
    courier: Child
    release: HeldRelease
    candidate: Child
    step: Step = Step.LOADING
    switch_s: float = 0.0
    told: Active = Active()


class Loads:
    """The active release and the load that is under way."""

    def __init__(self, crew: Crew, store: ReleaseStore, configured: str) -> None:
        """`configured`: path of the release to start with; empty: the stored one, else the packaged one."""
        self._crew = crew
        self._store = store
        self._configured = configured
        self._waiting: deque[str] = deque(("configured", "stored", "packaged"))
        """Where a release to start with is looked for."""
        self._release: HeldRelease | None = None
        self._proven = False
        """Whether an evaluator became ready with the release."""
        self._load: Load | None = None
        self.active = Active()
        self.troubles: list[str] = []
        """What is wrong until the next release is accepted."""

    @property
    def candidate(self) -> Child | None:
        """The evaluator of the load that is under way."""
        return self._load.candidate if self._load else None

    @property
    def successor(self) -> Child | None:
        """The candidate that has proved its release and waits for the sensor."""
        return self._load.candidate if self._load and self._load.step is Step.SWITCHING else None

    @property
    def exhausted(self) -> bool:
        """Whether no release is usable: an evaluator has nothing to do."""
        return self._release is None and not self._waiting

    # --- at the start

    def choose(self) -> bool:
        """Whether there is a release for an evaluator."""
        while self._release is None and self._waiting:
            origin = self._waiting.popleft()
            try:
                self._release = self._release_of(origin)
            except (ContentError, OSError) as error:
                self._trouble(f"the {origin} release is not usable: {error}")
        return self._release is not None

    def _release_of(self, origin: str) -> HeldRelease | None:
        if origin == "configured":
            return hold_path(Path(self._configured)) if self._configured else None
        return self._store.active() if origin == "stored" else hold_path(STARTER)

    def brief(self, evaluator: Child) -> None:
        """Gives it the release that is or becomes active."""
        if self._release is not None:
            _give(evaluator, self._release)

    def evaluator_died(self, child: Child) -> None:
        """One without a successor did."""
        if not child.ready and not self._proven:
            self._next_release("its evaluator died of it")

    def _next_release(self, why: str) -> None:
        if self._release is None:
            return
        self._trouble(f"release {self._release.origin} was refused at the start: {why}")
        self._release.close()
        self._release = None

    def _trouble(self, words: str) -> None:
        log.warning("%s", words)
        self.troubles = [*self.troubles, words][-TROUBLES_KEPT:]

    # --- loading

    def begin(self, courier: Child, message: Message) -> None:
        """A LOAD with its one descriptor."""
        (fd,) = message.fds
        try:
            if self._load is not None:
                courier.tell(Message(Kind.LOAD_RESULT, code=BUSY, a=message.a))
                return
            release = hold(fd, "load")
        except (ContentError, OSError) as error:
            code = error.code if isinstance(error, ContentError) else "UNREADABLE"
            self._answer(courier, message.a, REFUSED, _refusal(content.STAGE_RECEIVE, code, str(error)))
            return
        finally:
            os.close(fd)
        if release.digest == self.active.digest and self._proven:
            release.close()
            self._answer(courier, message.a, ACCEPTED)
            return
        candidate = self._crew.start(control.ROLE_EVALUATOR)
        _give(candidate, release)
        self._load = Load(message.a, courier, release, candidate)

    def _answer(self, courier: Child, ticket: int, code: int, refusal: bytes = b"") -> None:
        active = self.active
        message = Message(Kind.LOAD_RESULT, code=code, a=ticket, b=active.rules, digest=active.digest, payload=refusal)
        if courier is self._crew.courier.child and not courier.tell(message):
            log.warning("the courier did not take the answer to a load")

    def refused(self, child: Child, refusal: bytes) -> None:
        """An evaluator refused its release. Raises PeerError when it had accepted it."""
        if self._load is not None and child is self._load.candidate:
            self._give_up(self._load, refusal)
        elif child is self._crew.evaluator.child and not self._proven:
            self._next_release("it does not compile here, or its samples fail")
            self._crew.retire(child)
            self._crew.evaluator.child = None
        else:
            raise PeerError("an evaluator refused what it had accepted")

    def candidate_died(self) -> None:
        """The load is refused."""
        if self._load is None:
            return
        stage = content.STAGE_SWITCH if self._load.step is Step.SWITCHING else content.STAGE_COMPILE
        words = "the evaluator that was to prove the release ended before it was done: it needs too much memory or time"
        self._give_up(self._load, _refusal(stage, "EVALUATOR_DIED", words))

    def kill_late(self) -> None:
        """Kills a candidate that waits for the sensor for too long."""
        load = self._load
        late = load is not None and time.monotonic() - load.switch_s > SWITCH_TIMEOUT_S
        if load is not None and late and load.step is Step.SWITCHING:
            load.candidate.kill()

    def _give_up(self, load: Load, refusal: bytes) -> None:
        """The load is refused; the active release stays, with its evaluator."""
        self._load = None
        load.release.close()
        if load.candidate.process.returncode is None:
            self._crew.retire(load.candidate)
        sensor, evaluator = self._crew.sensor.child, self._crew.evaluator.child
        if load.step is Step.SWITCHING and sensor and evaluator and sensor.ready and evaluator.ready:
            self._crew.join(sensor, evaluator)
        self._answer(load.courier, load.ticket, REFUSED, refusal)

    # --- switching

    def ready(self, evaluator: Child, told: Active) -> None:
        """An evaluator has proved its release. Raises PeerError when it is another one than it was given."""
        if self._load is not None and evaluator is self._load.candidate:
            self._switch(self._load, told)
        else:
            self.active, self._proven = told, True
            self._crew.join_all(evaluator, self.successor)

    def _switch(self, load: Load, told: Active) -> None:
        if told.digest != load.release.digest:
            raise PeerError("an evaluator is ready with another release than it was given")
        try:
            self._store.store(load.release)
        except OSError as error:
            self._give_up(load, _refusal(content.STAGE_STORE, "NOT_STORED", str(error)))
            return
        load.step, load.switch_s, load.told = Step.SWITCHING, time.monotonic(), told
        courier, sensor = self._crew.courier.child, self._crew.sensor.child
        if courier is not None and courier.ready:
            self._crew.join(courier, load.candidate)
        if sensor is None or not sensor.ready:
            self.switched()
            return
        self._crew.join(sensor, load.candidate, waits=True)
        sensor.tell(Message(Kind.SWITCH))

    def switched(self) -> None:
        """The sensor gives everything to the candidate from now on, or there is no sensor; else it is no news."""
        load = self._load
        if load is None or load.step is not Step.SWITCHING:
            return
        former, former_release = self._crew.evaluator.child, self._release
        self._load = None
        self._crew.evaluator.child, self._release, self._proven = load.candidate, load.release, True
        self.active = load.told
        self.troubles = []
        self._waiting.clear()
        try:
            self._store.activate(load.release)
        except OSError as error:
            self._trouble(f"the active release could not be noted for the next start: {error}")
        if former is not None:
            self._crew.retire(former)
        if former_release is not None:
            former_release.close()
        self._answer(load.courier, load.ticket, ACCEPTED)


def _give(evaluator: Child, release: HeldRelease) -> None:
    evaluator.tell(Message(Kind.RELEASE, digest=release.digest, fds=(release.fd,)))


def _refusal(stage: content.Stage.ValueType, code: str, words: str) -> bytes:
    return content.Refusal(stage=stage, code=code, message=words).SerializeToString()
