"""Sockets: one listens, is bound, is raw, is connected to a watched Unix socket; connects that fail at once."""

import ctypes
import errno
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kernel import oracle  # type: ignore[import-not-found]
from kernel.acting import Acts, fork_and  # type: ignore[import-not-found]
from kernel.network import LIBC, cookie  # type: ignore[import-not-found]
from kernel.sensing import ACCEPT, BODY, CLOSE, CONNECT, Sensor  # type: ignore[import-not-found]
from tocsin.api.event.v1 import event_pb2
from tocsin.config import FilterConfig, SensorConfig

NOBODY = 65534
LISTEN, BIND = event_pb2.EVENT_TYPE_SOCKET_LISTEN, event_pb2.EVENT_TYPE_SOCKET_BIND
RAW, UNIX = event_pb2.EVENT_TYPE_RAW_SOCKET, event_pb2.EVENT_TYPE_UNIX_CONNECT
LOOPBACK = socket.inet_aton("127.0.0.1")
ETH_P_ARP = 0x0806


def facts(event: event_pb2.Event) -> dict[str, int | bytes]:
    """Every field of the body that is not 0 or empty."""
    body: event_pb2.Socket = getattr(event, BODY[event.type])
    return {field.name: value for field, value in body.ListFields()}


def without_cookie(event: event_pb2.Event) -> dict[str, int | bytes]:
    """The same of an internet socket for which nobody has asked for a cookie: before Linux 5.12 it has one."""
    found = facts(event)
    assert bool(found.pop("socket_cookie", 0)) == (oracle.release() < (5, 12))
    return found


def is_mine(event: event_pb2.Event) -> None:
    """The event is of this process and thread, and tells it whole."""
    me = oracle.task(os.getpid()) | oracle.image(os.getpid()) | {"tid": threading.get_native_id()}
    oracle.check(event.process, me)
    assert event.parent.pid == os.getppid()
    assert event.flags == 0


def tcp(**more: int | bytes) -> dict[str, int | bytes]:
    return {"family": socket.AF_INET, "socket_type": socket.SOCK_STREAM, "protocol": socket.IPPROTO_TCP} | more


@contextmanager
def unix_listener(path: "str | bytes", kind: socket.SocketKind = socket.SOCK_STREAM) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, kind) as listener:
        listener.bind(path)
        if kind != socket.SOCK_DGRAM:
            listener.listen(8)
        yield listener


@pytest.mark.parametrize(
    ("family", "address", "told"),
    [
        pytest.param(socket.AF_INET, "127.0.0.1", LOOPBACK, id="ipv4"),
        pytest.param(socket.AF_INET, "0.0.0.0", bytes(4), id="ipv4-any"),
        pytest.param(socket.AF_INET6, "::1", socket.inet_pton(socket.AF_INET6, "::1"), id="ipv6"),
        pytest.param(socket.AF_INET6, "::", bytes(16), id="ipv6-any"),
        pytest.param(socket.AF_INET6, "::ffff:127.0.0.1", LOOPBACK, id="v4-mapped"),
    ],
)
def test_bind_and_listen_tell_the_address_and_the_port_that_the_kernel_chose(
    sensor: Sensor, family: socket.AddressFamily, address: str, told: bytes
) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        number = cookie(listener)
        listener.bind((address, 0))
        listener.listen(77)
        port = listener.getsockname()[1]
    expected = tcp(family=family, port=port, socket_cookie=number, address=told)
    bound, listens = sensor.one(os.getpid(), BIND), sensor.one(os.getpid(), LISTEN)
    assert facts(bound) == expected
    assert facts(listens) == expected | {"backlog": 77}
    is_mine(bound)
    is_mine(listens)


def test_a_socket_that_listens_unbound_is_told_without_a_port(sensor: Sensor) -> None:
    with socket.socket() as listener:
        listener.listen(3)
        number = cookie(listener)
    assert facts(sensor.one(os.getpid(), LISTEN)) == tcp(backlog=3, socket_cookie=number, address=bytes(4))


def test_a_second_listen_only_changes_the_backlog_and_is_not_told(sensor: Sensor) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        listener.listen(2)
    sensor.settle()
    assert facts(sensor.one(os.getpid(), LISTEN))["backlog"] == 1


def test_a_listen_through_io_uring_is_told(sensor: Sensor, acts: Acts) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        number, port = cookie(listener), listener.getsockname()[1]
        done = subprocess.Popen(
            [str(acts.path("uring_listen")), str(listener.fileno()), "9"], pass_fds=[listener.fileno()]
        )
        status = done.wait(10)
        if status == 77:
            pytest.skip("LISTEN THROUGH IO_URING IS NOT TESTED: this kernel has no such operation (Linux 6.11)")
        assert status == 0
        event = sensor.one(done.pid, LISTEN)
    assert facts(event) == tcp(backlog=9, port=port, socket_cookie=number, address=LOOPBACK)
    assert event.parent.pid == os.getpid()


def test_a_datagram_socket_is_told_when_it_is_bound(sensor: Sensor) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as bound:
        bound.bind(("::1", 0))
        port = bound.getsockname()[1]
    assert without_cookie(sensor.one(os.getpid(), BIND)) == {
        "family": socket.AF_INET6,
        "socket_type": socket.SOCK_DGRAM,
        "protocol": socket.IPPROTO_UDP,
        "port": port,
        "address": socket.inet_pton(socket.AF_INET6, "::1"),
    }


def test_a_bind_to_a_port_in_use_is_told_with_its_errno(sensor: Sensor) -> None:
    with socket.socket() as holder, socket.socket() as second:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        with pytest.raises(OSError, match="Address already in use"):
            second.bind(("127.0.0.1", port))
    event = sensor.one(os.getpid(), BIND, count=2)
    assert without_cookie(event) == tcp(error=errno.EADDRINUSE, port=port, address=LOOPBACK)


def test_a_bind_to_a_reserved_port_by_a_user_is_told_with_its_errno(sensor: Sensor) -> None:
    def bind() -> None:
        os.setuid(NOBODY)
        with socket.socket(socket.AF_INET6) as refused, pytest.raises(PermissionError):
            refused.bind(("::1", 81))

    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 81:
        pytest.skip("BIND WITH EACCES IS NOT TESTED: every user may bind to every port here")
    child = fork_and(bind)
    assert os.waitpid(child, 0)[1] == 0
    event = sensor.one(child, BIND)
    address = socket.inet_pton(socket.AF_INET6, "::1")
    assert without_cookie(event) == tcp(family=socket.AF_INET6, error=errno.EACCES, port=81, address=address)
    assert (event.process.uid, event.parent.pid) == (NOBODY, os.getpid())


def test_a_bind_that_makes_no_sense_is_not_told(sensor: Sensor) -> None:
    with socket.socket() as wrong:
        address = struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton("192.0.2.77"))
        assert LIBC.bind(wrong.fileno(), address, len(address)) == -1
        assert ctypes.get_errno() == errno.EADDRNOTAVAIL
        assert LIBC.bind(wrong.fileno(), address, 3) == -1
    sensor.settle()
    assert not sensor.of(os.getpid(), BIND)


def test_a_netlink_bind_is_not_told(sensor: Sensor) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        netlink.bind((0, 0))
    sensor.settle()
    assert not sensor.of(os.getpid(), BIND)
    assert not sensor.of(os.getpid(), RAW)


UNIX_PATHS = [
    pytest.param(b"plain.sock", b"plain.sock", id="path"),
    pytest.param(b"d" * 50 + b"\xff" * 58, b"d" * 50 + b"\xff" * 58, id="longest-path"),
    pytest.param(b"\0abstract", b"@abstract", id="abstract"),
    pytest.param(b"\0with\0nul\0", b"@with\0nul\0", id="abstract-with-nul"),
    pytest.param(b"\0" + b"a" * 107, b"@" + b"a" * 107, id="longest-abstract"),
]


@pytest.mark.parametrize(("name", "told"), UNIX_PATHS)
def test_a_unix_bind_tells_its_path(
    sensor: Sensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes, told: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        raw = struct.pack("=H", socket.AF_UNIX) + name
        assert LIBC.bind(bound.fileno(), raw, len(raw)) == 0
    event = sensor.one(os.getpid(), BIND)
    assert facts(event) == {"family": socket.AF_UNIX, "socket_type": socket.SOCK_DGRAM, "path": told}


def test_a_unix_bind_to_a_path_in_use_is_told_with_its_errno(sensor: Sensor, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path / "taken.sock")
    with unix_listener(path), socket.socket(socket.AF_UNIX) as second:
        assert second.fileno() > 0
        with pytest.raises(OSError, match="Address already in use"):
            second.bind(path)
    event = sensor.one(os.getpid(), BIND, count=2)
    assert facts(event) == {
        "error": errno.EADDRINUSE,
        "family": socket.AF_UNIX,
        "socket_type": socket.SOCK_STREAM,
        "path": path,
    }


def test_a_unix_socket_that_the_kernel_names_is_told_with_that_name(sensor: Sensor) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as named:
        named.bind("")
        name = named.getsockname()
    assert facts(sensor.one(os.getpid(), BIND))["path"] == b"@" + name[1:]


def test_a_packet_socket_is_told_when_it_is_made_and_bound(sensor: Sensor) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as packet:
        packet.bind(("lo", ETH_P_ARP))
    expected = {"family": socket.AF_PACKET, "socket_type": socket.SOCK_RAW}
    made = sensor.one(os.getpid(), RAW)
    assert facts(made) == expected
    is_mine(made)
    assert facts(sensor.one(os.getpid(), BIND)) == expected | {"protocol": ETH_P_ARP}


@pytest.mark.parametrize(
    ("family", "kind", "protocol", "told"),
    [
        (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP, socket.IPPROTO_ICMP),
        (socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_RAW, socket.IPPROTO_RAW),
        (socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, socket.htons(ETH_P_ARP), ETH_P_ARP),
    ],
)
def test_raw_and_packet_sockets_are_told(
    sensor: Sensor, family: socket.AddressFamily, kind: int, protocol: int, told: int
) -> None:
    socket.socket(family, kind, protocol).close()
    event = sensor.one(os.getpid(), RAW)
    found = facts(event) if family == socket.AF_PACKET else without_cookie(event)
    assert found == {"family": family, "socket_type": kind & 0xF, "protocol": told}
    is_mine(event)


def test_raw_sockets_that_a_user_may_not_have_are_told_with_their_errno(sensor: Sensor) -> None:
    def ask() -> None:
        os.setuid(NOBODY)
        for family in (socket.AF_INET, socket.AF_PACKET):
            with pytest.raises(PermissionError):
                socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_ICMP)

    child = fork_and(ask)
    assert os.waitpid(child, 0)[1] == 0
    sensor.one(child, RAW, count=2)
    expected = {"error": errno.EPERM, "socket_type": socket.SOCK_RAW}
    assert [facts(event) for event in sensor.of(child, RAW)] == [
        expected | {"family": socket.AF_INET, "protocol": socket.IPPROTO_ICMP},
        expected | {"family": socket.AF_PACKET, "protocol": socket.htons(socket.IPPROTO_ICMP)},
    ]


def test_other_sockets_are_not_raw(sensor: Sensor) -> None:
    for family, kind in (
        (socket.AF_INET, socket.SOCK_STREAM),
        (socket.AF_INET6, socket.SOCK_DGRAM),
        (socket.AF_UNIX, socket.SOCK_SEQPACKET),
    ):
        socket.socket(family, kind).close()
    sensor.settle()
    assert not sensor.of(os.getpid(), RAW)


@pytest.mark.parametrize("name", ["docker.sock", "run/containerd.sock"])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_a_connection_to_a_watched_unix_socket_tells_who_listens(
    sensor: Sensor, tmp_path: Path, name: str, kind: socket.SocketKind
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    other = tmp_path / "by-another-name"
    other.symlink_to(path)
    with unix_listener(str(path), kind):

        def connect() -> None:
            with socket.socket(socket.AF_UNIX, kind) as client:
                client.connect(str(other))

        child = fork_and(connect)
        assert os.waitpid(child, 0)[1] == 0
    event = sensor.one(child, UNIX)
    assert facts(event) == {
        "family": socket.AF_UNIX,
        "socket_type": kind,
        "peer_pid": os.getpid(),
        "path": os.fsencode(path),
    }
    assert event.parent.pid == os.getpid()


def test_a_datagram_connection_to_a_watched_unix_socket_is_told_without_its_owner(
    sensor: Sensor, tmp_path: Path
) -> None:
    path = tmp_path / "crio.sock"
    with (
        unix_listener(str(path), socket.SOCK_DGRAM),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client,
    ):
        number = cookie(client)
        client.connect(str(path))
    event = sensor.one(os.getpid(), UNIX)
    assert facts(event) == {
        "family": socket.AF_UNIX,
        "socket_type": socket.SOCK_DGRAM,
        "socket_cookie": number,
        "path": os.fsencode(path),
    }
    is_mine(event)


def test_connections_to_a_watched_unix_socket_that_fail_are_told_with_their_errno(
    sensor: Sensor, tmp_path: Path
) -> None:
    path = tmp_path / "podman.sock"
    with unix_listener(str(path)):
        pass
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
        client.connect(str(path))
    expected = {"family": socket.AF_UNIX, "socket_type": socket.SOCK_STREAM, "path": os.fsencode(path)}
    assert facts(sensor.one(os.getpid(), UNIX)) == expected | {"error": errno.ECONNREFUSED}
    path.chmod(0o600)

    def connect() -> None:
        os.setuid(NOBODY)
        with socket.socket(socket.AF_UNIX) as refused, pytest.raises(PermissionError):
            refused.connect(str(path))

    child = fork_and(connect)
    assert os.waitpid(child, 0)[1] == 0
    assert facts(sensor.one(child, UNIX)) == expected | {"error": errno.EACCES}


@pytest.mark.parametrize("name", ["docker.sock2", "xdocker.sock", "docker.sock/x", "d" * 60])
def test_connections_to_other_unix_sockets_are_not_told(
    sensor: Sensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(exist_ok=True)
    with unix_listener(name), socket.socket(socket.AF_UNIX) as client:
        client.connect(name)
    sensor.settle()
    assert not sensor.of(os.getpid(), UNIX)


def test_the_watched_unix_sockets_are_those_of_the_settings(tmp_path: Path) -> None:
    sensor = Sensor(SensorConfig(filters=FilterConfig(watch_sockets=("own.sock",))))
    try:
        for name in ("docker.sock", "own.sock"):
            path = str(tmp_path / name)
            with unix_listener(path), socket.socket(socket.AF_UNIX) as client:
                client.connect(path)
        assert facts(sensor.one(os.getpid(), UNIX))["path"] == os.fsencode(tmp_path / "own.sock")
    finally:
        sensor.close()


def failed(event: event_pb2.Event) -> dict[str, int | bytes]:
    assert event.WhichOneof("body") == "tcp_connect"
    return {field.name: value for field, value in event.tcp_connect.ListFields()}


def test_a_connect_that_fails_at_once_is_told_with_errno_and_address(sensor: Sensor) -> None:
    with socket.socket() as client:
        number = cookie(client)
        client.bind(("127.0.0.1", 0))
        port = client.getsockname()[1]
        assert client.connect_ex(("255.255.255.255", 99)) == errno.ENETUNREACH
    event = sensor.one(os.getpid(), CONNECT)
    assert failed(event) == {
        "direction": event_pb2.DIRECTION_OUTBOUND,
        "outcome": event_pb2.CONNECT_OUTCOME_FAILED,
        "protocol": socket.IPPROTO_TCP,
        "error": errno.ENETUNREACH,
        "source_port": port,
        "destination_port": 99,
        "socket_cookie": number,
        "source_ip": LOOPBACK,
        "destination_ip": b"\xff\xff\xff\xff",
    }
    is_mine(event)
    sensor.settle()
    assert not sensor.of(os.getpid(), CLOSE)


def test_an_ipv6_connect_that_fails_at_once_is_told(sensor: Sensor) -> None:
    with socket.socket(socket.AF_INET6) as client:
        error = client.connect_ex(("ff02::1", 99))
        assert error in (errno.ENETUNREACH, errno.EINVAL)
    body = failed(sensor.one(os.getpid(), CONNECT))
    assert (body["error"], body["outcome"]) == (error, event_pb2.CONNECT_OUTCOME_FAILED)
    assert (body["source_ip"], body["destination_ip"]) == (bytes(16), socket.inet_pton(socket.AF_INET6, "ff02::1"))


def test_a_connect_without_a_free_port_is_told_once_as_failed(sensor: Sensor) -> None:
    """The kernel takes the socket's state back and leaves no error in it."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(4)
        for client in (first, second):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        first.bind(("127.0.0.1", 0))
        second.bind(first.getsockname())
        first.connect(listener.getsockname())
        assert second.connect_ex(listener.getsockname()) == errno.EADDRNOTAVAIL
        port, number = listener.getsockname()[1], cookie(second)
    sensor.settle()
    told = [failed(e) for e in sensor.of(os.getpid(), CONNECT) if e.tcp_connect.socket_cookie == number]
    assert [(body["outcome"], body["error"], body["destination_port"]) for body in told] == [
        (event_pb2.CONNECT_OUTCOME_FAILED, errno.EADDRNOTAVAIL, port)
    ]


def test_a_refused_connect_is_told_once_though_asked_for_twice(sensor: Sensor) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with socket.socket() as client:
        client.setblocking(False)
        assert client.connect_ex(("127.0.0.1", port)) in (errno.EINPROGRESS, errno.ECONNREFUSED)
        client.connect_ex(("127.0.0.1", port))
        number = cookie(client)
    sensor.settle()
    outcomes = [e.tcp_connect.error for e in sensor.of(os.getpid(), CONNECT) if e.tcp_connect.socket_cookie == number]
    assert set(outcomes) == {errno.ECONNREFUSED}
    assert len(outcomes) <= 2  # the second call may begin anew


def test_a_connect_to_no_address_is_not_told(sensor: Sensor) -> None:
    with socket.socket() as client:
        assert LIBC.connect(client.fileno(), ctypes.c_void_p(8), 16) == -1
        assert LIBC.connect(client.fileno(), struct.pack("=H14x", socket.AF_UNIX), 16) == -1
    sensor.settle()
    assert not sensor.of(os.getpid(), CONNECT)


@pytest.mark.parametrize("route", ["direct", "socketcall"])
def test_the_socket_calls_of_a_32_bit_process_are_told(sensor: Sensor, acts: Acts, tmp_path: Path, route: str) -> None:
    path = tmp_path / "docker.sock"
    with unix_listener(str(path)):
        narrow = subprocess.Popen([str(acts.path("narrow")), route, str(path)])
        status = narrow.wait(10)
        if status < 0:
            pytest.skip("32-BIT PROCESSES ARE NOT TESTED: this kernel runs none (int 0x80 ends the process)")
        assert status == 0, f"narrow.c:{status}"
    raw = sensor.one(narrow.pid, RAW)
    assert without_cookie(raw) == {
        "family": socket.AF_INET,
        "socket_type": socket.SOCK_RAW,
        "protocol": socket.IPPROTO_ICMP,
    }
    listens = facts(sensor.one(narrow.pid, LISTEN))
    number, port = listens.pop("socket_cookie"), listens["port"]
    assert number
    assert listens == tcp(backlog=5, port=port, address=LOOPBACK)
    assert without_cookie(sensor.one(narrow.pid, BIND)) == tcp(port=port, address=LOOPBACK)
    accepted = sensor.one(narrow.pid, ACCEPT).tcp_accept
    assert (accepted.destination_port, accepted.destination_ip) == (port, LOOPBACK)
    sensor.one(narrow.pid, CONNECT, count=2)
    connected, refused = (event.tcp_connect for event in sensor.of(narrow.pid, CONNECT))
    assert (connected.destination_port, connected.outcome) == (port, event_pb2.CONNECT_OUTCOME_ESTABLISHED)
    assert (refused.destination_port, refused.error) == (9, errno.ENETUNREACH)
    assert refused.destination_ip == b"\xff\xff\xff\xff"
    unix = sensor.one(narrow.pid, UNIX)
    assert facts(unix) == {
        "family": socket.AF_UNIX,
        "socket_type": socket.SOCK_STREAM,
        "peer_pid": os.getpid(),
        "path": os.fsencode(path),
    }
    assert {event.parent.pid for event in (raw, unix)} == {os.getpid()}
