"""The queue toward a peer, as a transcript: what is pushed, what a peer gets, what it acknowledges."""

from tocsin.api.event.v1 import event_pb2
from tocsin.processes.outlet import Outlet, Queued

CRASH, BACKLOG = event_pb2.LOSS_REASON_EVALUATOR_CRASH, event_pb2.LOSS_REASON_EVALUATOR_BACKLOG


def filled(*ends: int, limit_bytes: int = 1000, lossy: bool = True) -> Outlet:
    """An outlet with batches of ten bytes and five events, named by their ends."""
    outlet = Outlet(limit_bytes, lossy=lossy)
    push(outlet, *ends)
    return outlet


def push(outlet: Outlet, *ends: int) -> None:
    """More batches."""
    for end in ends:
        outlet.push(Queued(end - 10, end, 5, bytes(10)))


def send(outlet: Outlet, at_most: int = 100) -> list[int]:
    """Sends what may be sent; the ends of it."""
    ends: list[int] = []
    while len(ends) < at_most and (batch := outlet.next()) is not None:
        outlet.sent()
        ends.append(batch.end)
    return ends


def test_batches_are_sent_in_order_and_forgotten_when_acknowledged() -> None:
    outlet = filled(10, 20, 30)
    assert send(outlet) == [10, 20, 30]
    assert (outlet.sent_position, outlet.in_flight, outlet.size_bytes) == (30, 3, 30)
    outlet.acknowledge(20)
    assert (outlet.in_flight, outlet.size_bytes) == (1, 10)
    outlet.acknowledge(30)
    assert (len(outlet), outlet.size_bytes) == (0, 0)


def test_what_was_not_acknowledged_is_sent_again() -> None:
    outlet = filled(10, 20, 30)
    assert send(outlet, 2) == [10, 20]
    outlet.acknowledge(10)
    outlet.peer_died()
    assert send(outlet) == [20, 30]
    assert outlet.take_losses() == {}


def test_a_batch_that_was_first_in_flight_at_two_deaths_is_skipped_and_counted() -> None:
    outlet = filled(10, 20)
    assert send(outlet) == [10, 20]
    outlet.peer_died()
    assert send(outlet) == [10, 20]
    outlet.peer_died()
    assert send(outlet) == [20]
    assert outlet.take_losses() == {CRASH: 5}
    assert outlet.take_losses() == {}


def test_two_deaths_at_different_batches_skip_none() -> None:
    outlet = filled(10, 20)
    send(outlet)
    outlet.peer_died()
    send(outlet)
    outlet.acknowledge(10)
    outlet.peer_died()
    assert send(outlet) == [20]
    assert outlet.take_losses() == {}


def test_a_death_with_nothing_in_flight_accuses_no_batch() -> None:
    outlet = filled(10)
    for _ in range(5):
        outlet.peer_died()
    assert send(outlet) == [10]


def test_above_the_bound_the_oldest_unsent_batch_goes_and_is_counted() -> None:
    outlet = filled(10, 20, limit_bytes=40)
    assert send(outlet) == [10, 20]
    push(outlet, 30, 40, 50)
    assert send(outlet) == [40, 50]
    assert outlet.take_losses() == {BACKLOG: 5}


def test_an_outlet_that_may_not_lose_says_that_it_is_full() -> None:
    outlet = filled(10, 20, limit_bytes=20, lossy=False)
    assert outlet.full
    for _ in range(3):
        send(outlet)
        outlet.peer_died()
    assert send(outlet) == [10, 20]
    assert outlet.take_losses() == {}
    outlet.acknowledge(10)
    assert not outlet.full


def test_the_old_peer_gets_what_came_before_the_line_and_the_new_one_the_rest() -> None:
    outlet = filled(10, 20)
    assert send(outlet, 1) == [10]
    outlet.draw_line()
    push(outlet, 30)
    assert send(outlet) == [20]
    outlet.acknowledge(10)
    assert not outlet.cross_line()
    assert send(outlet) == []
    outlet.acknowledge(20)
    assert outlet.cross_line()
    assert not outlet.cross_line()
    assert send(outlet) == [30]


def test_a_line_with_nothing_before_it_is_crossed_at_once() -> None:
    outlet = filled()
    outlet.draw_line()
    assert outlet.cross_line()


def test_the_new_peer_gets_what_an_old_one_that_died_left() -> None:
    outlet = filled(10, 20)
    send(outlet, 1)
    outlet.draw_line()
    push(outlet, 30)
    outlet.peer_died()
    assert not outlet.switching
    assert send(outlet) == [10, 20, 30]


def test_a_batch_dropped_before_the_line_is_not_waited_for() -> None:
    outlet = filled(10, 20, 30, limit_bytes=30)
    assert send(outlet, 1) == [10]
    outlet.draw_line()
    push(outlet, 40)  # 20 goes
    assert send(outlet) == [30]
    outlet.acknowledge(30)
    assert outlet.cross_line()
    assert send(outlet) == [40]
    assert outlet.take_losses() == {BACKLOG: 5}


def test_a_line_that_is_erased_leaves_everything_to_the_old_peer() -> None:
    outlet = filled(10)
    outlet.draw_line()
    push(outlet, 20)
    outlet.erase_line()
    assert send(outlet) == [10, 20]
