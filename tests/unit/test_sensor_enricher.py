"""A sensor between an enricher and a courier, over real channels; its source is a recording."""

import select
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulators.agent_around_process import expect  # type: ignore[import-not-found]
from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.api.event.v1 import batch_pb2, event_pb2
from tocsin.config import SensorConfig
from tocsin.errors import PeerError
from tocsin.kernel.guard import AttachGuard
from tocsin.kernel.replay import ReplaySource
from tocsin.processes.batching import Batcher
from tocsin.processes.channel import Channel, Kind, Message, pair
from tocsin.processes.sensor import MAX_CONTEXT_BYTES, Sensor
from tocsin.processes.told import ToldLosses

TOLD = batch_pb2.BatchHeader(executables=[batch_pb2.Executable(inode=7, path=b"/bin/shop")])
WAIT_S = 10.0


class Rest:
    """Monitor, courier and enricher of a sensor that runs in a thread."""

    def __init__(self, state_dir: Path) -> None:
        self.monitor, theirs = map(Channel, pair())
        source = ReplaySource([event_pb2.Event(boottime_ns=1, type=event_pb2.EVENT_TYPE_EXEC)])
        sensor = Sensor(SensorConfig(), theirs, source, Batcher(source), ToldLosses())
        self._thread = threading.Thread(target=sensor.run, args=(AttachGuard(state_dir),))
        self._thread.start()
        self.courier = self.attach(control.ROLE_COURIER)
        self.enricher = self.attach(control.ROLE_ENRICHER)

    def attach(self, role: int) -> Channel:
        """A peer's end of a channel."""
        ours, theirs = pair()
        self.monitor.send(Message(Kind.ATTACH, code=role, fds=(theirs.fileno(),)))
        theirs.close()
        return Channel(ours)

    def tell(self, payload: bytes) -> None:
        """As the enricher does."""
        assert self.enricher.send(Message(Kind.CONTEXT, payload=payload))

    def batch_with_context(self) -> batch_pb2.Batch:
        """The first batch that has one."""
        while True:
            batch = batch_pb2.Batch.FromString(expect(self.courier, Kind.BATCH).payload)
            if batch.header.executables:
                return batch

    def close(self) -> None:
        """Ends the sensor."""
        self.monitor.send(Message(Kind.SHUTDOWN))
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()


@pytest.fixture
def rest(tmp_path: Path) -> Iterator[Rest]:
    made = Rest(tmp_path)
    yield made
    made.close()


def test_what_the_enricher_tells_stands_in_a_batch_without_events(rest: Rest) -> None:
    rest.tell(TOLD.SerializeToString())
    batch = rest.batch_with_context()
    assert list(batch.header.executables) == list(TOLD.executables)
    assert (len(batch.events), batch.header.event_count) == (0, 0)
    assert batch.header.start_position == batch.header.end_position
    assert batch.header.host_id


@pytest.mark.parametrize(
    "payload",
    [
        batch_pb2.BatchHeader(first_event_index=10**9).SerializeToString(),
        batch_pb2.BatchHeader(executables=[batch_pb2.Executable(path=b"x" * MAX_CONTEXT_BYTES)]).SerializeToString(),
    ],
    ids=["another field", "too long"],
)
def test_an_enricher_that_tells_something_else_is_dropped(rest: Rest, payload: bytes) -> None:
    rest.tell(payload)
    assert select.select([rest.enricher], [], [], WAIT_S)[0]
    with pytest.raises(PeerError, match="closed"):
        rest.enricher.receive()


def test_the_enricher_is_asked_for_everything_when_somebody_new_listens(rest: Rest) -> None:
    rest.attach(control.ROLE_EVALUATOR)
    assert not expect(rest.enricher, Kind.TELL_ALL).payload


def test_another_enricher_takes_the_place_of_one_that_is_gone(rest: Rest) -> None:
    rest.enricher.close()
    rest.enricher = rest.attach(control.ROLE_ENRICHER)
    rest.tell(TOLD.SerializeToString())
    assert rest.batch_with_context().header.executables[0].inode == 7
