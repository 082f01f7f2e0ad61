"""A real evaluator process in its sandbox; the rest of the agent is simulated."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from simulators.agent_around_evaluator import SimulatedHost  # type: ignore[import-not-found]
from simulators.agent_around_process import make_batch, make_event  # type: ignore[import-not-found]
from simulators.rules import rule, write_rule  # type: ignore[import-not-found]
from tocsin.api.event.v1 import batch_pb2, event_pb2
from tocsin.content.check import build


@pytest.fixture
def host(tmp_path: Path) -> Iterator[SimulatedHost]:
    """An evaluator with a rule that every event of `batch` matches."""
    release = build(write_rule(tmp_path / "rules", rule("Image|endswith: /true")), "test")
    with SimulatedHost(bytes(release)) as running:
        yield running


def batch(start: int, end: int, first: int, count: int) -> batch_pb2.Batch:
    """So many events from number `first` on; an event is told by its number."""
    return make_batch(start, end, [make_event(number) for number in range(first, first + count)], first_index=first)  # type: ignore[no-any-return]


def numbers(found: batch_pb2.DetectionBatch) -> list[int]:
    """Of the events that were detected."""
    return [detection.event.cpu_sequence for detection in found.detections]


def test_what_a_later_sensor_sends_again_is_not_evaluated_again(host: SimulatedHost) -> None:
    sensor = host.attach_sensor()
    assert numbers(host.evaluate(sensor, batch(0, 10, 0, 2))) == [0, 1]
    assert numbers(host.evaluate(sensor, batch(10, 30, 2, 4))) == [2, 3, 4, 5]
    successor = host.attach_sensor()  # it was told of the first batch only, and cuts batches elsewhere
    assert numbers(host.evaluate(successor, batch(10, 20, 2, 2))) == []
    assert numbers(host.evaluate(successor, batch(20, 40, 4, 4))) == [6, 7]
    assert numbers(host.evaluate(successor, batch(40, 50, 8, 1))) == [8]


def test_a_batch_that_the_same_sensor_sends_again_is_not_evaluated_again(host: SimulatedHost) -> None:
    assert numbers(host.evaluate(host.attach_sensor(), batch(0, 10, 0, 2))) == [0, 1]
    assert numbers(host.evaluate(host.attach_sensor(), batch(0, 10, 0, 2))) == []


def test_a_source_that_begins_anew_is_evaluated_from_its_first_event_on(host: SimulatedHost) -> None:
    assert numbers(host.evaluate(host.attach_sensor(epoch=1), batch(0, 10, 0, 2))) == [0, 1]
    assert numbers(host.evaluate(host.attach_sensor(epoch=2), batch(0, 10, 0, 2))) == [0, 1]


def test_events_that_a_dead_sensor_took_with_it_are_told_as_lost(host: SimulatedHost) -> None:
    host.evaluate(host.attach_sensor(), batch(0, 10, 0, 2))
    found = host.evaluate(host.attach_sensor(), batch(20, 30, 5, 1))
    assert numbers(found) == [5]
    assert [(loss.reason, loss.count) for loss in found.losses] == [(event_pb2.LOSS_REASON_SENSOR_RESTART, 3)]
