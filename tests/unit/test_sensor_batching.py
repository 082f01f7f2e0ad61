"""Batches and the replay source, without a kernel."""

import pytest

from tocsin.api.event.v1 import batch_pb2, event_pb2
from tocsin.config import SensorConfig
from tocsin.kernel.replay import MAX_GAP_NS, ROUND_PAUSE_NS, ReplaySource, open_replay
from tocsin.kernel.source import Drained, SourceCounters
from tocsin.processes.batching import Batcher, Losses, tells_context

RING_FULL, EXEC = event_pb2.LOSS_REASON_RING_FULL, event_pb2.EVENT_TYPE_EXEC


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now_ns = 10**12

    def __call__(self) -> int:
        return self.now_ns


def recorded(*times_ns: int) -> list[event_pb2.Event]:
    """Events at these times."""
    return [
        event_pb2.Event(boottime_ns=at, type=EXEC, process=event_pb2.Process(start_boottime_ns=at - 1))
        for at in times_ns
    ]


def counters(lost: int) -> SourceCounters:
    """A source that lost so many execs."""
    full = batch_pb2.LossCounter(reason=RING_FULL, count=lost)
    return SourceCounters([batch_pb2.TypeCounter(event_type=EXEC, generated=100, lost=[full])])


def test_replay_keeps_the_recorded_pace_and_moves_times_to_the_present() -> None:
    clock = Clock()
    source = ReplaySource(recorded(1000, 1500), clock)
    first = source.drain(1 << 20)
    assert first.count == 1
    event = batch_pb2.Batch.FromString(first.body).events[0]
    assert (event.boottime_ns, event.process.start_boottime_ns) == (10**12, 10**12 - 1)
    assert source.drain(1 << 20).body == b""
    clock.now_ns += 500
    assert source.drain(1 << 20).count == 1


def test_replay_begins_again_with_growing_positions() -> None:
    clock = Clock()
    source = ReplaySource(recorded(1000), clock)
    first = source.drain(1 << 20)
    clock.now_ns += ROUND_PAUSE_NS
    second = source.drain(1 << 20)
    assert (second.start, second.first_index, second.count) == (first.end, 1, 1)
    assert source.counters().types[0].generated == 2


def test_replay_shortens_long_pauses() -> None:
    clock = Clock()
    source = ReplaySource(recorded(1, 10**15), clock)
    source.drain(1 << 20)
    clock.now_ns += MAX_GAP_NS
    assert source.drain(1 << 20).count == 1


def test_the_packaged_recording_can_be_played() -> None:
    assert open_replay(SensorConfig()).drain(1 << 20).count >= 1


def test_a_counter_that_grew_becomes_a_loss_event_once() -> None:
    losses = Losses(counters(3))
    assert losses.take(counters(3)) == []
    (event,) = losses.take(counters(10))
    assert (event.type, event.loss.event_type, event.loss.reason) == (event_pb2.EVENT_TYPE_LOSS, EXEC, RING_FULL)
    assert (event.loss.count, event.loss.total) == (7, 10)
    assert losses.take(counters(10)) == []


def test_losses_of_user_space_are_told_with_their_total() -> None:
    losses = Losses(counters(0))
    losses.count(event_pb2.LOSS_REASON_MALFORMED, 2)
    assert [(e.loss.count, e.loss.total) for e in losses.take(counters(0))] == [(2, 2)]
    losses.count(event_pb2.LOSS_REASON_MALFORMED, 1)
    assert [(e.loss.count, e.loss.total) for e in losses.take(counters(0))] == [(1, 3)]


def test_users_stand_in_the_first_batch_and_when_somebody_new_listens() -> None:
    batcher = Batcher(ReplaySource(recorded(1)))

    def users() -> int:
        queued = batcher.make(Drained(b"", 0, 5, 5, 7))
        header = batch_pb2.Batch.FromString(queued.payload).header
        assert (header.start_position, header.end_position, header.first_event_index) == (5, 5, 7)
        assert header.host_id
        return len(header.users)

    assert users() > 0
    assert users() == 0
    batcher.tell_names()
    assert users() > 0


def test_a_malformed_record_is_a_loss_event_that_does_not_count_as_an_event() -> None:
    queued = Batcher(ReplaySource(recorded(1))).make(Drained(b"", 0, 0, 8, 0, malformed=1))
    batch = batch_pb2.Batch.FromString(queued.payload)
    assert [e.loss.reason for e in batch.events] == [event_pb2.LOSS_REASON_MALFORMED]
    assert batch.header.event_count == 0


def test_contexts_and_nothing_else_are_taken_from_an_enricher() -> None:
    told = batch_pb2.BatchHeader(executables=[batch_pb2.Executable(inode=1)], containers=[batch_pb2.Container(id="c")])
    payload = told.SerializeToString()
    assert tells_context(payload)
    assert tells_context(b"")


@pytest.mark.parametrize(
    "payload",
    [
        batch_pb2.BatchHeader(host_id="another").SerializeToString(),
        batch_pb2.BatchHeader(containers=[batch_pb2.Container(id="c")], end_position=9).SerializeToString(),
        batch_pb2.BatchHeader(containers=[batch_pb2.Container(id="c")]).SerializeToString()[:-1],
        b"\x7a",
        b"\xff" * 10,
    ],
)
def test_what_is_no_context_is_not_taken(payload: bytes) -> None:
    assert not tells_context(payload)
