"""Events as people and programs see them, and recordings on disk."""

import hashlib
import io
import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulators.agent_around_courier import make_event  # type: ignore[import-not-found]
from tocsin.api.event.v1 import batch_pb2, event_pb2
from tocsin.errors import SpoolError
from tocsin.records import recording, show

OFFSET_NS = 1_767_000_000 * 10**9


def connection() -> event_pb2.Event:
    """A connect that was refused."""
    event: event_pb2.Event = make_event(5, event_pb2.EVENT_TYPE_TCP_CONNECT)
    tcp = event.tcp_connect
    tcp.direction, tcp.outcome = event_pb2.DIRECTION_OUTBOUND, event_pb2.CONNECT_OUTCOME_FAILED
    tcp.source_ip, tcp.destination_ip = bytes([10, 0, 0, 1]), bytes(15) + b"\x01"
    tcp.source_port, tcp.destination_port = 40000, 443
    return event


# --- JSON


def test_an_event_is_protobuf_json_with_texts_for_bytes() -> None:
    event = make_event(3, euid=1000)
    event.process.argv = b"sh\0-c\0echo \xff\0"
    event.process.cap_effective = 1 << 40
    event.process.image_flags = event_pb2.IMAGE_FLAG_ARGV_TRUNCATED | event_pb2.IMAGE_FLAG_SEEDED
    event.flags = event_pb2.EVENT_FLAG_PARENT_IMAGE_MISSING
    shown = show.event_json(event, OFFSET_NS, {1000: "ann"})
    assert shown["type"] == "EVENT_TYPE_EXEC"
    assert shown["boottime_ns"] == "1000000003"
    assert shown["time"] == "2025-12-29T09:20:01.000000003Z"
    assert shown["flags"] == ["EVENT_FLAG_PARENT_IMAGE_MISSING"]
    process = shown["process"]
    assert process["argv"] == ["sh", "-c", "echo \\xff"]
    assert process["cap_effective"] == "0x10000000000"
    assert process["image_flags"] == ["IMAGE_FLAG_ARGV_TRUNCATED", "IMAGE_FLAG_SEEDED"]
    assert (process["euid"], process["uid"], process["user"]) == (1000, 0, "ann")
    assert "parent" not in shown
    json.dumps(shown)


def test_addresses_are_text() -> None:
    shown = show.event_json(connection(), 0, {})
    assert shown["tcp_connect"]["source_ip"] == "10.0.0.1"
    assert shown["tcp_connect"]["destination_ip"] == "::1"
    assert shown["tcp_connect"]["outcome"] == "CONNECT_OUTCOME_FAILED"


def test_an_address_of_a_wrong_size_is_shown_in_hexadecimal() -> None:
    assert show.address(b"\x01\x02") == "0102"


def test_a_detection_carries_its_event_rule_and_time() -> None:
    event = make_event(3, euid=1000)
    detection = batch_pb2.Detection(
        rule_id="r", rule_title="T", level=batch_pb2.LEVEL_HIGH, tags=["attack.t1059"], event=event
    )
    detection.realtime_offset_ns, detection.user_name, detection.release_digest = OFFSET_NS, "ann", b"\x01" * 32
    shown = show.detection_json(detection)
    assert (shown["rule_id"], shown["level"], shown["tags"]) == ("r", "LEVEL_HIGH", ["attack.t1059"])
    assert shown["release_digest"] == "01" * 32
    assert shown["event"]["time"].startswith("2025-12-29T09:20:01")
    assert shown["event"]["process"]["user"] == "ann"


@given(st.binary(max_size=200))
def test_every_event_that_can_be_parsed_can_be_shown(data: bytes) -> None:
    event = make_event(1)
    event.process.argv = event.process.exe = event.process.comm = data
    connect = connection()
    connect.tcp_connect.source_ip = data
    for one in (event, connect):
        json.dumps(show.event_json(one, OFFSET_NS, {}))
        line = show.event_line(one, OFFSET_NS, {}).plain
        assert all(character.isprintable() for character in line)


def test_an_executable_is_shown_with_digests_and_time() -> None:
    digest = hashlib.sha256(b"").digest()
    executable = batch_pb2.Executable(inode=7, path=b"/bin/caf\xe9", mtime_ns=10**9, sha256=digest, package="shop")
    shown = show.executable_json(executable)["executable"]
    assert shown["sha256"] == hashlib.sha256(b"").hexdigest()
    assert (shown["sha1"], shown["path"], shown["package"]) == ("", "/bin/caf\\xe9", "shop")
    assert shown["mtime"] == "1970-01-01T00:00:01.000000000Z"


def test_a_container_is_shown_with_its_labels() -> None:
    label = batch_pb2.Label(key="app", value="shop")
    shown = show.container_json(batch_pb2.Container(id="c", runtime="docker", cgroup_id=9, labels=[label]))
    assert shown == {
        "container": {"id": "c", "runtime": "docker", "cgroup_id": "9", "labels": [{"key": "app", "value": "shop"}]}
    }


def test_an_unknown_enum_value_is_shown_as_its_number() -> None:
    event = connection()
    event.tcp_connect.outcome = 99  # type: ignore[assignment]
    assert show.event_json(event, 0, {})["tcp_connect"]["outcome"] == 99
    assert "?" in show.event_line(event, 0, {}).plain


# --- lines


def test_what_a_terminal_would_obey_is_escaped() -> None:
    event = make_event(3)
    event.process.argv = b"x\0\x1b]0;owned\x07\0" + "\u202e\n".encode() + b"\0"
    line = show.event_line(event, OFFSET_NS, {}).plain
    assert r"\x1b]0;owned\x07" in line
    assert r"\u202e\n" in line


def test_a_line_tells_who_and_what() -> None:
    event = make_event(3, euid=1000)
    event.process.argv = b"true\0--version\0"
    line = show.event_line(event, OFFSET_NS, {1000: "ann"}).plain
    assert "exec" in line
    assert "1003 ann" in line
    assert line.endswith("/bin/true true --version")


def test_a_connection_tells_both_ends_and_the_outcome() -> None:
    assert show.event_line(connection(), 0, {}).plain.endswith("10.0.0.1:40000 → [::1]:443 failed")


def test_a_detection_tells_level_title_and_tags() -> None:
    detection = batch_pb2.Detection(
        rule_title="Bad \x1b", level=batch_pb2.LEVEL_HIGH, tags=["attack.t1"], event=make_event(3)
    )
    line = show.detection_line(detection).plain
    assert "HIGH" in line
    assert "Bad \\x1b [attack.t1]" in line


def test_a_loss_tells_how_many_and_why() -> None:
    event = make_event(1, event_pb2.EVENT_TYPE_LOSS)
    event.loss.reason, event.loss.count, event.loss.total = event_pb2.LOSS_REASON_RING_FULL, 3, 9
    assert show.event_line(event, 0, {}).plain.endswith("3 events lost: ring full (9 in all)")


# --- recordings


def recorded(*batches: bytes) -> bytes:
    """A recording."""
    file = io.BytesIO()
    recording.begin(file)
    for batch in batches:
        recording.append(file, batch)
    return file.getvalue()


def read(data: bytes) -> Iterator[bytes]:
    """The batches of a recording."""
    return recording.batches(io.BytesIO(data), "file.rec")


@given(st.lists(st.binary(max_size=50), max_size=8))
def test_what_was_recorded_is_read(batches: list[bytes]) -> None:
    assert list(read(recorded(*batches))) == batches


@given(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=5), st.data())
def test_a_recording_cut_short_gives_whole_batches_then_tells_where(batches: list[bytes], data: st.DataObject) -> None:
    whole = recorded(*batches)
    ends = [len(recorded(*batches[:count])) for count in range(len(batches) + 1)]
    cut = data.draw(st.integers(len(recording.MAGIC), len(whole) - 1))
    found: list[bytes] = []
    if cut in ends:
        assert list(read(whole[:cut])) == batches[: ends.index(cut)]
        return
    with pytest.raises(SpoolError, match=r"file\.rec: cut short at byte"):
        found.extend(read(whole[:cut]))
    assert found == batches[: len(found)]


def test_another_file_is_no_recording() -> None:
    with pytest.raises(SpoolError, match="no recording"):
        list(read(b"\x7fELF and more"))


def test_a_size_that_cannot_be_is_refused_before_memory_is_taken() -> None:
    with pytest.raises(SpoolError, match=r"damaged at byte 11: a batch of 4294967295 bytes"):
        list(read(recording.MAGIC + b"\xff\xff\xff\xff"))
