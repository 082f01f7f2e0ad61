"""DNS in a network of the test's own, with a server that answers whatever the test says."""

import ctypes
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernel import oracle  # type: ignore[import-not-found]
from kernel.acting import fork_and  # type: ignore[import-not-found]
from kernel.network import LIBC, cookie, needs_cgroup_hooks, own_network  # type: ignore[import-not-found]
from kernel.sensing import BODY, Sensor  # type: ignore[import-not-found]
from tocsin.api.event.v1 import event_pb2
from tocsin.config import FilterConfig, SensorConfig

QUERY, ANSWER = event_pb2.EVENT_TYPE_DNS_QUERY, event_pb2.EVENT_TYPE_DNS_ANSWER
PORT = 53
MESSAGE_BYTES = 1232
HEAD = struct.Struct(">HHHHHH")
A, CNAME, TXT, AAAA = 1, 5, 16, 28
IN, CHAOS = 1, 3
ASKS, ANSWERS, NO_SUCH_NAME = 0x0100, 0x8180, 3
LOOPBACK = socket.inet_aton("127.0.0.1")
LOOPBACK6 = socket.inet_pton(socket.AF_INET6, "::1")
FOUR, SIX = socket.inet_aton("192.0.2.7"), socket.inet_pton(socket.AF_INET6, "2001:db8::7")
POINTER = b"\xc0\x0c"
"""To the name of the first question."""


def labels(name: bytes) -> bytes:
    return b"".join(bytes((len(label),)) + label for label in name.split(b".")) + b"\0"


def question(name: bytes, kind: int = A, number: int = 7, flags: int = ASKS) -> bytes:
    return HEAD.pack(number, flags, 1, 0, 0, 0) + labels(name) + struct.pack(">HH", kind, IN)


def record(kind: int, data: bytes, name: bytes = POINTER, class_: int = IN) -> bytes:
    return name + struct.pack(">HHIH", kind, class_, 60, len(data)) + data


def answer(asked: bytes, *records: bytes, flags: int = ANSWERS) -> bytes:
    number = struct.unpack(">H", asked[:2])[0]
    return HEAD.pack(number, flags, 1, len(records), 0, 0) + asked[HEAD.size :] + b"".join(records)


@pytest.fixture(scope="module", autouse=True)
def _network() -> Iterator[None]:
    needs_cgroup_hooks()
    with own_network():
        yield


@contextmanager
def server(address: str = "127.0.0.1", kind: socket.SocketKind = socket.SOCK_DGRAM) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, kind) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((address, PORT))
        if kind == socket.SOCK_STREAM:
            bound.listen(8)
        bound.settimeout(5)
        yield bound


def exchange(client: socket.socket, served: socket.socket, asked: bytes, answered: bytes) -> None:
    """One question and its answer over UDP."""
    client.settimeout(5)
    client.sendto(asked, served.getsockname())
    received, back = served.recvfrom(65536)
    assert received == asked
    served.sendto(answered, back)
    assert client.recv(65536) == answered


def facts(event: event_pb2.Event) -> dict[str, int | bytes]:
    """Every field of the body that is not 0 or empty."""
    body: event_pb2.Dns = getattr(event, BODY[event.type])
    return {field.name: value for field, value in body.ListFields()}


def expected(client: socket.socket, raw: bytes, **more: int | bytes) -> dict[str, int | bytes]:
    """What both events say of a message between this client and the server."""
    v6 = client.family == socket.AF_INET6
    number, flags, _, answers, _, _ = HEAD.unpack_from(raw)
    found: dict[str, int | bytes] = {
        "protocol": socket.IPPROTO_UDP if client.type == socket.SOCK_DGRAM else socket.IPPROTO_TCP,
        "id": number,
        "flags": flags,
        "response_code": flags & 0xF,
        "answers": answers,
        "client_port": client.getsockname()[1],
        "server_port": PORT,
        "message_bytes": len(raw),
        "socket_cookie": cookie(client),
        "client_ip": LOOPBACK6 if v6 else LOOPBACK,
        "server_ip": LOOPBACK6 if v6 else LOOPBACK,
    }
    return {name: value for name, value in (found | more).items() if value}


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_question_and_its_answer_are_told_with_who_asked(sensor: Sensor, address: str) -> None:
    asked = question(b"Www.Example.org")
    answered = answer(asked, record(CNAME, labels(b"example.org")), record(A, FOUR), record(AAAA, SIX))
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with server(address) as served, socket.socket(family, socket.SOCK_DGRAM) as client:
        exchange(client, served, asked, answered)
        asks, answers = sensor.one(os.getpid(), QUERY), sensor.one(os.getpid(), ANSWER)
        common: dict[str, int | bytes] = {"name": b"Www.Example.org", "question_type": A, "question_class": IN}
        assert facts(asks) == expected(client, asked, **common)
        addresses = b"\x04" + FOUR + b"\x10" + SIX
        assert facts(answers) == expected(client, answered, **common, addresses=addresses, message=answered)
    me = oracle.task(os.getpid()) | oracle.image(os.getpid()) | {"tid": threading.get_native_id()}
    for event in (asks, answers):
        oracle.check(event.process, me)
        assert event.parent.pid == os.getppid()
        assert event.flags == 0


def test_an_answer_belongs_to_the_process_that_asked_not_to_the_server(sensor: Sensor) -> None:
    asked = question(b"child.example", TXT)
    answered = answer(asked, record(TXT, b"\x05hello"), flags=ANSWERS | NO_SUCH_NAME)

    def ask() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(asked, ("127.0.0.1", PORT))
            client.settimeout(5)
            assert client.recv(9999) == answered

    with server() as served:
        child = fork_and(ask)
        received, back = served.recvfrom(9999)
        assert received == asked
        served.sendto(answered, back)
        assert os.waitpid(child, 0)[1] == 0
    for kind in (QUERY, ANSWER):
        event = sensor.one(child, kind)
        assert facts(event)["name"] == b"child.example"
        assert facts(event)["question_type"] == TXT
        assert event.parent.pid == os.getpid()
    told = facts(sensor.one(child, ANSWER))
    assert (told["response_code"], told["answers"], told["message"]) == (NO_SUCH_NAME, 1, answered)
    assert "addresses" not in told
    assert not sensor.of(os.getpid(), QUERY)
    assert not sensor.of(os.getpid(), ANSWER)


class Message(ctypes.Structure):
    """struct mmsghdr with one part."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_bytes", ctypes.c_uint32),
        ("parts", ctypes.c_void_p),
        ("part_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_bytes", ctypes.c_size_t),
        ("flags", ctypes.c_uint64),  # 32 bits, and what fills them up
        ("sent", ctypes.c_uint64),
    )


def test_questions_sent_together_are_all_told(sensor: Sensor) -> None:
    asked = [question(b"one.example", A, 1), question(b"two.example", AAAA, 2)]
    buffers = [ctypes.create_string_buffer(raw, len(raw)) for raw in asked]
    parts = [(ctypes.c_size_t * 2)(ctypes.addressof(buffer), len(buffer)) for buffer in buffers]
    messages = (Message * 2)(*(Message(parts=ctypes.addressof(part), part_count=1) for part in parts))
    with server() as served, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(served.getsockname())
        assert LIBC.sendmmsg(client.fileno(), messages, 2, 0) == 2
        assert [served.recv(9999) for _ in asked] == asked
        sensor.one(os.getpid(), QUERY, count=2)
        told = [facts(event) for event in sensor.of(os.getpid(), QUERY)]
        assert told == [
            expected(client, asked[0], name=b"one.example", question_type=A, question_class=IN),
            expected(client, asked[1], name=b"two.example", question_type=AAAA, question_class=IN),
        ]


@contextmanager
def over_tcp() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection to the server."""
    with server(kind=socket.SOCK_STREAM) as listener, socket.socket() as client:
        client.settimeout(5)
        client.connect(listener.getsockname())
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        served, _ = listener.accept()
        with served:
            served.settimeout(5)
            yield client, served


def framed(message: bytes) -> bytes:
    return struct.pack(">H", len(message)) + message


def test_a_question_and_its_answer_over_tcp_are_told(sensor: Sensor) -> None:
    asked = question(b"tcp.example")
    answered = answer(asked, record(A, FOUR))
    with over_tcp() as (client, served):
        client.sendall(framed(asked))
        assert served.recv(9999) == framed(asked)
        served.sendall(framed(answered))
        assert client.recv(9999) == framed(answered)
        common: dict[str, int | bytes] = {"name": b"tcp.example", "question_type": A, "question_class": IN}
        assert facts(sensor.one(os.getpid(), QUERY)) == expected(client, asked, **common)
        told = facts(sensor.one(os.getpid(), ANSWER))
        assert told == expected(client, answered, **common, addresses=b"\x04" + FOUR, message=answered)


def test_dns_over_tcp_is_told_when_nothing_else_is_wanted() -> None:
    sensor = Sensor(SensorConfig(filters=FilterConfig(events=("dns",))))
    asked = question(b"only.example")
    answered = answer(asked, record(A, FOUR))
    try:
        with over_tcp() as (client, served):
            client.sendall(framed(asked))
            served.recv(9999)
            served.sendall(framed(answered))
            client.recv(9999)
        assert facts(sensor.one(os.getpid(), QUERY))["name"] == b"only.example"
        assert facts(sensor.one(os.getpid(), ANSWER))["message"] == answered
        assert {event.type for event in sensor.events} == {QUERY, ANSWER}
    finally:
        sensor.close()


def test_a_message_over_tcp_in_parts_is_told_with_its_first(sensor: Sensor) -> None:
    asked = question(b"parts.example")
    with over_tcp() as (client, served):
        client.sendall(framed(asked)[:20])
        assert len(served.recv(9999)) == 20
        client.sendall(framed(asked)[20:])
        assert served.recv(9999) == framed(asked)[20:]
        sensor.settle()
        told = facts(sensor.one(os.getpid(), QUERY))
        assert told == expected(client, asked, name=b"parts")


def test_a_message_over_tcp_whose_length_comes_alone_is_not_told(sensor: Sensor) -> None:
    asked = question(b"alone.example")
    with over_tcp() as (client, served):
        for part in (framed(asked)[:2], framed(asked)[2:]):
            client.sendall(part)
            assert served.recv(9999) == part
        sensor.settle()
        assert not sensor.of(os.getpid(), QUERY)


def test_a_long_answer_is_cut_and_says_how_long_it_was(sensor: Sensor) -> None:
    asked = question(b"long.example")
    answered = answer(asked, *(record(TXT, b"\xff" + b"t" * 255) for _ in range(9)), record(A, FOUR))
    with server() as served, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        exchange(client, served, asked, answered)
    told = facts(sensor.one(os.getpid(), ANSWER))
    assert told["message_bytes"] == len(answered) > MESSAGE_BYTES
    assert told["message"] == answered[:MESSAGE_BYTES]
    assert told["answers"] == 10
    assert "addresses" not in told


def test_no_more_than_sixteen_records_are_looked_at(sensor: Sensor) -> None:
    asked = question(b"many.example", AAAA)
    answered = answer(asked, *(record(AAAA, bytes(15) + bytes((n,))) for n in range(20)))
    with server() as served, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        exchange(client, served, asked, answered)
    told = facts(sensor.one(os.getpid(), ANSWER))
    assert told["addresses"] == b"".join(b"\x10" + bytes(15) + bytes((n,)) for n in range(16))
    assert told["answers"] == 20


def test_answers_to_a_socket_that_never_asked_are_not_told(sensor: Sensor) -> None:
    with server() as served, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind(("127.0.0.1", 0))
        served.sendto(answer(question(b"unasked.example")), client.getsockname())
        client.recv(9999)
        sensor.settle()
        assert not sensor.of(os.getpid(), ANSWER)


def test_other_ports_are_no_dns(sensor: Sensor) -> None:
    asked = question(b"other.example")
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as served,
    ):
        served.bind(("127.0.0.1", 5353))
        exchange(client, served, asked, answer(asked))
    sensor.settle()
    assert not sensor.of(os.getpid(), QUERY)
    assert not sensor.of(os.getpid(), ANSWER)


# ---- hostile messages ---------------------------------------------------------------------------


def read_name(raw: bytes) -> tuple[bytes, int]:
    """Text of the first question's name, and where it ends; 0: it does not."""
    at, found = HEAD.size, b""
    while at < len(raw):
        size = raw[at]
        at += 1
        if not size:
            return found, at
        if size & 0xC0 or at + size > len(raw) or len(found) + size + 1 > 253:
            break
        found += (b"." if found else b"") + raw[at : at + size]
        at += size
    return found, 0


def skip_name(raw: bytes, at: int) -> int:
    """Where a record's name ends; 0: it does not."""
    for _ in range(128):
        if at >= len(raw):
            return 0
        if not raw[at]:
            return at + 1
        if raw[at] & 0xC0:
            return at + 2
        at += 1 + raw[at]
    return 0


def read_addresses(raw: bytes, at: int, count: int) -> bytes:
    found = b""
    for _ in range(min(count, 16)):
        at = skip_name(raw, at)
        if not at or at + 10 > len(raw):
            break
        kind, class_, _, size = struct.unpack_from(">HHIH", raw, at)
        at += 10
        if at + size > len(raw):
            break
        if class_ == IN and (kind, size) in ((A, 4), (AAAA, 16)):
            found += bytes((size,)) + raw[at : at + size]
        at += size
    return found


def plain(client: socket.socket, raw: bytes, *, is_answer: bool) -> dict[str, int | bytes]:
    """What the event of a message has to say, by a reader that is as plain as can be."""
    seen = raw[:MESSAGE_BYTES]
    questions, answers = HEAD.unpack_from(raw)[2:4]
    more: dict[str, int | bytes] = {"message_bytes": len(raw)}
    if is_answer:
        more["message"] = seen
    if questions:
        more["name"], end = read_name(seen)
        if end and end + 4 <= len(seen):
            more["question_type"], more["question_class"] = struct.unpack_from(">HH", seen, end)
            if is_answer and questions == 1:
                more["addresses"] = read_addresses(seen, end + 4, answers)
    return expected(client, raw, **more)


RAW_NAMES = st.one_of(
    st.just(POINTER),
    st.just(b"\xc0\x20\xc0\x0c"),
    st.just(b"\0"),
    st.binary(max_size=80),
    st.lists(st.binary(min_size=1, max_size=63), max_size=6).map(
        lambda parts: b"".join(bytes((len(part),)) + part for part in parts) + b"\0"
    ),
    st.integers(100, 130).map(lambda count: b"\x01a" * count + b"\0"),
)
RECORDS = st.builds(
    lambda name, kind, class_, size, data: name + struct.pack(">HHIH", kind, class_, 1, size) + data,
    RAW_NAMES,
    st.sampled_from((A, AAAA, CNAME, TXT)),
    st.sampled_from((IN, IN, CHAOS)),
    st.sampled_from((0, 4, 4, 16, 16, 300, 65535)),
    st.sampled_from((b"", FOUR, SIX, bytes(300))),
)
HONEST = st.builds(
    lambda name, kind, records: answer(question(b"x", kind)[:12] + name + struct.pack(">HH", kind, IN), *records),
    RAW_NAMES,
    st.sampled_from((A, AAAA)),
    st.lists(st.one_of(st.just(record(A, FOUR)), st.just(record(AAAA, SIX)), RECORDS), max_size=20),
)
HOSTILE = st.one_of(
    st.binary(max_size=64),
    HONEST,
    st.builds(lambda raw, cut: raw[:cut], HONEST, st.integers(0, 400)),
    st.builds(
        lambda counts, rest: HEAD.pack(1, 0, *counts) + rest,
        st.tuples(*[st.sampled_from((0, 1, 2, 65535))] * 4),
        st.binary(max_size=2000),
    ),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=st.lists(HOSTILE, min_size=1, max_size=12))
def test_hostile_messages_are_told_as_a_plain_reader_reads_them(sensor: Sensor, messages: list[bytes]) -> None:
    sensor.events.clear()
    with server() as served, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind(("127.0.0.1", 0))
        for raw in messages:
            exchange(client, served, raw, raw)
        sensor.settle()
        whole = [raw for raw in messages if len(raw) >= HEAD.size]
        for kind in (QUERY, ANSWER):
            told = [facts(event) for event in sensor.of(os.getpid(), kind)]
            assert told == [plain(client, raw, is_answer=kind == ANSWER) for raw in whole]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(segments=st.lists(st.one_of(HOSTILE, HONEST.map(framed)), min_size=1, max_size=8))
def test_hostile_segments_break_nothing(sensor: Sensor, segments: list[bytes]) -> None:
    sensor.events.clear()
    with over_tcp() as (client, served):
        for raw in filter(None, segments):
            for end, other in ((client, served), (served, client)):
                end.sendall(raw)
                received = b""
                while len(received) < len(raw):
                    received += other.recv(9999)
        sensor.settle()
        for kind in (QUERY, ANSWER):
            assert len(sensor.of(os.getpid(), kind)) <= len(segments)
            assert all(facts(event)["socket_cookie"] == cookie(client) for event in sensor.of(os.getpid(), kind))
