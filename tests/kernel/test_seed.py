"""What was there before the sensor, and what happens between two sensors."""

import os
import socket
import struct

from kernel import oracle  # type: ignore[import-not-found]
from kernel.acting import Acts, Held  # type: ignore[import-not-found]
from kernel.sensing import CLOSE, EXEC, EXIT, Sensor, connection  # type: ignore[import-not-found]
from tocsin.api.event.v1 import event_pb2
from tocsin.config import SensorConfig
from tocsin.kernel.core import open_core

SEEDED = event_pb2.IMAGE_FLAG_SEEDED


def run_true() -> int:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(pid, 0)
    return pid


def cookie(sock: socket.socket) -> int:
    return int(struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, 57, 8))[0])


def test_a_process_older_than_the_sensor_is_known_in_its_later_events(acts: Acts) -> None:
    with Held([str(acts.path("hold")), "before"], cwd="/usr") as held:
        sensor = Sensor()
        expected = oracle.task(held.pid) | oracle.image(held.pid) | {"exec_boottime_ns": 0, "image_flags": SEEDED}
        assert sensor.seeded > 1
    event = sensor.one(held.pid, EXIT)
    sensor.close()
    oracle.check(event.process, expected)
    assert event.flags == 0
    assert event.parent.exe == os.readlink(b"/proc/self/exe")


def test_without_seeding_the_missing_image_is_flagged(acts: Acts) -> None:
    with Held([str(acts.path("hold"))]) as held:
        sensor = Sensor(seed=False)
    event = sensor.one(held.pid, EXIT)
    sensor.close()
    assert event.process.exe == b""
    assert event.flags & event_pb2.EVENT_FLAG_PROCESS_IMAGE_MISSING
    assert event.flags & event_pb2.EVENT_FLAG_PARENT_IMAGE_MISSING


def test_a_connection_older_than_the_sensor_closes_with_its_owner() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        served, _ = listener.accept()
        numbers = cookie(client), cookie(served)
        ends = client.getsockname()[1], listener.getsockname()[1]
        client.sendall(b"before")
        assert served.recv(6) == b"before"
        sensor = Sensor()
        served.sendall(b"after!!")
        assert client.recv(7) == b"after!!"
        client.close()
        served.close()
    for number, direction in zip(numbers, (event_pb2.DIRECTION_OUTBOUND, event_pb2.DIRECTION_INBOUND), strict=True):
        event = sensor.one_tcp(CLOSE, number)
        body = connection(event)
        assert event.process.pid == os.getpid()
        assert event.process.exe == os.readlink(b"/proc/self/exe")
        assert body.direction == direction
        assert (body.source_port, body.destination_port) == ends
        assert (body.sent_bytes, body.received_bytes) == ((6, 7) if number == numbers[0] else (7, 6))
    sensor.close()


def test_a_second_sensor_goes_on_where_the_first_one_committed() -> None:
    first = Sensor()
    seen = run_true()
    first.one(seen, EXIT)
    first.settle()
    kept = [os.dup(fd) for fd in first.source.handover()]
    drained = sum(part.count for part in first.drains)
    position = first.drains[-1].end
    first.close()
    meanwhile = [run_true() for _ in range(20)]
    second = Sensor(SensorConfig(), kept, seed=False)
    try:
        for pid in meanwhile:
            assert second.one(pid, EXEC).parent.pid == os.getpid()
            second.one(pid, EXIT)
        assert second.drains[0].start == position
        assert second.drains[0].first_index == drained
        for one, other in zip(second.drains, second.drains[1:], strict=False):
            assert (other.start, other.first_index) == (one.end, one.first_index + one.count)
        assert not second.of(seen, EXIT), "it was committed"
        last = {event.cpu: event.cpu_sequence for event in first.events}
        for event in second.events:
            assert event.cpu_sequence == last.get(event.cpu, 0) + 1
            last[event.cpu] = event.cpu_sequence
    finally:
        second.close()


def test_what_was_not_committed_is_drained_again_by_the_second_sensor() -> None:
    source = open_core(SensorConfig(), [])
    pid = run_true()
    lost = source.drain(1 << 20)
    assert lost.count
    kept = [os.dup(fd) for fd in source.handover()]
    source.close()
    second = Sensor(SensorConfig(), kept, seed=False)
    second.one(pid, EXIT)
    assert (second.drains[0].start, second.drains[0].first_index) == (lost.start, lost.first_index)
    second.close()


def test_reading_processes_again_heals_what_is_missing(acts: Acts) -> None:
    with Held([str(acts.path("hold")), "missed"]) as held:
        sensor = Sensor(seed=False)
        assert sensor.source.seed() > 1
        expected = oracle.image(held.pid)
    event = sensor.one(held.pid, EXIT)
    sensor.close()
    oracle.check(event.process, expected)
    assert event.flags == 0
