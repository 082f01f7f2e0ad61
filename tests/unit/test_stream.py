"""What subscribers get, decided without sockets."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulators.agent_around_courier import make_batch, make_detections, make_event  # type: ignore[import-not-found]
from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.api.event.v1 import batch_pb2, event_pb2
from tocsin.errors import PeerError, WireError
from tocsin.records import framing
from tocsin.stream import wire
from tocsin.stream.backlog import Backlog
from tocsin.stream.hub import HELD_BACK_BYTES, Hub, Subscriber
from tocsin.stream.loading import LoadDesk, LoadResult, TooBigError, Upload
from tocsin.stream.peers import Access, Peer, Policy
from tocsin.stream.subscription import Subscription, checked, select_events

EXEC, EXIT, LOSS = event_pb2.EVENT_TYPE_EXEC, event_pb2.EVENT_TYPE_EXIT, event_pb2.EVENT_TYPE_LOSS


class Watcher:
    """A subscriber whose parts are read by the test."""

    def __init__(self, hub: Hub, wanted: Subscription | None = None) -> None:
        self.woken = 0
        self.subscriber: Subscriber = hub.subscribe(wanted or Subscription(), self._wake)

    def _wake(self) -> None:
        self.woken += 1

    def parts(self) -> list[control.SubscribeResponse]:
        """Everything that waits."""
        found = []
        while (message := self.subscriber.backlog.pop()) is not None:
            found.append(control.SubscribeResponse.FromString(message))
        return found

    def names(self) -> list[str | None]:
        """What waits, in one word each."""
        return [part.WhichOneof("part") for part in self.parts()]


def give(hub: Hub, start: int, end: int, *events: event_pb2.Event, users: dict[int, str] | None = None) -> bool:
    """A batch into the hub."""
    return hub.take_batch(end, make_batch(start, end, list(events), users).SerializeToString())


def detect(hub: Hub, end: int, *events: event_pb2.Event, level: int = 4) -> bool:
    """Detections into the hub."""
    return hub.take_detections(end, 0, make_detections(end, list(events), level).SerializeToString())


def make_hub(buffer_bytes: int = 1 << 20, subscribers: int = 4) -> Hub:
    """A hub."""
    return Hub(buffer_bytes, subscribers)


# --- batches


def test_a_batch_goes_through_byte_for_byte() -> None:
    hub = make_hub()
    watcher = Watcher(hub)
    batch = make_batch(0, 10, [make_event(1)]).SerializeToString()
    long_varints = batch.replace(b"\x0a", b"\x8a\x00", 1)  # as eBPF programs may write it
    hub.take_batch(10, long_varints)
    message = watcher.subscriber.backlog.pop()
    assert message is not None
    assert wire.part(message) == (control.SubscribeResponse.BATCH_FIELD_NUMBER, long_varints)


def test_subscribers_share_the_bytes_of_a_batch() -> None:
    hub = make_hub()
    first, second = Watcher(hub), Watcher(hub)
    give(hub, 0, 10, make_event(1))
    assert first.subscriber.backlog.pop() is second.subscriber.backlog.pop()


def test_a_repeated_batch_is_dropped() -> None:
    hub = make_hub()
    watcher = Watcher(hub)
    assert give(hub, 0, 10, make_event(1))
    assert not give(hub, 0, 10, make_event(1))
    assert give(hub, 10, 20, make_event(2))
    assert watcher.names() == ["batch", "batch"]
    assert hub.events_received == 2


def test_of_a_batch_that_overlaps_only_the_new_events_are_taken() -> None:
    hub = make_hub()
    watcher = Watcher(hub)
    give(hub, 0, 20, make_event(1), make_event(2))
    assert give(hub, 0, 30, make_event(1), make_event(2), make_event(3))
    first, second = (part.batch for part in watcher.parts())
    assert [e.cpu_sequence for e in first.events] == [1, 2]
    assert [e.cpu_sequence for e in second.events] == [3]
    header = second.header
    assert (header.start_position, header.end_position) == (20, 30)
    assert (header.first_event_index, header.event_count, hub.events_received) == (2, 1, 3)


def test_a_batch_without_events_is_taken_for_its_header() -> None:
    hub = make_hub()
    give(hub, 0, 10, make_event(1))
    header = batch_pb2.BatchHeader(host_id="h", start_position=10, end_position=10, images_missing=7)
    assert hub.take_batch(10, batch_pb2.Batch(header=header).SerializeToString())
    assert (hub.position, hub.header.images_missing, hub.events_received) == (10, 7, 1)


def test_positions_start_over_with_a_new_epoch_only() -> None:
    hub = make_hub()
    give(hub, 90, 100, make_event(1))
    hub.begin_epoch(0)
    assert not give(hub, 0, 10, make_event(2))
    hub.begin_epoch(1)
    assert give(hub, 0, 10, make_event(2))


def test_a_malformed_batch_is_counted_and_not_asked_for_again() -> None:
    hub = make_hub()
    with pytest.raises(WireError, match="batch that ends at 10"):
        hub.take_batch(10, b"\x0a\xff")
    assert hub.position == 10
    assert hub.losses[0, event_pb2.LOSS_REASON_MALFORMED] == 1


def test_losses_in_user_space_are_counted_and_the_kernels_are_not() -> None:
    hub = make_hub()
    loss = event_pb2.Event(type=LOSS)
    loss.loss.reason, loss.loss.count = event_pb2.LOSS_REASON_EVALUATOR_BACKLOG, 7
    kernel = event_pb2.Event(type=LOSS)
    kernel.loss.reason, kernel.loss.count = event_pb2.LOSS_REASON_RING_FULL, 9
    give(hub, 0, 10, make_event(1), loss, kernel)
    assert dict(hub.losses) == {(0, event_pb2.LOSS_REASON_EVALUATOR_BACKLOG): 7}
    assert hub.events_received == 1


def test_users_are_remembered_for_those_who_come_later() -> None:
    hub = make_hub()
    give(hub, 0, 10, users={0: "root"})
    give(hub, 10, 20, make_event(1))
    assert [user.name for user in hub.users] == ["root"]


def test_one_subscriber_more_than_allowed_is_refused() -> None:
    hub = make_hub(subscribers=1)
    watcher = Watcher(hub)
    with pytest.raises(PeerError, match="1 subscribers are connected"):
        Watcher(hub)
    hub.unsubscribe(watcher.subscriber)
    hub.unsubscribe(watcher.subscriber)
    Watcher(hub)


# --- detections


def test_detections_wait_for_their_batch() -> None:
    hub = make_hub()
    watcher = Watcher(hub)
    detect(hub, 20, make_event(2))
    give(hub, 0, 10, make_event(1))
    assert watcher.names() == ["batch"]
    give(hub, 10, 20, make_event(2))
    assert watcher.names() == ["batch", "detections"]


def test_detections_of_a_batch_that_was_taken_go_out_at_once() -> None:
    hub = make_hub()
    give(hub, 0, 10, make_event(1))
    watcher = Watcher(hub)
    detect(hub, 10, make_event(1))
    assert watcher.names() == ["detections"]
    assert hub.detections == 1


def test_repeated_detections_are_dropped_before_and_after_their_batch() -> None:
    hub = make_hub()
    assert detect(hub, 10, make_event(1))
    assert not detect(hub, 10, make_event(1))
    give(hub, 0, 10, make_event(1))
    assert not detect(hub, 10, make_event(1))
    assert hub.detections == 1


def test_detections_that_wait_are_bounded_by_asking_for_no_more() -> None:
    hub = make_hub()
    end = 0
    while hub.wants_detections:
        end += 10
        detect(hub, end, *[make_event(number) for number in range(2000)])
    assert end < HELD_BACK_BYTES
    hub.take_batch(end, make_batch(0, end, []).SerializeToString())
    assert hub.wants_detections


def test_a_lying_evaluator_cannot_silence_its_successor() -> None:
    hub = make_hub()
    give(hub, 0, 10, make_event(1))
    with pytest.raises(WireError, match="batches have come up to 10"):
        detect(hub, 2**63, make_event(1))
    detect(hub, 10**6, make_event(1))
    watcher = Watcher(hub)
    assert detect(hub, 10, make_event(1))
    assert watcher.names() == ["detections"]


def test_garbage_in_place_of_detections_is_a_wire_error() -> None:
    with pytest.raises(WireError, match="no DetectionBatch"):
        make_hub().take_detections(10, 0, b"\x0a\xff")


def test_detections_that_wait_go_out_when_positions_start_over() -> None:
    hub = make_hub()
    watcher = Watcher(hub)
    detect(hub, 100, make_event(1))
    hub.begin_epoch(1)
    assert watcher.names() == ["detections"]


# --- filters


def test_only_events_of_the_wanted_types_and_every_loss() -> None:
    hub = make_hub()
    watcher = Watcher(hub, Subscription(event_types=frozenset({EXIT})))
    give(hub, 0, 10, make_event(1, EXEC), make_event(2, EXIT), make_event(3, LOSS))
    (part,) = watcher.parts()
    assert [event.cpu_sequence for event in part.batch.events] == [2, 3]
    assert part.batch.header.end_position == 10


def test_only_events_of_the_wanted_users() -> None:
    hub = make_hub()
    watcher = Watcher(hub, Subscription(uids=frozenset({1000})))
    give(hub, 0, 10, make_event(1, euid=0), make_event(2, euid=1000))
    (part,) = watcher.parts()
    assert [event.cpu_sequence for event in part.batch.events] == [2]


def test_a_batch_without_a_wanted_event_is_left_out_but_not_its_users() -> None:
    hub = make_hub()
    watcher = Watcher(hub, Subscription(uids=frozenset({1000})))
    give(hub, 0, 10, make_event(1))
    assert watcher.names() == []
    give(hub, 10, 20, make_event(2), users={1000: "ann"})
    (part,) = watcher.parts()
    assert not part.batch.events
    assert part.batch.header.users[0].name == "ann"


def test_only_detections_that_are_wanted() -> None:
    hub = make_hub()
    give(hub, 0, 10)
    wanted = (
        Subscription(min_level=5),
        Subscription(rule_ids=frozenset({"rule-2"})),
        Subscription(uids=frozenset({1000})),
        Subscription(event_types=frozenset({EXIT})),
        Subscription(events=False),
        Subscription(detections=False),
    )
    hub = make_hub(subscribers=len(wanted))
    watchers = [Watcher(hub, one) for one in wanted]
    give(hub, 0, 10)
    for watcher in watchers:
        watcher.parts()
    detect(hub, 10, make_event(1), make_event(2, EXIT, euid=1000))
    counts = [sum(len(part.detections.detections) for part in watcher.parts()) for watcher in watchers]
    assert counts == [0, 1, 1, 1, 2, 0]


@given(st.lists(st.tuples(st.sampled_from([EXEC, EXIT, LOSS]), st.sampled_from([0, 1000])), max_size=20), st.data())
def test_a_filter_keeps_what_fits_in_order_and_unchanged(kinds: list[tuple[int, int]], data: st.DataObject) -> None:
    events = [make_event(number, kind, euid) for number, (kind, euid) in enumerate(kinds)]
    types = data.draw(st.frozensets(st.sampled_from([EXEC, EXIT]), min_size=1))
    uids = data.draw(st.frozensets(st.sampled_from([0, 1000])))
    batch = make_batch(0, 10, events)
    selected = select_events(framing.index(batch.SerializeToString()), Subscription(event_types=types, uids=uids))
    fitting = [e for e in events if e.type == LOSS or (e.type in types and (not uids or e.process.euid in uids))]
    if selected is None:
        assert not fitting
        return
    assert selected.count == len(fitting)
    kept = batch_pb2.Batch.FromString(selected.serialised)
    assert list(kept.events) == fitting
    assert kept.header == batch.header


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (control.SubscribeRequest(), "events, detections: both are false"),
        (control.SubscribeRequest(events=True, event_types=[99]), "event_types: 99"),  # type: ignore[list-item]
        (control.SubscribeRequest(events=True, event_types=[0]), "event_types: 0"),  # type: ignore[list-item]
        (control.SubscribeRequest(events=True, min_level=77), "min_level: 77"),  # type: ignore[arg-type]
        (control.SubscribeRequest(events=True, rule_ids=["x"] * 10_001), "rule_ids: got 10001"),
        (control.SubscribeRequest(events=True, uids=range(10_001)), "uids: got 10001"),
    ],
)
def test_a_wrong_request_is_refused_by_the_name_of_its_field(request_: control.SubscribeRequest, words: str) -> None:
    with pytest.raises(WireError, match=words):
        checked(request_)


# --- subscribers that are behind


def test_a_slow_subscriber_gets_a_loss_in_place_of_what_it_missed() -> None:
    hub = make_hub(buffer_bytes=3000)
    watcher = Watcher(hub)
    for number in range(100):
        give(hub, number * 10, number * 10 + 10, *[make_event(number * 10 + i) for i in range(10)])
    assert watcher.subscriber.backlog.size_bytes <= 3000
    *batches, loss = watcher.parts()
    missed = 1000 - sum(len(part.batch.events) for part in batches)
    assert loss.loss.reason == event_pb2.LOSS_REASON_SUBSCRIBER_BACKLOG
    assert loss.loss.count == loss.loss.total == missed > 0
    assert hub.losses[0, event_pb2.LOSS_REASON_SUBSCRIBER_BACKLOG] == missed
    give(hub, 1000, 1010, make_event(1))
    assert watcher.names() == ["batch"]


def test_the_others_lose_nothing_when_one_is_slow() -> None:
    hub = make_hub(buffer_bytes=3000)
    Watcher(hub)
    fast = Watcher(hub)
    for number in range(100):
        give(hub, number * 10, number * 10 + 10, make_event(number))
        assert fast.names() == ["batch"]


def test_losses_stand_where_the_events_would_be() -> None:
    backlog = Backlog(10)
    pushes = [(b"aaaaa", 1), (b"bbbbb", 2), (b"ccccc", 4), (b"d", 8)]
    lost = [backlog.push(message, count) for message, count in pushes]
    assert lost == [0, 0, 4, 8]
    assert backlog.pop() == b"aaaaa"
    assert backlog.push(b"e", 16) == 0
    assert [backlog.pop() for _ in range(4)] == [b"bbbbb", wire.backlog_loss(12, 12), b"e", None]
    assert backlog.size_bytes == 0


@given(st.lists(st.one_of(st.integers(1, 40), st.none()), max_size=60))
def test_a_backlog_is_bounded_and_loses_nothing_uncounted(steps: list[int | None]) -> None:
    backlog = Backlog(100)
    pushed = popped = 0
    for size in [*steps, *[None] * 100]:
        if size is not None:
            backlog.push(bytes(size), 1)
            pushed += 1
        elif (message := backlog.pop()) is not None:
            plain = not any(message)
            popped += 1 if plain else control.SubscribeResponse.FromString(message).loss.count
        assert backlog.size_bytes <= 100
    assert popped == pushed


# --- messages made by hand


@given(st.binary(max_size=300))
def test_what_is_made_by_hand_is_what_protobuf_makes(data: bytes) -> None:
    batch = batch_pb2.Batch(header=batch_pb2.BatchHeader(schema_digest=data))
    by_hand = wire.batch(batch.SerializeToString())
    assert by_hand == control.SubscribeResponse(batch=batch).SerializeToString()
    assert wire.part(by_hand) == (2, batch.SerializeToString())


@given(st.binary(max_size=40))
def test_taking_a_response_apart_never_crashes(data: bytes) -> None:
    try:
        number, part = wire.part(data)
    except WireError:
        return
    assert number >= 0
    assert data.endswith(part)


# --- who may do what


def test_rights_follow_uid_and_group() -> None:
    policy = Policy(frozenset({0, 65491}), 100)
    assert policy.access(Peer(1, 0, frozenset())) is Access.OPERATOR
    assert policy.access(Peer(1, 65491, frozenset())) is Access.OPERATOR
    assert policy.access(Peer(1, 1000, frozenset({5, 100}))) is Access.READER
    assert policy.access(Peer(1, 1000, frozenset({5}))) is Access.DENIED
    assert Policy(frozenset({0}), None).access(Peer(1, 1000, frozenset({100}))) is Access.DENIED


# --- releases on their way


def test_a_release_is_sealed_and_hashed() -> None:
    with Upload() as upload:
        upload.add(b"abc")
        upload.add(b"def")
        fd = upload.seal()
        assert os.pread(fd, 10, 0) == b"abcdef"
        with pytest.raises(PermissionError):
            os.write(fd, b"x")
        assert upload.digest.hex().startswith("bef57ec7")


def test_a_release_beyond_the_limit_is_refused() -> None:
    with Upload() as upload:
        for _ in range(64):
            upload.add(bytes(1 << 20))
        with pytest.raises(TooBigError, match="release of more than"):
            upload.add(b"x")
        with pytest.raises(TooBigError, match="chunk of"):
            upload.add(bytes((1 << 20) + 1))


RESULT = LoadResult(0, bytes(32), 3, b"")


def test_one_load_at_a_time() -> None:
    desk = LoadDesk()
    answers: list[LoadResult] = []
    ticket = desk.begin(answers.append)
    with pytest.raises(PeerError, match="another load is under way"):
        desk.begin(answers.append)
    assert desk.answer(ticket, RESULT)
    assert answers == [RESULT]
    desk.begin(answers.append)


def test_an_answer_to_another_ticket_is_ignored() -> None:
    desk = LoadDesk()
    answers: list[LoadResult] = []
    ticket = desk.begin(answers.append)
    assert not desk.answer(ticket + 1, RESULT)
    desk.give_up(ticket)
    assert not desk.answer(ticket, RESULT)
    assert answers == []


def test_the_ticket_of_a_caller_who_left_stays_taken_until_the_answer() -> None:
    desk = LoadDesk()
    ticket = desk.begin(lambda _: None)
    desk.leave(ticket)
    with pytest.raises(PeerError):
        desk.begin(lambda _: None)
    assert not desk.answer(ticket, RESULT)
    desk.begin(lambda _: None)
