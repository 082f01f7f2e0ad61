"""The monitor's children: a slot for each role, evaluators that come and go beside them, and the channels between all.

Nothing is decided here: monitor and loads say who is started, joined and ended.
"""

import os
import selectors
import time
from typing import Final

from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.processes import child as children
from tocsin.processes.channel import Kind, Message, pair
from tocsin.processes.child import Child, Slot

END_TIMEOUT_S: Final = 5.0


class Crew:
    """Who runs."""

    def __init__(self, config_json: str) -> None:
        """`config_json`: the settings that each child is given."""
        self._config_json = config_json
        self.selector = selectors.DefaultSelector()
        """Each child's channel with data (child, False), its pidfd with (child, True)."""
        self.sensor = Slot(control.ROLE_SENSOR)
        self.courier = Slot(control.ROLE_COURIER)
        self.evaluator = Slot(control.ROLE_EVALUATOR)
        self.enricher = Slot(control.ROLE_ENRICHER)
        self.slots: Final = (self.courier, self.sensor, self.evaluator, self.enricher)
        """In the order in which they are filled."""
        self.retiring: list[Child] = []
        """Told to end; nobody waits for them."""
        self.epoch = 0
        """Of positions; another one when a source begins anew."""

    def start(self, role: int) -> Child:
        """A new process. Raises OSError."""
        child = children.start(role, self._config_json)
        self.selector.register(child.channel, selectors.EVENT_READ, (child, False))
        self.selector.register(child.pidfd, selectors.EVENT_READ, (child, True))
        return child

    def slot_of(self, child: Child) -> Slot | None:
        """The slot that it fills; None when it fills none."""
        return next((slot for slot in self.slots if slot.child is child), None)

    def hears(self, child: Child) -> bool:
        """Whether its channel is read."""
        return child.channel.fileno() in self.selector.get_map()

    def stop_hearing(self, child: Child) -> None:
        """Its channel is not read any more; again is no error."""
        if self.hears(child):
            self.selector.unregister(child.channel)

    def forget(self, child: Child) -> None:
        """Clears up after one that ended."""
        self.stop_hearing(child)
        self.selector.unregister(child.pidfd)
        child.channel.close()
        os.close(child.pidfd)

    def join(self, one: Child, other: Child, *, waits: bool = False) -> None:
        """A channel between two; `waits`: `one` uses it after a SWITCH only."""
        first, second = pair()
        with first, second:
            one.tell(Message(Kind.ATTACH, code=other.role, a=self.epoch, b=int(waits), fds=(first.fileno(),)))
            other.tell(Message(Kind.ATTACH, code=one.role, a=self.epoch, fds=(second.fileno(),)))

    def join_all(self, child: Child, successor: Child | None) -> None:
        """Channels between a process that became ready and all that are; `successor`: of the evaluator."""
        sensor, courier, evaluator = self.sensor.child, self.courier.child, self.evaluator.child
        pairs = ((sensor, courier), (sensor, evaluator), (courier, evaluator), (courier, successor))
        for one, other in (*pairs, (sensor, self.enricher.child)):
            if one is not None and other is not None and child in (one, other) and one.ready and other.ready:
                self.join(one, other)

    def retire(self, child: Child) -> None:
        """Ends it in order."""
        child.started_s = time.monotonic()
        self.retiring.append(child)
        child.tell(Message(Kind.SHUTDOWN))

    def kill_late(self) -> None:
        """Kills those that were told to end and did not."""
        for child in self.retiring:
            if time.monotonic() - child.started_s > END_TIMEOUT_S:
                child.kill()

    def end(self, successor: Child | None) -> None:
        """No process is left."""
        left = [child for child in (*(slot.child for slot in self.slots), *self.retiring, successor) if child]
        for child in left:
            child.tell(Message(Kind.SHUTDOWN))
        deadline_s = time.monotonic() + END_TIMEOUT_S
        for child in left:
            while child.process.poll() is None and time.monotonic() < deadline_s:
                time.sleep(0.01)
            if child.process.poll() is None:
                child.kill()
                child.process.wait()
