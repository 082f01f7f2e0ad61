"""What project.c writes for a value is what the semantics say, for each presentation and for every table of fields."""

import errno
import posixpath
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tocsin.api.event.v1 import event_pb2
from tocsin.evaluate import marker, semantics
from tocsin.evaluate.memo import Memo
from tocsin.evaluate.projection import Projection
from tocsin.records import framing
from tocsin.records.field import ERROR_NAMES, Field, Presentation, Wire
from unit.releases import batch  # type: ignore[import-not-found]

EXEC = event_pb2.EVENT_TYPE_EXEC
EXE, EUID = (6, 16), (6, 6)
FOUR, SIXTEEN = socket.inet_aton("255.255.255.255"), socket.inet_pton(socket.AF_INET6, "2001:db8::1")


def projected(raw_batch: bytes, *fields: Field) -> list[bytes]:
    """What stands in the scan buffer for each event, where rules name all of `fields`."""
    table: dict[int, dict[str, Field]] = {}
    for field in fields:
        table.setdefault(field.event_type, {})[field.name] = field
    names = sorted({field.name for field in fields})
    projection = Projection(names, tuple(table), every_field=False, table=table)
    buffer, ends, _ = projection.project(framing.index(raw_batch), Memo())
    return [bytes(buffer[start:end]) for start, end in zip((0, *ends), ends, strict=False)]


def marked(number: int, value: bytes | None) -> bytes:
    return b"" if value is None else marker.start(number) + value + marker.end(number)


def shown_bytes(presentation: Presentation, value: bytes) -> bytes:
    event = event_pb2.Event(type=EXEC, process=event_pb2.Process(exe=value))
    return projected(batch(event), Field("Shown", EXE, EXEC, Wire.BYTES, presentation))[0]


def shown_number(presentation: Presentation, value: int) -> bytes:
    event = event_pb2.Event(type=EXEC, process=event_pb2.Process(euid=value))
    return projected(batch(event), Field("Shown", EUID, EXEC, Wire.FIXED32, presentation))[0]


parts = st.sampled_from((b"", b".", b"..", b"...", b"a", b"bc", b".d", b"e.", b"\0", b"\xff"))
paths = st.lists(parts, max_size=8).map(b"/".join) | st.lists(parts, max_size=8).map(lambda p: b"/" + b"/".join(p))
addresses = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)
lists = st.lists(addresses, max_size=5).map(lambda several: b"".join(bytes((len(one),)) + one for one in several))
damaged_lists = st.tuples(lists, st.integers(0, 60), st.binary(max_size=3)).map(lambda t: t[0][: t[1]] + t[2])


@given(paths)
def test_a_path_is_shown_as_the_semantics_say_and_never_grows(value: bytes) -> None:
    expected = semantics.present(Presentation.PATH, value, {})
    assert shown_bytes(Presentation.PATH, value) == marked(1, expected)
    assert len(expected or b"") <= len(value)


@given(paths.filter(lambda value: value.startswith(b"/")))
def test_an_absolute_path_is_shown_as_posix_normalises_it(value: bytes) -> None:
    """But for two slashes in front, which POSIX leaves to the system: on Linux they are one."""
    assert semantics.path(value) == posixpath.normpath(b"/" + value.lstrip(b"/"))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"/etc/passwd", b"/etc/passwd"),
        (b"/etc//passwd", b"/etc/passwd"),
        (b"/etc/./passwd", b"/etc/passwd"),
        (b"/tmp/../etc/passwd", b"/etc/passwd"),
        (b"/etc/", b"/etc"),
        (b"/etc/..", b"/"),
        (b"/../..", b"/"),
        (b"/", b"/"),
        (b"/home/.ssh", b"/home/.ssh"),
        (b"../etc//passwd", b"../etc//passwd"),
    ],
)
def test_a_path_that_is_written_to_evade_is_seen_through(value: bytes, shown: bytes) -> None:
    assert shown_bytes(Presentation.PATH, value) == marked(1, shown)


@given(lists | damaged_lists)
def test_a_list_of_addresses_is_shown_as_the_semantics_say(value: bytes) -> None:
    expected = semantics.present(Presentation.IPS, value, {})
    assert shown_bytes(Presentation.IPS, value) == marked(1, expected)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"\x04\n\0\0\1", b"10.0.0.1"),
        (b"\x04\n\0\0\1\x10" + SIXTEEN, b"10.0.0.1;2001:db8::1"),
        (b"\x04\n\0\0", None),
        (b"\x04\n\0\0\1\x04", None),
        (b"\x05\n\0\0\1\2", None),
        (b"\0", None),
        (b"", None),
    ],
)
def test_addresses_are_joined_and_a_malformed_list_is_absent(value: bytes, shown: bytes | None) -> None:
    assert semantics.present(Presentation.IPS, value, {}) == shown
    assert shown_bytes(Presentation.IPS, value) == marked(1, shown)


def test_lists_of_addresses_that_outgrow_their_bytes_get_room() -> None:
    value = (b"\x04" + FOUR) * 3000
    event = event_pb2.Event(type=EXEC, process=event_pb2.Process(exe=value))
    field = Field("Shown", EXE, EXEC, Wire.BYTES, Presentation.IPS)
    text = marked(1, semantics.addresses(value))
    assert projected(batch(*[event] * 20), field) == [text] * 20


@given(st.sampled_from(Presentation), st.integers(0, 200) | st.integers(0, 2**32 - 1))
def test_a_number_is_shown_as_the_semantics_say(presentation: Presentation, value: int) -> None:
    assert shown_number(presentation, value) == marked(1, semantics.present(presentation, value, {}))


@pytest.mark.parametrize(
    ("presentation", "value", "shown"),
    [
        (Presentation.ERRNO, 0, b"success"),
        (Presentation.ERRNO, 13, b"EACCES"),
        (Presentation.ERRNO, 11, b"EAGAIN"),
        (Presentation.ERRNO, 133, b"EHWPOISON"),
        (Presentation.ERRNO, 41, b"41"),
        (Presentation.ERRNO, 512, b"512"),
        (Presentation.SIGNAL, 9, b"9"),
        (Presentation.ENUM, 2, b"2"),
    ],
)
def test_a_number_is_shown_as_rules_write_it(presentation: Presentation, value: int, shown: bytes) -> None:
    assert shown_number(presentation, value) == marked(1, shown)


def test_the_names_of_errors_are_those_of_this_system() -> None:
    assert {number: getattr(errno, ERROR_NAMES[number]) for number in errno.errorcode} == {
        n: n for n in errno.errorcode
    }


@settings(max_examples=50)
@given(st.binary(max_size=20), st.binary(max_size=20))
def test_a_leaf_with_two_names_has_its_value_under_both(first: bytes, second: bytes) -> None:
    """Sigma names a field after the category that looks at the event; what comes last on the wire counts for each."""
    fields = [
        Field("FileName", EXE, EXEC, Wire.BYTES, Presentation.PLAIN),
        Field("TargetFilename", EXE, EXEC, Wire.BYTES, Presentation.PATH),
    ]
    merged = b"".join(
        event_pb2.Event(type=EXEC, process=event_pb2.Process(exe=value)).SerializeToString()
        for value in (first, second)
    )
    last = event_pb2.Event.FromString(merged).process.exe
    (text,) = projected(framing.event_field(merged), *fields)
    assert text == marked(1, last or None) + marked(2, semantics.present(Presentation.PATH, last, {}))


def test_the_highest_field_numbers_are_seen() -> None:
    leaf = b"\xfd\x03\x01\0\0\0"  # field 63, fixed32 1
    raw = b"\x28\x01" + b"\xfa\x03" + bytes((len(leaf),)) + leaf
    field = Field("Shown", (63, 63), EXEC, Wire.FIXED32, Presentation.PLAIN)
    assert projected(framing.event_field(raw), field) == [marked(1, b"1")]


def test_every_event_type_may_have_a_plan() -> None:
    types = range(1, 256)
    raw = b"".join(
        framing.event_field(
            b"\x28" + framing.varint(t) + b"\x32" + framing.varint(5) + b"\x35" + t.to_bytes(4, "little")
        )
        for t in types
    )
    fields = [Field("Shown", EUID, t, Wire.FIXED32, Presentation.PLAIN) for t in types]
    assert projected(raw, *fields) == [marked(1, b"%d" % t) for t in types]


def test_a_body_beyond_number_31_replaces_one_before_and_is_replaced() -> None:
    query = event_pb2.Event(type=EXEC, dns_query=event_pb2.Dns(name=b"a"))
    answer = event_pb2.Event(type=EXEC, dns_answer=event_pb2.Dns(name=b"b"))
    fields = [
        Field("Query", (54, 14), EXEC, Wire.BYTES, Presentation.PLAIN),
        Field("Answer", (55, 14), EXEC, Wire.BYTES, Presentation.PLAIN),
    ]
    for events, text in (((query, answer), marked(1, b"b")), ((answer, query), marked(2, b"a"))):
        merged = b"".join(event.SerializeToString() for event in events)
        assert projected(framing.event_field(merged), *fields) == [text]


@pytest.mark.parametrize("path", [(64, 1), (1, 64), (200, 200)])
def test_a_table_with_numbers_that_are_too_high_is_refused(path: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"more than project\.c can hold"):
        projected(b"", Field("Shown", path, EXEC, Wire.FIXED32, Presentation.PLAIN))


def test_a_table_with_too_many_rows_of_a_type_is_refused() -> None:
    fields = [Field(f"f{n}", (6, n % 64), EXEC, Wire.FIXED32, Presentation.PLAIN) for n in range(129)]
    with pytest.raises(ValueError, match=r"129 rows"):
        projected(b"", *fields)
