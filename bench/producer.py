"""Load for the pipeline: records of real events, captured before, written into the agent's ring by an eBPF program."""

import ctypes
import mmap
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

from bench import build, libbpf
from bench.agent import AgentUnderTest
from bench.figures import LeftOutError
from bench.subscriber import COUNTS

from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.api.event.v1 import event_pb2
from tocsin.cli.agent import connected
from tocsin.records import framing
from tocsin.stream import wire

MARK: Final = bytes.fromhex("be9cbe9c70c519aa")
"""Stands in cpu_sequence of every written record, so that a subscriber can tell them from the host's own."""
_SEQUENCE: Final = slice(10, 18)
"""Where cpu_sequence's value stands in a record: behind boottime_ns (9 bytes) and its own tag."""
_SEQUENCE_TAG: Final = 0x11
SELF_TEST_RULE: Final = "7c51c000-0000-4000-8000-000000000001"
SELF_TEST_ACT: Final = "tocsin-self-test-act"
RECORD_MAX_BYTES: Final = 4096
TEMPLATES: Final = 1000
"""One of them is the act that the self-test rule detects: as many detections as rounds through the templates."""
WINDOW_EVENTS: Final = 10_000
"""On their way at a time: less than the ring, the channels and the subscriber's backlog hold."""
EVENTS_A_RUN: Final = 500
STALLED_S: Final = 10.0
ORDINARY: Final = Path(__file__).with_name("ordinary.sh")


class Order(ctypes.Structure):
    """struct order of producer.bpf.c."""

    _fields_ = (
        ("first", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("templates", ctypes.c_uint32),
        ("written", ctypes.c_uint32),
    )


def capture(agent: AgentUnderTest) -> list[bytes]:
    """Records of real events of this host: ordinary commands, connections, and the self-test act once."""
    load = subprocess.Popen([ORDINARY, build.workloads()], stdin=subprocess.DEVNULL, start_new_session=True)
    records: list[bytes] = []
    try:
        with connected(agent.socket) as running:
            for serialised in running.subscribe(control.SubscribeRequest(events=True), 30.0):
                number, part = wire.part(serialised)
                if number == control.SubscribeResponse.BATCH_FIELD_NUMBER:
                    records += usable(part)
                if len(records) >= TEMPLATES * 2:
                    break
    finally:
        os.killpg(load.pid, 9)
        load.wait()
    return templates(records)


def usable(batch: bytes) -> list[bytes]:
    """The records of a batch that the producer can write."""
    index = framing.index(batch)
    records = [index.event(at) for at, kind in enumerate(index.types) if kind not in (0, event_pb2.EVENT_TYPE_LOSS)]
    return [each for each in records if len(each) <= RECORD_MAX_BYTES and each[_SEQUENCE.start - 1] == _SEQUENCE_TAG]


def templates(records: Sequence[bytes]) -> list[bytes]:
    """TEMPLATES marked records, the first of them the self-test act, and no other."""
    marked = [each[: _SEQUENCE.start] + MARK + each[_SEQUENCE.stop :] for each in records]
    acts, ordinary = [], []
    for record in marked:
        event = event_pb2.Event.FromString(record)
        is_act = SELF_TEST_ACT.encode() in event.process.argv or SELF_TEST_ACT.encode() in event.parent.argv
        if not is_act:
            ordinary.append(record)
        elif event.type == event_pb2.EVENT_TYPE_EXEC and event.process.exe.endswith(b"/true"):
            acts.append(record)
    if not acts or len(ordinary) < TEMPLATES - 1:
        raise LeftOutError(f"captured {len(ordinary)} ordinary events and {len(acts)} self-test acts: too few")
    return [acts[0], *ordinary[: TEMPLATES - 1]]


class Counts:
    """What the subscriber saw so far, in memory that it writes."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("counts")
        os.ftruncate(self.fd, COUNTS.size)
        self._memory = mmap.mmap(self.fd, COUNTS.size)

    def read(self) -> tuple[int, int, int, int]:
        """Events, detections, messages, lost."""
        events, detections, messages, lost = COUNTS.unpack_from(self._memory)
        return events, detections, messages, lost


@contextmanager
def subscriber(agent: AgentUnderTest) -> Iterator[Counts]:
    """A subscriber in its own process, subscribed."""
    counts = Counts()
    command = [sys.executable, str(Path(__file__).with_name("subscriber.py")), str(agent.socket), str(counts.fd)]
    process = subprocess.Popen([*command, MARK.hex(), SELF_TEST_RULE], pass_fds=[counts.fd])
    try:
        deadline = time.monotonic() + STALLED_S
        while counts.read()[2] == 0:
            if time.monotonic() > deadline or process.poll() is not None:
                raise LeftOutError("the subscriber could not subscribe")
            time.sleep(0.05)
        yield counts
    finally:
        process.kill()
        process.wait()


class Producer:
    """Writes templates into a ring, in turn. A context."""

    def __init__(self, ring_id: int, records: Sequence[bytes]) -> None:
        self._count = len(records)
        self._next = 0
        ring_fd = libbpf.map_fd(ring_id)
        try:
            self._object = libbpf.Object(build.producer(), ring_fd)
        finally:
            os.close(ring_fd)
        for number, record in enumerate(records):
            padded = record.ljust(RECORD_MAX_BYTES, b"\0")
            self._object.update(b"templates", number, struct.pack("<I", len(record)) + padded)
        self._program = self._object.program_fd(b"produce")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._object.__exit__(None, None, None)

    def write(self, count: int) -> int:
        """Writes so many records; how many the ring took."""
        order = Order(first=self._next, count=count, templates=self._count)
        self._object.run(self._program, order)
        self._next = (self._next + order.written) % self._count
        return int(order.written)


def pump(producer: Producer, counts: Counts, total: int) -> tuple[int, int]:
    """Writes `total` events at the pace at which they are dealt with; written, and refused by a full ring.

    Raises LeftOutError when nothing moves any more.
    """
    before_events, before_detections = counts.read()[:2]
    written = refused = 0
    progress = (time.monotonic(), (0, 0))
    while True:
        seen = counts.read()
        dealt = (seen[0] - before_events, seen[1] - before_detections)
        behind = max(written - dealt[0], written - dealt[1] * TEMPLATES)
        if dealt != progress[1]:
            progress = (time.monotonic(), dealt)
        elif time.monotonic() - progress[0] > STALLED_S:
            raise LeftOutError(f"nothing moves: {written} written, {dealt[0]} received, {dealt[1]} detections")
        if written >= total and dealt[0] >= written and dealt[1] * TEMPLATES >= written:
            return written, refused
        if written >= total or behind > WINDOW_EVENTS:
            time.sleep(0.001)
            continue
        took = producer.write(min(EVENTS_A_RUN, total - written))
        written += took
        refused += EVENTS_A_RUN - took
