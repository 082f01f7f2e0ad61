"""The index of a batch: equal to what protobuf reads, and a WireError on everything else."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from tocsin.api.event.v1 import batch_pb2, event_pb2
from tocsin.errors import WireError
from tocsin.records import framing


def a_batch() -> bytes:
    exec_event = event_pb2.Event(type=event_pb2.EVENT_TYPE_EXEC, process=event_pb2.Process(pid=7, exe=b"/bin/true"))
    exit_event = event_pb2.Event(type=event_pb2.EVENT_TYPE_EXIT, boottime_ns=5)
    header = batch_pb2.BatchHeader(host_id="h", event_count=2)
    return batch_pb2.Batch(events=[exec_event, exit_event, event_pb2.Event()], header=header).SerializeToString()


def test_finds_each_event_its_type_and_the_header() -> None:
    found = framing.index(a_batch())
    batch = batch_pb2.Batch.FromString(a_batch())
    assert [found.event(i) for i in range(len(found))] == [e.SerializeToString() for e in batch.events]
    assert list(found.types) == [1, 3, 0]
    assert found.header == batch.header.SerializeToString()


def test_an_empty_batch_has_no_events_and_no_header() -> None:
    found = framing.index(b"")
    assert (len(found), found.header) == (0, b"")


def test_many_tiny_events_are_all_found() -> None:
    assert len(framing.index(framing.event_field(b"") * 10_000)) == 10_000


def test_parts_made_by_hand_are_a_batch() -> None:
    event = event_pb2.Event(type=event_pb2.EVENT_TYPE_FORK, process=event_pb2.Process(argv=b"x" * 300))
    header = batch_pb2.BatchHeader(boot_id="b")
    raw = framing.event_field(event.SerializeToString()) + framing.header_field(header.SerializeToString())
    assert batch_pb2.Batch.FromString(raw) == batch_pb2.Batch(events=[event], header=header)


def test_every_truncation_is_refused_or_is_a_shorter_batch() -> None:
    whole = a_batch()
    for size in range(len(whole)):
        try:
            found = framing.index(whole[:size])
        except WireError:
            continue
        assert len(found) == len(batch_pb2.Batch.FromString(whole[:size]).events)


def test_two_headers_are_refused() -> None:
    with pytest.raises(WireError, match="two headers"):
        framing.index(framing.header_field(b"\x0a\x01h") * 2)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x0a",
        b"\x0a\x05abc",
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x00\x01",
        b"\x0b\x0c",
        b"\x80" * 11,
        b"\x0a\x02\x28\x80",
        b"\x0a\x01\x07",
    ],
)
def test_malformed_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(WireError, match="not a serialised Batch"):
        framing.index(raw)


@given(st.binary(max_size=200))
def test_garbage_never_reads_what_protobuf_does_not(raw: bytes) -> None:
    try:
        found = framing.index(raw)
    except WireError:
        return
    try:
        batch = batch_pb2.Batch.FromString(raw)
    except DecodeError:
        return  # a nested message that protobuf refuses; framing does not look inside
    assert len(batch.events) == len(found)


@given(st.integers(0, 300), st.integers(0, 255))
def test_a_flipped_byte_never_crashes(position: int, value: int) -> None:
    raw = bytearray(a_batch())
    raw[position % len(raw)] = value
    try:
        found = framing.index(bytes(raw))
    except WireError:
        return
    assert all(start + size <= len(raw) for start, size in zip(found.offsets, found.lengths, strict=True))
