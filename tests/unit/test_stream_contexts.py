"""Contexts in the courier: kept for those who come later, bounded, in batches of their own."""

import pytest

from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.api.event.v1 import batch_pb2, event_pb2
from tocsin.records import framing
from tocsin.stream.contexts import BATCH_BYTES, Contexts
from tocsin.stream.hub import Hub
from tocsin.stream.subscription import Subscription

SEEN = batch_pb2.Executable(dev=1, inode=2, size=3, mtime_ns=4, path=b"/bin/shop", sha256=b"s" * 32)
SHOP = batch_pb2.Container(id="c" * 64, runtime="docker", cgroup_id=9)


def header(**values: object) -> batch_pb2.BatchHeader:
    return batch_pb2.BatchHeader(host_id="h", **values)  # type: ignore[arg-type]


def told(contexts: Contexts) -> batch_pb2.BatchHeader:
    """Everything that is kept, merged."""
    merged = batch_pb2.BatchHeader()
    for serialised in contexts.batches(7):
        batch = batch_pb2.Batch.FromString(serialised)
        assert not batch.events
        merged.MergeFrom(batch.header)
    return merged


def test_both_kinds_are_kept_and_stand_at_the_position() -> None:
    contexts = Contexts()
    contexts.note(header(executables=[SEEN], containers=[SHOP]))
    assert told(contexts) == batch_pb2.BatchHeader(
        start_position=7, end_position=7, executables=[SEEN], containers=[SHOP]
    )


def test_nothing_is_told_where_nothing_is_known() -> None:
    assert list(Contexts().batches(7)) == []


def test_the_newest_word_counts() -> None:
    contexts = Contexts()
    contexts.note(header(containers=[SHOP]))
    named = batch_pb2.Container(id=SHOP.id, runtime="docker", cgroup_id=9, name="shop")
    contexts.note(header(containers=[named]))
    assert list(told(contexts).containers) == [named]


def test_the_oldest_go_when_the_bound_is_reached() -> None:
    size_bytes = len(framing.field(16, batch_pb2.Container(id="x", cgroup_id=1).SerializeToString()))
    contexts = Contexts(max_bytes=3 * size_bytes)
    for number in (1, 2, 3, 1, 4):
        contexts.note(header(containers=[batch_pb2.Container(id="x", cgroup_id=number)]))
    assert [container.cgroup_id for container in told(contexts).containers] == [3, 1, 4]


def test_batches_are_bounded_and_in_all_complete() -> None:
    contexts = Contexts()
    for number in range(200):
        contexts.note(header(executables=[batch_pb2.Executable(inode=number + 1, path=b"p" * 4096)]))
    batches = list(contexts.batches(7))
    assert len(batches) > 1
    assert max(map(len, batches)) < BATCH_BYTES + 8192
    assert [executable.inode for executable in told(contexts).executables] == list(range(1, 201))


def heartbeat(*, executables: int = 0) -> bytes:
    many = [batch_pb2.Executable(inode=number + 1) for number in range(executables)]
    return framing.header_field(header(executables=many).SerializeToString())


def inodes(serialised: bytes | None) -> list[int]:
    assert serialised is not None
    return [one.inode for one in control.SubscribeResponse.FromString(serialised).batch.header.executables]


@pytest.mark.parametrize("wanted", [Subscription(), Subscription(event_types=frozenset({event_pb2.EVENT_TYPE_EXEC}))])
def test_a_subscriber_gets_contexts_as_they_come_whatever_events_it_wants(wanted: Subscription) -> None:
    hub = Hub(1 << 20, 4)
    subscriber = hub.subscribe(wanted, lambda: None)
    hub.take_batch(0, heartbeat(executables=2))
    assert inodes(subscriber.backlog.pop()) == [1, 2]


def test_a_subscriber_who_comes_later_gets_what_was_told_before() -> None:
    hub = Hub(1 << 20, 4)
    hub.take_batch(0, heartbeat(executables=2))
    hub.take_batch(0, heartbeat())
    assert inodes(hub.subscribe(Subscription(), lambda: None).backlog.pop()) == [1, 2]


def test_who_wants_detections_only_gets_none() -> None:
    hub = Hub(1 << 20, 4)
    hub.take_batch(0, heartbeat(executables=2))
    assert hub.subscribe(Subscription(events=False), lambda: None).backlog.pop() is None
