"""Acts through io_uring: the same events as those of system calls, whatever a process does to hide them."""

import errno
import os
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from kernel import oracle, uring  # type: ignore[import-not-found]
from kernel.acting import fork_and  # type: ignore[import-not-found]
from kernel.calling import ended  # type: ignore[import-not-found]
from kernel.network import cookie  # type: ignore[import-not-found]
from kernel.sensing import ACCEPT, BODY, CLOSE, CONNECT, Sensor, connection  # type: ignore[import-not-found]
from kernel.telling import check_body, told, told_types  # type: ignore[import-not-found]
from kernel.test_file import (  # type: ignore[import-not-found]
    CREATE,
    DELETE,
    GIVEN,
    LINK,
    MKDIR,
    READ,
    RENAME,
    SOURCE_GIVEN,
    SYMLINK,
    TRUNCATE,
    WRITE,
    XATTR,
    as_nobody,
    given,
    of_file,
    place,
)
from kernel.uring import Request, Ring  # type: ignore[import-not-found]
from tocsin.api.event.v1 import event_pb2

__all__ = ["place"]
URING, UNKNOWN = event_pb2.EVENT_FLAG_IO_URING, event_pb2.EVENT_FLAG_OUTCOME_UNKNOWN
WAITING = 5000
LARGEFILE = 0o100000
"""io_uring opens so by itself; to a 64-bit program it is 0."""


@pytest.fixture(autouse=True)
def _ring_or_skip() -> None:
    uring.need(uring.OPENAT)


def known_end() -> bool:
    """Whether this kernel says which request has ended: Linux 5.19."""
    return bool(oracle.release() >= (5, 19))


def need_end() -> None:
    """Skips the test where the outcome of a request is not known."""
    if not known_end():
        pytest.skip("NOT TESTED: this kernel does not tell how a request ends (Linux 5.19)")


def asking(*requests: Request, results: list[int] | None = None, slots: int = 0, flags: int = 0) -> Callable[[], None]:
    """An act: asks for all of them one after the other, and fails when they do not end so (default: well)."""

    def act() -> None:
        with Ring(flags=flags) as ring:
            if slots:
                ring.register_slots(slots)
            got = [ring.do(request)[0] for request in requests]
        expected = results or [min(result, 0) for result in got]
        assert [min(g, 0) if e == 0 else g for g, e in zip(got, expected, strict=True)] == expected, got
        assert results or min(got) >= 0, [os.strerror(-result) for result in got]

    return act


def through_ring(sensor: Sensor, kind: int, act: Callable[[], object], count: int = 1) -> event_pb2.Event:
    """The event of a child's act, with its outcome where the kernel tells it, and its process."""
    event: event_pb2.Event = told(sensor, kind, act, count)
    assert event.flags & ~UNKNOWN == URING
    assert bool(event.flags & UNKNOWN) == (not known_end())
    assert event.process.comm == Path("/proc/self/comm").read_bytes()[:-1]
    return event


# ---- files --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Named:
    """A request, what is told of it, and the operation that it needs."""

    kind: int
    request: Callable[[Path], Request]
    body: Callable[[Path], dict[str, bytes | int]]
    error: int = errno.EACCES
    """When the process has no right to it."""


def raw(path: Path) -> bytes:
    return os.fsencode(path)


NAMED = {
    "unlinkat": Named(
        DELETE,
        lambda p: Request(uring.UNLINKAT, addr=raw(p / "file")),
        lambda p: given(p / "file"),
    ),
    "unlinkat of a directory": Named(
        DELETE,
        lambda p: Request(uring.UNLINKAT, addr=raw(p / "directory"), op_flags=0x200),
        lambda p: given(p / "directory", open_flags=0x200),
    ),
    "renameat": Named(
        RENAME,
        lambda p: Request(uring.RENAMEAT, addr=raw(p / "file"), addr2=raw(p / "new"), len=-100, op_flags=1),
        lambda p: given(p / "new", source=raw(p / "file"), path_flags=GIVEN | SOURCE_GIVEN, open_flags=1),
    ),
    "mkdirat": Named(
        MKDIR,
        lambda p: Request(uring.MKDIRAT, addr=raw(p / "new"), len=0o750),
        lambda p: given(p / "new", mode=0o750),
    ),
    "symlinkat": Named(
        SYMLINK,
        lambda p: Request(uring.SYMLINKAT, addr=b"../where it leads", addr2=raw(p / "new")),
        lambda p: given(p / "new", source=b"../where it leads"),
    ),
    "linkat": Named(
        LINK,
        lambda p: Request(uring.LINKAT, addr=raw(p / "file"), addr2=raw(p / "new"), len=-100),
        lambda p: given(p / "new", source=raw(p / "file"), path_flags=GIVEN | SOURCE_GIVEN),
        errno.EPERM,
    ),
    "setxattr": Named(
        XATTR,
        lambda p: Request(uring.SETXATTR, addr=b"trusted.told", addr2=b"value", len=5, addr3=raw(p / "file")),
        lambda p: given(p / "file", attribute=b"trusted.told"),
        errno.EPERM,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_an_act_on_a_name_is_told(sensor: Sensor, place: Path, name: str) -> None:
    act = NAMED[name]
    request = act.request(place)
    uring.need(request.opcode)
    (place / "directory").mkdir()
    event = through_ring(sensor, act.kind, asking(request))
    check_body(event, **act.body(place))


@pytest.mark.parametrize("name", NAMED)
def test_an_act_on_a_name_that_is_refused_is_told_with_its_error(sensor: Sensor, place: Path, name: str) -> None:
    act = NAMED[name]
    request = act.request(place)
    uring.need(request.opcode)
    (place / "directory").mkdir()

    def refused() -> None:
        as_nobody()
        asking(request, results=[-act.error])()

    event = through_ring(sensor, act.kind, refused)
    check_body(event, **act.body(place), **({"error": act.error} if known_end() else {}))
    assert event.process.uid == 65534


def test_an_act_on_what_is_not_there_is_not_told(sensor: Sensor, place: Path) -> None:
    need_end()
    requests = [
        Request(uring.UNLINKAT, addr=raw(place / "none")),
        Request(uring.OPENAT, addr=raw(place / "none"), op_flags=1),
    ]
    assert told_types(sensor, asking(*requests, results=[-errno.ENOENT] * 2)) == []


def test_a_path_behind_a_descriptor_or_the_current_directory_is_absolute(sensor: Sensor, place: Path) -> None:
    uring.need(uring.SYMLINKAT)

    def act() -> None:
        os.chdir(place)
        folder = os.open(place, os.O_PATH)
        asking(
            Request(uring.UNLINKAT, fd=folder, addr=b"./file"),
            Request(uring.SYMLINKAT, addr=b"x", addr2=b"new"),
        )()

    pid = ended(fork_and(act))
    assert sensor.one(pid, DELETE).file_delete.path == raw(place) + b"/./file"
    assert sensor.one(pid, SYMLINK).file_symlink.path == raw(place / "new")


def test_a_path_of_nearly_4_kib_is_told_whole_at_once(sensor: Sensor, place: Path) -> None:
    """It does not fit where requests are kept."""
    path = raw(place) + b"/." * 2000 + b"/file"
    event = told(sensor, DELETE, asking(Request(uring.UNLINKAT, addr=path)))
    assert event.flags == URING | UNKNOWN
    check_body(event, **given(place / "file") | {"path": path})


# ---- opening ------------------------------------------------------------------------------------


def how(flags: int) -> bytes:
    return struct.pack("QQQ", flags, 0o640 if flags & os.O_CREAT else 0, 0)


@pytest.mark.parametrize("name", ["openat", "openat2"])
def test_an_open_that_makes_a_file_is_told_and_the_next_one_writes(sensor: Sensor, place: Path, name: str) -> None:
    flags, path = os.O_WRONLY | os.O_CREAT, raw(place / "new")
    request = (
        Request(uring.OPENAT, addr=path, len=0o640, op_flags=flags)
        if name == "openat"
        else Request(uring.OPENAT2, addr=path, addr2=how(flags), len=24)
    )
    for kind in (CREATE, WRITE) if known_end() else (WRITE, WRITE):
        event = through_ring(sensor, kind, asking(request))
        if known_end():
            check_body(event, path=path, open_flags=flags | LARGEFILE, **of_file(place / "new"))


def test_an_open_through_a_symbolic_link_shows_the_file_that_was_opened(sensor: Sensor, place: Path) -> None:
    need_end()
    (place / "link").symlink_to("file")
    event = through_ring(sensor, WRITE, asking(Request(uring.OPENAT, addr=raw(place / "link"), op_flags=os.O_WRONLY)))
    check_body(event, path=raw(place / "file"), open_flags=os.O_WRONLY | LARGEFILE, **of_file(place / "file"))


@pytest.mark.parametrize("slot", [1, uring.ANY_SLOT])
def test_an_open_into_a_slot_of_the_ring_is_told(sensor: Sensor, place: Path, slot: int) -> None:
    """No descriptor leads to such a file."""
    need_end()
    request = Request(uring.OPENAT, addr=raw(place / "file"), op_flags=os.O_RDWR, file_index=slot)
    event = through_ring(sensor, WRITE, asking(request, slots=4))
    check_body(event, path=raw(place / "file"), open_flags=os.O_RDWR | LARGEFILE, **of_file(place / "file"))


def test_a_refused_open_is_told_with_its_error_and_the_path_as_given(sensor: Sensor, place: Path) -> None:
    need_end()
    (place / "file").chmod(0o600)

    def act() -> None:
        as_nobody()
        asking(Request(uring.OPENAT, addr=raw(place / "file"), op_flags=os.O_WRONLY), results=[-errno.EACCES])()

    event = through_ring(sensor, WRITE, act)
    check_body(event, **given(place / "file", open_flags=os.O_WRONLY | LARGEFILE, error=errno.EACCES))


@pytest.mark.parametrize("slot", [0, 1])
def test_a_watched_file_that_is_read_is_told(sensor: Sensor, place: Path, slot: int) -> None:
    need_end()
    path = place / ".netrc"
    path.touch()
    event = through_ring(sensor, READ, asking(Request(uring.OPENAT, addr=raw(path), file_index=slot), slots=1))
    check_body(event, path=raw(path), open_flags=LARGEFILE, **of_file(path))


def test_a_watched_file_that_is_read_under_another_name_is_told(sensor: Sensor, place: Path) -> None:
    """It shows only when it is open: told by the thread that opened it, which may be a worker of the process."""
    need_end()
    path = place / ".netrc"
    path.touch()
    (place / "harmless").symlink_to(path)
    event = told(sensor, READ, asking(Request(uring.OPENAT, addr=raw(place / "harmless"))))
    assert event.flags == URING
    check_body(event, path=raw(path), open_flags=LARGEFILE, **of_file(path))


def test_reading_other_files_is_not_told(sensor: Sensor, place: Path) -> None:
    need_end()
    requests = [Request(uring.OPENAT, addr=raw(place / "file")), Request(uring.OPENAT, addr=b"/dev/null", op_flags=1)]
    assert told_types(sensor, asking(*requests)) == []


def test_the_path_is_the_one_that_the_kernel_copied(sensor: Sensor, place: Path) -> None:
    """The process changes its own copy while the request waits."""
    other = bytes(len(raw(place / "file")))

    def act() -> None:
        with Ring() as ring:
            first, second = os.pipe()
            ring.ask(
                Request(uring.POLL, fd=first, op_flags=1, flags=uring.IO_LINK, user_data=1),
                Request(uring.UNLINKAT, addr=raw(place / "file"), user_data=2),
            )
            ring.kept[-1].raw = other + b"\0"
            os.write(second, b"x")
            assert ring.results(2) == [1, 0]

    check_body(through_ring(sensor, DELETE, act), **given(place / "file"))


@pytest.mark.parametrize("flags", [0, uring.FIXED])
def test_a_file_that_is_cut_by_its_descriptor_or_slot_is_told(sensor: Sensor, place: Path, flags: int) -> None:
    uring.need(uring.FTRUNCATE)

    def act() -> None:
        with Ring() as ring:
            ring.register_slots(1)
            fd = os.open(place / "file", os.O_RDWR)
            assert ring.do(Request(uring.OPENAT, addr=raw(place / "file"), op_flags=os.O_RDWR, file_index=1)) == [0]
            assert ring.do(Request(uring.FTRUNCATE, fd=0 if flags else fd, addr2=7, flags=flags)) == [0]

    event = through_ring(sensor, TRUNCATE, act)
    check_body(event, path=raw(place / "file"), size=7, **of_file(place / "file"))


def test_an_attribute_set_by_descriptor_is_told(sensor: Sensor, place: Path) -> None:
    uring.need(uring.FSETXATTR)

    def act() -> None:
        fd = os.open(place / "file", os.O_RDWR)
        asking(Request(uring.FSETXATTR, fd=fd, addr=b"trusted.told", addr2=b"value", len=5))()

    event = through_ring(sensor, XATTR, act)
    check_body(event, path=raw(place / "file"), attribute=b"trusted.told", **of_file(place / "file"))


# ---- ways to hide -------------------------------------------------------------------------------


def test_a_request_without_a_completion_is_told_at_once(sensor: Sensor, place: Path) -> None:
    if oracle.release() < (5, 17):
        pytest.skip("NOT TESTED: on this kernel every request has a completion (Linux 5.17)")

    def act() -> None:
        with Ring() as ring:
            ring.ask(Request(uring.UNLINKAT, addr=raw(place / "file"), flags=uring.CQE_SKIP))
            wait_until_gone(place / "file")

    event = told(sensor, DELETE, act)
    assert event.flags == URING | UNKNOWN
    check_body(event, **given(place / "file"))


def wait_until_gone(path: Path) -> None:
    deadline = time.monotonic() + 5
    while path.exists():
        assert time.monotonic() < deadline, f"{path} is still there"


def test_a_request_whose_completion_finds_no_room_is_told(sensor: Sensor, place: Path) -> None:
    def act() -> None:
        with Ring(entries=1, completions=1) as ring:
            ring.ask(Request(uring.NOP))
            ring.ask(Request(uring.UNLINKAT, addr=raw(place / "file"), user_data=7))
            wait_until_gone(place / "file")

    event = told(sensor, DELETE, act)
    assert event.flags in (URING, URING | UNKNOWN)
    check_body(event, **given(place / "file"))


def test_requests_with_one_number_are_all_told(sensor: Sensor, place: Path) -> None:
    names = [f"file{i}" for i in range(6)]
    for name in names:
        (place / name).touch()

    def act() -> None:
        with Ring() as ring:
            assert ring.do(*(Request(uring.UNLINKAT, addr=raw(place / name)) for name in names)) == [0] * len(names)

    pid = ended(fork_and(act))
    sensor.one(pid, DELETE, count=len(names))
    assert {event.file_delete.path for event in sensor.of(pid, DELETE)} == {raw(place / name) for name in names}


def test_a_request_by_a_worker_is_the_processes(sensor: Sensor, place: Path) -> None:
    need_end()
    request = Request(uring.OPENAT, addr=raw(place / "file"), op_flags=os.O_WRONLY, flags=uring.ASYNC)
    event = through_ring(sensor, WRITE, asking(request))
    check_body(event, path=raw(place / "file"), open_flags=os.O_WRONLY | LARGEFILE, **of_file(place / "file"))


def test_a_request_that_the_kernels_own_thread_submits_is_the_processes(sensor: Sensor, place: Path) -> None:
    event = told(sensor, DELETE, asking(Request(uring.UNLINKAT, addr=raw(place / "file")), flags=uring.SQPOLL))
    assert event.flags & URING
    assert event.process.tid != event.process.pid
    assert event.process.exe == os.fsencode(os.readlink("/proc/self/exe"))
    check_body(event, **given(place / "file"))


def test_a_request_of_a_process_that_ends_at_once_is_told(sensor: Sensor, place: Path) -> None:
    def act() -> None:
        Ring().ask(Request(uring.UNLINKAT, addr=raw(place / "file")))
        os._exit(0)

    event = told(sensor, DELETE, act)
    if (place / "file").exists():
        pytest.skip("NOT TESTED: the kernel cancelled the request")
    check_body(event, **given(place / "file"))


def test_more_requests_that_wait_than_can_be_kept_do_not_hide_the_next(sensor: Sensor, place: Path) -> None:
    """Each waits behind a poll of a pipe that nobody writes to, and takes a place in the map."""
    uring.need(uring.MKDIRAT)

    def act() -> None:
        with Ring(entries=64) as ring:
            first, _ = os.pipe()
            for number in range(WAITING):
                ring.ask(
                    Request(uring.POLL, fd=first, op_flags=1, flags=uring.IO_LINK, user_data=1 << 32),
                    Request(uring.UNLINKAT, addr=raw(place / "none"), user_data=number),
                )
            with Ring() as second:
                assert second.do(Request(uring.MKDIRAT, addr=raw(place / "new"))) == [0]

    event = told(sensor, MKDIR, act)
    assert event.flags & URING
    check_body(event, **given(place / "new"))


# ---- the network --------------------------------------------------------------------------------


def address(port: int) -> bytes:
    return struct.pack("=H", socket.AF_INET) + struct.pack(">H", port) + socket.inet_aton("127.0.0.1") + bytes(8)


def test_a_connect_is_told(sensor: Sensor) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        port, number = server.getsockname()[1], cookie(client)
        pid = ended(fork_and(asking(Request(uring.CONNECT, fd=client.fileno(), addr=address(port), addr2=16))))
        event = sensor.one_tcp(CONNECT, number)
    body = connection(event)
    assert (body.outcome, body.error, body.destination_port) == (event_pb2.CONNECT_OUTCOME_ESTABLISHED, 0, port)
    assert event.process.pid == pid


def test_a_connect_that_is_refused_is_told(sensor: Sensor) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with socket.socket() as client:
        number = cookie(client)
        request = Request(uring.CONNECT, fd=client.fileno(), addr=address(port), addr2=16)
        ended(fork_and(asking(request, results=[-errno.ECONNREFUSED])))
        body = connection(sensor.one_tcp(CONNECT, number))
    assert (body.outcome, body.error) == (event_pb2.CONNECT_OUTCOME_FAILED, errno.ECONNREFUSED)


def still_connecting(port: int) -> bool:
    """Whether the kernel has a socket that waits for an answer from this port."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[3] == "02" and int(row[2].rpartition(":")[2], 16) == port for row in rows)


def test_a_connect_given_up_before_an_answer_is_told(sensor: Sensor) -> None:
    with socket.socket() as listener, socket.socket() as queued, socket.socket() as waiting:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        queued.connect(listener.getsockname())  # fills the backlog: the next SYN is dropped
        number, port = cookie(waiting), listener.getsockname()[1]
        with Ring() as ring:
            ring.ask(Request(uring.CONNECT, fd=waiting.fileno(), addr=address(port), addr2=16))
            time.sleep(0.05)
        waiting.close()
        deadline_s = time.monotonic() + 3
        while still_connecting(port):
            if time.monotonic() > deadline_s:
                pytest.skip("A CONNECT GIVEN UP IS NOT TESTED: this kernel goes on with it when its ring is gone")
            time.sleep(0.01)
        event = sensor.one_tcp(CONNECT, number)
    assert connection(event).outcome == event_pb2.CONNECT_OUTCOME_ABANDONED
    assert event.process.pid == os.getpid()


ACCEPTS = {
    "once": Request(uring.ACCEPT),
    "by a worker": Request(uring.ACCEPT, flags=uring.ASYNC),
    "many times": Request(uring.ACCEPT, ioprio=uring.ACCEPT_MULTISHOT),
    "into a slot": Request(uring.ACCEPT, file_index=1),
    "into any slot": Request(uring.ACCEPT, file_index=uring.ANY_SLOT),
    "many times into slots": Request(uring.ACCEPT, ioprio=uring.ACCEPT_MULTISHOT, file_index=uring.ANY_SLOT),
}


@pytest.mark.parametrize("name", ACCEPTS)
@pytest.mark.parametrize("waits", [False, True])
def test_an_accept_is_told_and_the_end_of_its_connection(sensor: Sensor, name: str, waits: bool) -> None:
    if oracle.release() < (5, 19) and ("many" in name or "any" in name):
        pytest.skip(f"AN ACCEPT {name} IS NOT TESTED: this kernel has no such request (Linux 5.19)")
    with socket.create_server(("127.0.0.1", 0)) as server:
        request = ACCEPTS[name]._replace(fd=server.fileno())
        with socket.socket() as client:
            if not waits:
                client.connect(server.getsockname())

            def act() -> None:
                with Ring() as ring:
                    ring.register_slots(4)
                    ring.ask(request)
                    if waits:
                        time.sleep(0.02)
                        client.connect(server.getsockname())
                    assert ring.results(1)[0] >= 0

            pid = ended(fork_and(act))
            event = sensor.one(pid, ACCEPT)
        body = connection(event)
        assert event.flags == URING
        assert event.WhichOneof("body") == BODY[ACCEPT]
        assert (body.direction, body.destination_port) == (event_pb2.DIRECTION_INBOUND, server.getsockname()[1])
        assert body.socket_cookie != 0
        closed = sensor.one_tcp(CLOSE, body.socket_cookie)
        assert closed.process.pid == pid


def test_an_accept_that_nobody_waits_for_is_no_connection(sensor: Sensor) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        request = Request(uring.ACCEPT, fd=server.fileno(), op_flags=0x7FFF0000)
        assert told_types(sensor, asking(request, results=[-errno.EINVAL])) == []


def body_of_socket(event: event_pb2.Event) -> event_pb2.Socket:
    assert event.flags == URING
    found: event_pb2.Socket = getattr(event, BODY[event.type])
    return found


def test_a_raw_socket_is_told(sensor: Sensor) -> None:
    uring.need(uring.SOCKET)
    request = Request(uring.SOCKET, fd=socket.AF_INET, addr2=socket.SOCK_RAW, len=socket.IPPROTO_ICMP)
    body = body_of_socket(told(sensor, event_pb2.EVENT_TYPE_RAW_SOCKET, asking(request)))
    assert (body.family, body.socket_type, body.protocol) == (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    assert body.error == 0


def test_a_raw_socket_that_is_refused_is_told(sensor: Sensor) -> None:
    uring.need(uring.SOCKET)
    request = Request(uring.SOCKET, fd=socket.AF_INET, addr2=socket.SOCK_RAW, len=socket.IPPROTO_ICMP)

    def act() -> None:
        as_nobody()
        asking(request, results=[-errno.EPERM])()

    assert body_of_socket(told(sensor, event_pb2.EVENT_TYPE_RAW_SOCKET, act)).error == errno.EPERM


def test_a_bind_is_told(sensor: Sensor) -> None:
    uring.need(uring.BIND)
    with socket.socket() as bound:
        request = Request(uring.BIND, fd=bound.fileno(), addr=address(0), addr2=16)
        body = body_of_socket(told(sensor, event_pb2.EVENT_TYPE_SOCKET_BIND, asking(request)))
        assert (body.port, body.address) == (bound.getsockname()[1], socket.inet_aton("127.0.0.1"))
        assert (body.family, body.socket_type) == (socket.AF_INET, socket.SOCK_STREAM)


def test_a_connect_to_a_watched_unix_socket_is_told(sensor: Sensor, place: Path) -> None:
    need_end()
    path = raw(place / "docker.sock")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(path)
        server.listen()
        name = struct.pack("=H", socket.AF_UNIX) + path + b"\0"
        request = Request(uring.CONNECT, fd=client.fileno(), addr=name, addr2=len(name))
        body = body_of_socket(told(sensor, event_pb2.EVENT_TYPE_UNIX_CONNECT, asking(request)))
    assert (body.path, body.peer_pid) == (path, os.getpid())


@pytest.mark.parametrize("flags", [0, uring.ASYNC])
def test_a_datagram_is_told(sensor: Sensor, flags: int) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        server.bind(("127.0.0.1", 0))
        client.connect(server.getsockname())
        request = Request(uring.SEND, fd=client.fileno(), addr=b"told", len=4, flags=flags)
        event = told(sensor, event_pb2.EVENT_TYPE_UDP_FLOW, asking(request))
        assert event.udp_flow.destination_port == server.getsockname()[1]
