"""UDP: the first datagram of a socket to a destination, told with who sent it."""

import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kernel import oracle  # type: ignore[import-not-found]
from kernel.acting import fork_and  # type: ignore[import-not-found]
from kernel.network import cookie, needs_cgroup_hooks  # type: ignore[import-not-found]
from kernel.sensing import ACCEPT, CLOSE, CONNECT, Sensor, boottime_ns  # type: ignore[import-not-found]
from tocsin.api.event.v1 import event_pb2
from tocsin.config import FilterConfig, SensorConfig
from tocsin.kernel import libbpf
from tocsin.kernel.core import cgroup_root

FLOW = event_pb2.EVENT_TYPE_UDP_FLOW
LISTEN, BIND = event_pb2.EVENT_TYPE_SOCKET_LISTEN, event_pb2.EVENT_TYPE_SOCKET_BIND
NOBODY = 65534
LOOPBACK = socket.inet_aton("127.0.0.1")
LOOPBACK6 = socket.inet_pton(socket.AF_INET6, "::1")
IPV6_HOPOPTS, IPV6_DSTOPTS = 54, 59
PADDING = bytes((0, 0, 1, 4, 0, 0, 0, 0))
"""An options head without options."""
IDLE_NS = 60_000_000_000


@pytest.fixture(scope="module", autouse=True)
def _hooks() -> None:
    needs_cgroup_hooks()


@contextmanager
def udp(address: str = "127.0.0.1") -> Iterator[socket.socket]:
    """A bound socket."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as bound:
        bound.bind((address, 0))
        yield bound


def facts(event: event_pb2.Event) -> dict[str, int | bytes]:
    """Every field of the body that is not 0 or empty."""
    assert event.WhichOneof("body") == "udp_flow"
    return {field.name: value for field, value in event.udp_flow.ListFields()}


def flow(sender: socket.socket, receiver: socket.socket, source: bytes, destination: bytes) -> dict[str, int | bytes]:
    return {
        "direction": event_pb2.DIRECTION_OUTBOUND,
        "outcome": event_pb2.CONNECT_OUTCOME_ESTABLISHED,
        "protocol": socket.IPPROTO_UDP,
        "source_port": sender.getsockname()[1],
        "destination_port": receiver.getsockname()[1],
        "socket_cookie": cookie(sender),
        "source_ip": source,
        "destination_ip": destination,
    }


@pytest.mark.parametrize(
    ("bound", "target", "to", "told"),
    [
        pytest.param("127.0.0.1", "127.0.0.1", "127.0.0.1", LOOPBACK, id="ipv4"),
        pytest.param("::1", "::1", "::1", LOOPBACK6, id="ipv6"),
        pytest.param("::", "127.0.0.1", "::ffff:127.0.0.1", LOOPBACK, id="v4-mapped"),
    ],
)
def test_the_first_datagram_to_a_destination_is_told_once(
    sensor: Sensor, bound: str, target: str, to: str, told: bytes
) -> None:
    with udp(bound) as sender, udp(target) as receiver:
        for _ in range(3):
            sender.sendto(b"x", (to, receiver.getsockname()[1]))
        sensor.settle()
        event = sensor.one(os.getpid(), FLOW)
        assert facts(event) == flow(sender, receiver, told, told)
    me = oracle.task(os.getpid()) | oracle.image(os.getpid()) | {"tid": threading.get_native_id()}
    oracle.check(event.process, me)
    assert event.parent.pid == os.getppid()
    assert event.flags == 0


def test_each_destination_and_each_socket_is_a_flow_of_its_own(sensor: Sensor) -> None:
    with udp() as one, udp() as two, udp() as first, udp() as second:
        for sender, receiver in ((one, first), (one, second), (two, first)):
            sender.sendto(b"", receiver.getsockname())
        sensor.settle()
        assert [facts(event) for event in sensor.of(os.getpid(), FLOW)] == [
            flow(sender, receiver, LOOPBACK, LOOPBACK)
            for sender, receiver in ((one, first), (one, second), (two, first))
        ]


def test_a_connected_socket_is_told_when_it_sends(sensor: Sensor) -> None:
    with udp() as sender, udp() as receiver:
        sender.connect(receiver.getsockname())
        sensor.settle()
        assert not sensor.of(os.getpid(), FLOW)
        sender.send(b"x")
        assert facts(sensor.one(os.getpid(), FLOW)) == flow(sender, receiver, LOOPBACK, LOOPBACK)


def test_an_inherited_socket_is_told_with_the_process_that_sends(sensor: Sensor) -> None:
    with udp() as sender, udp() as first, udp() as second:
        sender.sendto(b"x", first.getsockname())
        child = fork_and(lambda: sender.sendto(b"x", second.getsockname()))
        assert os.waitpid(child, 0)[1] == 0
        assert facts(sensor.one(os.getpid(), FLOW)) == flow(sender, first, LOOPBACK, LOOPBACK)
        event = sensor.one(child, FLOW)
        assert facts(event) == flow(sender, second, LOOPBACK, LOOPBACK)
    assert event.parent.pid == os.getpid()


@pytest.mark.parametrize("heads", [(IPV6_HOPOPTS,), (IPV6_DSTOPTS,), (IPV6_HOPOPTS, IPV6_DSTOPTS)])
def test_options_before_the_udp_head_hide_nothing(sensor: Sensor, heads: tuple[int, ...]) -> None:
    with udp("::1") as sender, udp("::1") as receiver:
        for head in heads:
            sender.setsockopt(socket.IPPROTO_IPV6, head, PADDING)
        sender.sendto(b"x", receiver.getsockname())
        assert receiver.recv(9) == b"x"
        assert facts(sensor.one(os.getpid(), FLOW)) == flow(sender, receiver, LOOPBACK6, LOOPBACK6)


def test_options_in_the_ipv4_head_hide_nothing(sensor: Sensor) -> None:
    with udp() as sender, udp() as receiver:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, bytes((1, 1, 1, 0)))
        sender.sendto(b"x", receiver.getsockname())
        assert facts(sensor.one(os.getpid(), FLOW)) == flow(sender, receiver, LOOPBACK, LOOPBACK)


def test_a_datagram_larger_than_a_packet_is_one_flow(sensor: Sensor) -> None:
    with udp() as sender, udp() as receiver:
        sender.sendto(bytes(65_000), receiver.getsockname())
        sensor.settle()
        assert facts(sensor.one(os.getpid(), FLOW)) == flow(sender, receiver, LOOPBACK, LOOPBACK)


def test_a_destination_that_got_nothing_for_a_minute_is_told_anew(sensor: Sensor) -> None:
    flows = sensor.source._loaded.map_fd("flows")
    with udp() as sender, udp() as receiver:
        key = struct.pack("<Q16sII", cookie(sender), LOOPBACK, receiver.getsockname()[1], 0)
        for idle_ns, told in ((0, 1), (IDLE_NS // 2, 1), (IDLE_NS + 1, 2)):
            if idle_ns:
                libbpf.update(flows, struct.pack("<Q", boottime_ns() - idle_ns), key)
            sender.sendto(b"x", receiver.getsockname())
            sensor.settle()
            assert len(sensor.of(os.getpid(), FLOW)) == told


def test_what_does_not_leave_is_not_told(sensor: Sensor) -> None:
    with udp() as sender, pytest.raises(PermissionError):
        sender.sendto(b"x", ("255.255.255.255", 9))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as local, pytest.raises(FileNotFoundError):
        local.sendto(b"x", "/nowhere")
    sensor.settle()
    assert not sensor.of(os.getpid(), FLOW)


def test_what_an_excluded_user_sends_and_connects_is_not_told() -> None:
    sensor = Sensor(SensorConfig(filters=FilterConfig(events=("network",), exclude_uids=(NOBODY,))))

    def send(uid: int) -> None:
        os.setuid(uid)
        with udp() as sender, udp() as receiver, socket.socket() as listener, socket.socket() as client:
            sender.sendto(b"x", receiver.getsockname())
            listener.bind(("127.0.0.1", 0))
            listener.listen(1)
            client.connect(listener.getsockname())
            listener.accept()[0].close()

    try:
        children = [fork_and(lambda uid=uid: send(uid)) for uid in (NOBODY, NOBODY - 1)]
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
        sensor.collect(lambda: len(sensor.of(children[1], CLOSE)) == 2)
        told = {event.type for event in sensor.events if event.process.pid == children[1]}
        assert {FLOW, CONNECT, ACCEPT, CLOSE, LISTEN, BIND} == told
        assert not [event for event in sensor.events if event.process.pid == children[0]]
    finally:
        sensor.close()


def mounts(folder: Path, *lines: str) -> Path:
    path = folder / "mountinfo"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_the_whole_cgroup_hierarchy_is_taken_before_a_part_of_it(tmp_path: Path) -> None:
    part = "31 24 0:27 /machine /mnt/part rw,nosuid shared:9 - cgroup2 cgroup2 rw"
    whole = "30 24 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw"
    other = "29 24 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu"
    assert cgroup_root(mounts(tmp_path, other, part, whole)) == Path("/sys/fs/cgroup")
    assert cgroup_root(mounts(tmp_path, other, part)) == Path("/mnt/part")
    assert cgroup_root(mounts(tmp_path, other)) is None


WITHOUT_CGROUPS = (
    "import ctypes\n"
    "from tocsin.config import SensorConfig\n"
    "from tocsin.kernel.core import cgroup_root, open_core\n"
    "libc, private, lazy, new_mounts = ctypes.CDLL(None), 0x44000, 2, 0x20000\n"
    "assert not libc.unshare(new_mounts)\n"
    "assert not libc.mount(b'none', b'/', None, private, None)\n"
    "while found := cgroup_root(): assert not libc.umount2(bytes(found), lazy)\n"
    "open_core(SensorConfig(), []).close()\n"
)


def test_without_a_cgroup_hierarchy_the_sensor_says_what_it_leaves_out() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_CGROUPS],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "on_egress is left out" in done.stderr
    assert "on_ingress is left out" in done.stderr
