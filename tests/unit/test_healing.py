"""When running processes are read again."""

import pytest

from tocsin.kernel.source import SourceCounters
from tocsin.processes.healing import MAX_S, MIN_S, Healer


class Source:
    """Counts how often it is seeded; teaches `learns` processes each time."""

    def __init__(self) -> None:
        self.missing = 0
        self.learns = 1
        self.seeds = 0

    def counters(self) -> SourceCounters:
        return SourceCounters((), images_missing=self.missing)

    def seed(self) -> int:
        self.seeds += 1
        return self.learns


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("tocsin.processes.healing.time.monotonic", lambda: now[0])
    return now


def test_what_is_not_missed_is_not_read_again(clock: list[float]) -> None:
    source = Source()
    healer = Healer(source)  # type: ignore[arg-type]
    clock[0] += 10 * MAX_S
    healer.look(source.counters())
    assert (source.seeds, healer.heals) == (0, 0)


def test_a_missing_image_heals_once_and_not_at_once(clock: list[float]) -> None:
    source = Source()
    healer = Healer(source)  # type: ignore[arg-type]
    source.missing = 1
    healer.look(source.counters())
    assert source.seeds == 0
    clock[0] += MIN_S
    healer.look(source.counters())
    clock[0] += MIN_S
    healer.look(source.counters())
    assert (source.seeds, healer.heals) == (1, 1)


def test_it_is_done_more_seldom_while_it_teaches_nothing(clock: list[float]) -> None:
    source = Source()
    source.learns = 0
    healer = Healer(source)  # type: ignore[arg-type]
    for _ in range(600):
        clock[0] += MIN_S
        source.missing += 1
        healer.look(source.counters())
    assert 600 * MIN_S / MAX_S <= source.seeds < 600 * MIN_S / MAX_S + 8
