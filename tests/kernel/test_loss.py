"""Loss: what did not fit is counted, exactly; with the ring as it is shipped nothing is lost."""

import os
import threading

from kernel.sensing import (  # type: ignore[import-not-found]
    EXEC,
    EXIT,
    FORK,
    Sensor,
)
from tocsin.api.event.v1 import event_pb2
from tocsin.config import SensorConfig
from tocsin.kernel.core import open_core
from tocsin.kernel.source import SourceCounters


def run_true() -> int:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(pid, 0)
    return pid


def run_on_each_cpu(count: int = 1) -> None:
    """Events on every CPU, so that what was lost before stands between two numbers."""
    allowed = os.sched_getaffinity(0)
    try:
        for cpu in allowed:
            os.sched_setaffinity(0, {cpu})
            for _ in range(count):
                run_true()
    finally:
        os.sched_setaffinity(0, allowed)


def by_type(counters: SourceCounters) -> dict[int, tuple[int, dict[int, int]]]:
    return {
        int(t.event_type): (int(t.generated), {int(lost.reason): int(lost.count) for lost in t.lost})
        for t in counters.types
    }


def received(sensor: Sensor, kind: int) -> int:
    return sum(1 for event in sensor.events if event.type == kind)


def gaps(sensor: Sensor) -> int:
    """Numbers that are missing, over all CPUs."""
    missing, last = 0, dict[int, int]()
    for event in sensor.events:
        missing += event.cpu_sequence - last.get(event.cpu, 0) - 1
        last[event.cpu] = event.cpu_sequence
    return missing


def test_a_ring_that_nobody_reads_loses_and_counts_each_event_by_type_and_reason() -> None:
    sensor = Sensor(SensorConfig(ring_bytes=4096))
    try:
        run_on_each_cpu(60)  # nobody drains
        sensor.drain()
        assert sensor.events, "what did fit is there"
        allowed = os.sched_getaffinity(0)
        try:
            for cpu in allowed:  # a mark on each CPU; the ring is small, so each is drained
                os.sched_setaffinity(0, {cpu})
                run_true()
                sensor.drain()
        finally:
            os.sched_setaffinity(0, allowed)
        counters = by_type(sensor.counted())
        for kind, (generated, lost) in counters.items():
            lost.pop(event_pb2.LOSS_REASON_SKIPPED, None)  # nobody set out to write it
            assert generated == received(sensor, kind) + sum(lost.values()), (kind, generated, lost)
            assert set(lost) <= {event_pb2.LOSS_REASON_RING_FULL, event_pb2.LOSS_REASON_THROTTLED}, lost
        total = sum(sum(lost.values()) for _, lost in counters.values())
        for kind in (EXEC, FORK, EXIT):
            assert sum(counters[kind][1].values()) > 0, kind
        assert gaps(sensor) == total
    finally:
        sensor.close()


def test_the_shipped_ring_loses_nothing_of_2000_processes_and_counts_exactly() -> None:
    sensor = Sensor()
    try:
        pids: set[int] = set()
        halves = [threading.Thread(target=lambda: pids.update(run_true() for _ in range(1000))) for _ in range(2)]
        for half in halves:
            half.start()
        for half in halves:
            while half.is_alive():
                sensor.drain()
                half.join(0.02)
        counters = by_type(sensor.counted())
        for kind, (generated, lost) in counters.items():
            assert (generated, lost) == (received(sensor, kind), {}), kind
        for kind in (EXEC, EXIT):
            assert sum(1 for e in sensor.events if e.type == kind and e.process.pid in pids) == 2000
        assert sum(1 for e in sensor.events if e.type == FORK and e.fork.child_pid in pids) == 2000
        assert gaps(sensor) == 0
        assert not [e for e in sensor.events if e.process.pid in pids and e.flags]
    finally:
        sensor.close()


def test_the_programs_whose_skips_count_are_the_attached_ones_and_found_again_by_the_next_sensor() -> None:
    source = open_core(SensorConfig(), [])
    try:
        kept = [os.dup(fd) for fd in source.handover()]
        watched = source.skipped.programs
        assert {"on_exec", "on_fork", "on_exit", "on_syscall", "on_tcp_state"} <= watched
        assert not {name for name in watched if name.startswith(("act_", "seed_"))}
        following = open_core(SensorConfig(), kept)
        assert following.skipped.programs == watched
        following.close()
    finally:
        source.close()
