"""Sightings: what the kernel writes is read, and nothing else is."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tocsin.enrich.hashes import FileKey, Request
from tocsin.enrich.sightings import RECORD, TAG, Sighting, read_sighting, records
from tocsin.errors import WireError
from tocsin.records.framing import event_field

PATH = b"/usr/bin/env"
WRITTEN = RECORD.pack(TAG, len(PATH), 77, 1 << 40, 4711, 48536, 1_700_000_000_123_456_789, 254 << 20 | 1) + PATH


def test_every_field_stands_where_the_layout_says() -> None:
    assert RECORD.size == 48
    assert WRITTEN[0:1] == b"\x09"
    assert int.from_bytes(WRITTEN[4:8], "little") == 77
    assert int.from_bytes(WRITTEN[8:16], "little") == 1 << 40
    assert int.from_bytes(WRITTEN[40:44], "little") == 254 << 20 | 1
    key = FileKey(254 << 20 | 1, 4711, 48536, 1_700_000_000_123_456_789)
    assert read_sighting(WRITTEN) == Sighting(77, 1 << 40, Request(key, 77, PATH))


def test_the_ring_pads_records() -> None:
    assert read_sighting(WRITTEN + b"\0\0\0\0") == read_sighting(WRITTEN)


def test_without_an_inode_only_the_group_is_new() -> None:
    assert read_sighting(RECORD.pack(TAG, 0, 77, 5, 0, 0, 0, 0)) == Sighting(77, 5, None)


@pytest.mark.parametrize("record", [b"", WRITTEN[:47], WRITTEN[:-1], b"\x08" + WRITTEN[1:]])
def test_what_is_no_sighting_is_refused(record: bytes) -> None:
    with pytest.raises(WireError):
        read_sighting(record)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=300)))
def test_records_come_back_as_they_were_framed(written: list[bytes]) -> None:
    assert list(records(b"".join(map(event_field, written)))) == written


@pytest.mark.parametrize("body", [b"\x0a", b"\x0a\x80", b"\x0b\x00", b"\x0a\x02a", b"\x0a" + b"\xff" * 9])
def test_frames_that_are_cut_are_refused(body: bytes) -> None:
    with pytest.raises(WireError):
        list(records(body))
