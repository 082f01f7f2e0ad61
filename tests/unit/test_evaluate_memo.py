"""What was looked at once is not scanned again, and a memo that is full or asked for the wrong thing knows nothing."""

from array import array

from tocsin.api.event.v1 import event_pb2
from tocsin.evaluate.memo import UNKNOWN, Memo
from tocsin.evaluate.projection import Projection
from tocsin.records import framing
from unit.releases import batch, exec_event  # type: ignore[import-not-found]

EXEC, EXIT = event_pb2.EVENT_TYPE_EXEC, event_pb2.EVENT_TYPE_EXIT
LARGE_BYTES = 1 << 20


def projection() -> Projection:
    return Projection(["Image"], (EXEC, EXIT), every_field=False)


def look(memo: Memo, *events: event_pb2.Event) -> tuple[bytes, list[int]]:
    """What there is to scan of the events, and what is known of them."""
    buffer, _, outcomes = projection().project(framing.index(batch(*events)), memo)
    return bytes(buffer), list(outcomes)


def learn(memo: Memo, event: event_pb2.Event, rules: tuple[int, ...]) -> None:
    index = framing.index(batch(event))
    buffer, ends, _ = projection().project(index, Memo())
    memo.remember(index.types, bytes(buffer), ends, array("I", [memo.number(rules)]))


def test_what_is_known_is_not_scanned_again_and_what_is_not_is() -> None:
    memo = Memo()
    learn(memo, exec_event(b"/bin/a"), (3, 4))
    learn(memo, exec_event(b"/bin/b"), ())
    text, outcomes = look(memo, exec_event(b"/bin/a"), exec_event(b"/bin/c"), exec_event(b"/bin/b"))
    assert [memo[outcomes[0]], outcomes[1], memo[outcomes[2]]] == [(3, 4), UNKNOWN, ()]
    assert text.count(b"/bin/") == text.count(b"/bin/c") == 1


def test_an_event_of_another_type_with_the_same_values_is_another() -> None:
    memo = Memo()
    learn(memo, exec_event(b"/bin/a"), (3,))
    other = exec_event(b"/bin/a")
    other.type = EXIT
    assert look(memo, other)[1] == [UNKNOWN]


def test_an_event_that_no_rule_looks_at_has_no_outcome() -> None:
    other = exec_event(b"/bin/a")
    other.type = event_pb2.EVENT_TYPE_FORK
    assert look(Memo(), other) == (b"", [0])


def test_an_outcome_that_was_not_found_is_the_empty_one() -> None:
    memo = Memo()
    index = framing.index(batch(exec_event(b"/bin/a")))
    buffer, ends, outcomes = projection().project(index, memo)
    memo.remember(index.types, bytes(buffer), ends, outcomes)
    assert list(outcomes) == [0]
    assert look(memo, exec_event(b"/bin/a")) == (b"", [0])


def test_the_same_rules_have_the_same_number() -> None:
    memo = Memo()
    assert [memo.number(rules) for rules in ((), (1,), (2,), (1,))] == [0, 1, 2, 1]


def test_a_full_memo_says_so_and_still_knows_what_it_kept() -> None:
    memo = Memo()
    kept = [exec_event(bytes((number,)) * LARGE_BYTES) for number in range(1, 8)]
    for event in kept:
        learn(memo, event, (1,))
        assert not memo.full
    beyond = exec_event(b"\xff" * LARGE_BYTES)
    learn(memo, beyond, (2,))
    assert memo.full
    assert [memo[look(memo, event)[1][0]] for event in kept] == [(1,)] * len(kept)
    assert look(memo, beyond)[1] == [UNKNOWN]


def test_more_pieces_than_places_cost_memory_of_some_and_mix_up_none() -> None:
    memo = Memo()
    for start in range(0, 100_000, 1000):
        events = [exec_event(b"%d" % number) for number in range(start, start + 1000)]
        index = framing.index(batch(*events))
        buffer, ends, outcomes = projection().project(index, memo)
        assert set(outcomes) == {UNKNOWN}
        found = array("I", [memo.number((number % 7,)) for number in range(start, start + 1000)])
        memo.remember(index.types, bytes(buffer), ends, found)
    seen = look(memo, *[exec_event(b"%d" % number) for number in range(100_000)])[1]
    known = [number for number in range(100_000) if seen[number] != UNKNOWN]
    assert 50_000 < len(known) < 100_000
    assert all(memo[seen[number]] == (number % 7,) for number in known)
