"""The source netlink on the running kernel: against /proc, wait and the sockets themselves. It needs no eBPF."""

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kernel import oracle  # type: ignore[import-not-found]
from kernel.acting import Acts, Held, fork_and  # type: ignore[import-not-found]
from kernel.sensing import ACCEPT, CLOSE, CONNECT, EXEC, EXIT, FORK, Sensor, boottime_ns  # type: ignore[import-not-found]
from tocsin.api.event.v1 import event_pb2
from tocsin.config import SensorConfig
from tocsin.errors import KernelError
from tocsin.kernel.netlink.connector import Connector, Notice, Sequences
from tocsin.kernel.netlink.source import open_netlink
from tocsin.kernel.source import Drained

LOOK_MS = 50
SO_COOKIE = 57
MISSING = event_pb2.EVENT_FLAG_PROCESS_IMAGE_MISSING
FAMILIES = [
    pytest.param(socket.AF_INET, "127.0.0.1", b"\x7f\0\0\1", id="ipv4"),
    pytest.param(socket.AF_INET6, "::1", bytes(15) + b"\1", id="ipv6"),
    pytest.param(socket.AF_INET6, "::ffff:127.0.0.1", b"\x7f\0\0\1", id="v4-mapped"),
]


class NetlinkSensor(Sensor):  # type: ignore[misc]
    """A Sensor on the other source."""

    def __init__(self, *, ring_bytes: int = 16 << 20, seed: bool = True) -> None:
        self.source = open_netlink(SensorConfig(ring_bytes=ring_bytes, connection_interval_ms=LOOK_MS))
        self.events: list[event_pb2.Event] = []
        self.drains: list[Drained] = []
        self.seeded = self.source.seed() if seed else 0


@pytest.fixture(scope="module")
def _on_this_kernel() -> None:
    """In place of the fixture that wants eBPF."""
    if os.geteuid() != 0:
        pytest.skip(f"THE NETLINK SOURCE IS NOT TESTED: uid {os.geteuid()}, not root")
    try:
        Connector(1 << 16).close()
    except KernelError as error:
        pytest.skip(f"THE NETLINK SOURCE IS NOT TESTED: {error}")


@pytest.fixture(scope="module")
def sensor(_on_this_kernel: None) -> Iterator[NetlinkSensor]:
    opened = NetlinkSensor()
    yield opened
    opened.close()


@pytest.fixture
def fresh(_on_this_kernel: None) -> Iterator[Callable[..., NetlinkSensor]]:
    """Sensors of a test's own, which look at nothing before the first drain."""
    opened: list[NetlinkSensor] = []

    def make(**options: int | bool) -> NetlinkSensor:
        opened.append(NetlinkSensor(**options))  # type: ignore[arg-type]
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def run(*argv: str) -> int:
    """Runs a program to its end; its pid."""
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    process.wait()
    return process.pid


def test_every_field_of_an_exec_is_as_proc_and_stat_say(sensor: NetlinkSensor, acts: Acts, tmp_path: Path) -> None:
    program = acts.copy("hold", tmp_path / "hold-here")
    program.chmod(0o751)
    os.chown(program, 1234, 2345)
    before = boottime_ns()
    with Held([str(program), "one", "two words", ""], env={"A": "1", "B": "2"}, cwd="/usr") as held:
        after = boottime_ns()
        event = sensor.one(held.pid, EXEC)
        expected = oracle.task(held.pid) | oracle.image(held.pid) | {"tid": held.pid}
        ticks = int(expected.pop("start_ticks"))
        oracle.check(event.process, expected)
        parent = oracle.task(os.getpid()) | oracle.image(os.getpid())
        oracle.check(event.parent, parent)
        executable = program.stat()
    assert 0 <= event.process.start_boottime_ns // oracle.TICK_NS - ticks <= 1
    assert before <= event.process.start_boottime_ns <= event.process.exec_boottime_ns == event.boottime_ns <= after
    argv = b"".join(each + b"\0" for each in (os.fsencode(program), b"one", b"two words", b""))
    body = event.exec
    assert (body.argc, body.envc, body.argv_bytes) == (4, 2, len(argv))
    assert (body.exe_mode, body.exe_nlink) == (executable.st_mode, 1)
    assert (body.exe_uid, body.exe_gid) == (1234, 2345)
    assert event.flags == 0
    assert event.process.image_flags == 0
    assert event.process.ancestors.startswith(os.fsencode(os.path.realpath(sys.executable)) + b"\0")
    assert (
        event.process.cgroup_name == Path(f"/proc/{os.getpid()}/cgroup").read_bytes().split(b"\n")[-2].split(b"/")[-1]
    )


def test_long_arguments_are_cut_and_counted(sensor: NetlinkSensor, acts: Acts) -> None:
    with Held([str(acts.path("hold")), "x" * 50_000, "y" * 50_000]) as held:
        event = sensor.one(held.pid, EXEC)
        whole = Path(f"/proc/{held.pid}/cmdline").read_bytes()
    assert event.process.argv == whole[:4096]
    assert event.process.image_flags == event_pb2.IMAGE_FLAG_ARGV_TRUNCATED
    assert (event.exec.argc, event.exec.argv_bytes) == (3, len(whole))


def test_a_set_user_id_program_is_told_with_the_ids_before(sensor: NetlinkSensor, acts: Acts, tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    program = acts.copy("hold", tmp_path / "raised")
    os.chown(program, 0, 0)
    program.chmod(0o4755)
    with Held([str(program)], before_exec=lambda: os.setresuid(1234, 1234, 1234)) as held:
        event = sensor.one(held.pid, EXEC)
    assert (event.process.uid, event.process.euid, event.exec.previous_euid) == (1234, 0, 1234)
    assert event.exec.exec_flags & event_pb2.EXEC_FLAG_SETUID


def test_a_program_in_memory_is_flagged_and_has_no_names(sensor: NetlinkSensor, acts: Acts) -> None:
    memory = os.memfd_create("secret", 0)
    os.write(memory, acts.path("hold").read_bytes())
    with Held([f"/proc/self/fd/{memory}"], pass_fds=[memory]) as held:
        event = sensor.one(held.pid, EXEC)
    os.close(memory)
    assert event.process.exe == b"/memfd:secret"
    assert (event.exec.exe_nlink, event.exec.exec_flags) == (0, event_pb2.EXEC_FLAG_MEMFD)


def test_an_exec_by_another_thread_keeps_the_pid(sensor: NetlinkSensor, acts: Acts) -> None:
    hold = str(acts.path("hold"))
    with Held([str(acts.path("threads")), "exec", hold, "x"], says_pid=True) as held:
        event = sensor.one(held.pid, EXEC, count=2)
        assert event.process.argv == os.fsencode(hold) + b"\0x\0"
        assert not sensor.of(held.pid, EXIT)
    assert sensor.one(held.pid, EXIT).process.argv == os.fsencode(hold) + b"\0x\0"


def test_a_fork_tells_its_child_and_threads_are_none(sensor: NetlinkSensor, acts: Acts) -> None:
    pid = run(str(acts.path("threads")), "many", "20")
    ended = sensor.one(pid, EXIT)
    forks = [event for event in sensor.events if event.type == FORK and event.fork.child_pid == pid]
    assert [fork.process.pid for fork in forks] == [os.getpid()]
    assert forks[0].fork.child_start_boottime_ns == ended.process.start_boottime_ns
    assert not sensor.of(pid, FORK)


def test_an_exit_tells_code_run_time_and_image(sensor: NetlinkSensor) -> None:
    before = boottime_ns()

    def act() -> None:
        time.sleep(0.1)
        os._exit(7)

    child = fork_and(act)
    os.waitpid(child, 0)
    event = sensor.one(child, EXIT)
    assert (event.exit.code, event.exit.signal, event.exit.core_dumped) == (7, 0, 0)
    assert 100_000_000 <= event.exit.run_time_ns <= boottime_ns() - before
    assert event.process.exe == os.fsencode(os.path.realpath(sys.executable))
    assert (event.process.ppid, event.parent.pid) == (os.getpid(), os.getpid())


def test_a_signal_that_ends_a_process_is_told(sensor: NetlinkSensor) -> None:
    child = fork_and(signal.pause)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    event = sensor.one(child, EXIT)
    assert (event.exit.signal, event.exit.code) == (signal.SIGKILL, 0)


def test_a_process_whose_first_thread_ends_early_ends_with_the_last(sensor: NetlinkSensor, acts: Acts) -> None:
    pid = run(str(acts.path("threads")), "last", "3", "5")
    assert sensor.one(pid, EXIT).process.tid != pid


def test_ids_that_a_process_took_show_at_its_end(sensor: NetlinkSensor) -> None:

    def act() -> None:
        os.setresgid(2345, 2345, 2345)
        os.setresuid(1234, 1234, 1234)

    child = fork_and(act)
    os.waitpid(child, 0)
    process = sensor.one(child, EXIT).process
    assert (process.uid, process.euid, process.gid, process.egid) == (1234, 1234, 2345, 2345)


def test_programs_of_a_millisecond_are_mostly_seen(sensor: NetlinkSensor) -> None:
    loop = "for i in $(seq 100); do /bin/echo short-$i; done"
    subprocess.run(["/bin/sh", "-c", loop], check=True, stdout=subprocess.DEVNULL)
    sensor.settle()
    found = {event.process.argv for event in sensor.events if b"short-" in event.process.argv and event.type == EXEC}
    assert len(found) >= 60, f"only {len(found)} of 100"


def test_only_the_reader_goes_before_ordinary_processes(sensor: NetlinkSensor) -> None:
    sensor.drain()
    (reader,) = [each for each in threading.enumerate() if each.name == "proc-connector"]
    assert reader.native_id is not None
    assert os.sched_getscheduler(reader.native_id) == os.SCHED_RR
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_a_program_that_is_gone_is_told_without_image_and_counted(fresh: Callable[..., NetlinkSensor]) -> None:
    late = fresh()
    pid = run("/bin/true")
    event = late.one(pid, EXEC)
    assert event.flags & MISSING
    assert (event.process.exe, event.process.argv, event.process.ppid) == (b"", b"", os.getpid())
    assert late.source.counters().images_missing >= 1


def test_the_image_of_a_second_exec_is_not_told_as_the_firsts(fresh: Callable[..., NetlinkSensor], acts: Acts) -> None:
    late = fresh()
    hold = str(acts.path("hold"))
    with Held(["/bin/sh", "-c", f"exec {hold} marked"]) as held:
        last = late.one(held.pid, EXEC, count=2)
    first = late.of(held.pid, EXEC)[0]
    assert first.flags & MISSING
    assert first.process.exe == b""
    assert last.process.argv == os.fsencode(hold) + b"\0marked\0"


def test_processes_that_ran_before_are_known(fresh: Callable[..., NetlinkSensor], acts: Acts) -> None:
    with Held([str(acts.path("hold")), "early"]) as held:
        late = fresh()
        assert late.seeded > 1
    event = late.one(held.pid, EXIT)
    assert event.process.argv.endswith(b"\0early\0")
    assert event.process.image_flags == event_pb2.IMAGE_FLAG_SEEDED
    assert event.process.exec_boottime_ns == 0


def on_every_cpu(act: Callable[[], object]) -> None:
    whole = os.sched_getaffinity(0)
    try:
        for cpu in whole:
            os.sched_setaffinity(0, {cpu})
            act()
    finally:
        os.sched_setaffinity(0, whole)


def fork_and_wait() -> None:
    os.waitpid(fork_and(lambda: None), 0)


def received(connector: Connector) -> list[Notice]:
    """Datagrams that are there."""
    return list(iter(lambda: connector.receive(wait=False), None))


@pytest.mark.usefixtures("_on_this_kernel")
def test_what_did_not_fit_is_counted_exactly() -> None:
    large, small = Connector(16 << 20), Connector(4096)  # in this order: both hear the second one's ACK
    try:
        on_every_cpu(fork_and_wait)
        for _ in range(300):
            fork_and_wait()
        came = received(small)
        on_every_cpu(fork_and_wait)  # a gap shows with the next datagram of its CPU
        came += received(small)
        every = received(large)
    finally:
        small.close()
        large.close()
    sequences = Sequences()
    missing = sum(sequences.missing_before(notice) for notice in came)
    numbers: dict[int, list[int]] = {}
    for notice in came:
        numbers.setdefault(notice.cpu, []).append(notice.sequence)
    covered = [each for each in every if each.cpu in numbers and between(each.sequence, numbers[each.cpu])]
    assert missing > 100
    assert len(came) + missing == len(covered)


def between(number: int, numbers: list[int]) -> bool:
    return numbers[0] <= number <= numbers[-1]


def test_loss_is_counted_and_leaves_a_gap_in_the_numbers(fresh: Callable[..., NetlinkSensor]) -> None:
    small = fresh(ring_bytes=4096)
    on_every_cpu(fork_and_wait)
    for _ in range(300):
        fork_and_wait()
    small.drain()

    def lost() -> int:
        on_every_cpu(fork_and_wait)
        return sum(loss.count for counter in small.source.counters().types for loss in counter.lost)

    small.collect(lambda: lost() > 100, "losses are counted")
    (counter,) = [each for each in small.source.counters().types if each.lost]
    assert counter.event_type == event_pb2.EVENT_TYPE_UNSPECIFIED
    assert counter.generated == counter.lost[0].count
    assert counter.lost[0].reason == event_pb2.LOSS_REASON_RING_FULL
    last: dict[int, int] = {}
    gaps = 0
    for event in small.events:
        if event.cpu_sequence:
            gaps += event.cpu_sequence - last.get(event.cpu, 0) - 1
            last[event.cpu] = event.cpu_sequence
    assert 0 < gaps <= counter.generated


def cookie(sock: socket.socket) -> int:
    found: int = struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0]
    return found


def listen(family: socket.AddressFamily, address: str) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind((address, 0))
    listener.listen(5)
    return listener


@pytest.mark.parametrize(("family", "address", "raw"), FAMILIES)
def test_a_connection_is_told_by_both_sides_from_connect_to_close(
    sensor: NetlinkSensor, family: socket.AddressFamily, address: str, raw: bytes
) -> None:
    with listen(family, address) as listener, socket.socket(family, socket.SOCK_STREAM) as client:
        client.connect(listener.getsockname())
        server = listener.accept()[0]
        cookies, ports = (cookie(client), cookie(server)), (client.getsockname()[1], listener.getsockname()[1])
        connect, accept = sensor.one_tcp(CONNECT, cookies[0]), sensor.one_tcp(ACCEPT, cookies[1])
        client.sendall(b"x" * 1000)
        server.sendall(b"y" * 77)
        assert len(client.recv(100)) == 77
        assert len(server.recv(2000)) == 1000
        client.close()
        server.close()
        closes = [sensor.one_tcp(CLOSE, each) for each in cookies]
    for event, body, direction in (
        (connect, connect.tcp_connect, event_pb2.DIRECTION_OUTBOUND),
        (accept, accept.tcp_accept, event_pb2.DIRECTION_INBOUND),
        (closes[0], closes[0].tcp_close, event_pb2.DIRECTION_OUTBOUND),
        (closes[1], closes[1].tcp_close, event_pb2.DIRECTION_INBOUND),
    ):
        assert (body.source_ip, body.destination_ip) == (raw, raw)
        assert (body.source_port, body.destination_port) == ports
        assert (body.direction, body.outcome) == (direction, event_pb2.CONNECT_OUTCOME_ESTABLISHED)
        assert body.protocol == socket.IPPROTO_TCP
        assert event.process.pid == os.getpid()
        oracle.check(event.process, oracle.image(os.getpid()))
        assert (event.flags, event.cpu_sequence, event.parent.pid) == (0, 0, os.getppid())
    assert (closes[0].tcp_close.sent_bytes, closes[1].tcp_close.sent_bytes) == (1000, 77)
    assert closes[0].tcp_close.received_bytes - 77 in (0, 1)
    assert closes[1].tcp_close.received_bytes - 1000 in (0, 1)
    assert closes[0].tcp_close.duration_ns == closes[0].boottime_ns - connect.boottime_ns


def test_a_connection_is_its_process_s_and_not_its_parent_s(sensor: NetlinkSensor) -> None:
    with listen(socket.AF_INET, "127.0.0.1") as listener:
        port = listener.getsockname()[1]
        program = (
            "import os, socket, sys; s = socket.socket(); os.setuid(65534); "
            f"s.connect(('127.0.0.1', {port})); sys.stdin.read()"
        )
        child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
        sensor.collect(lambda: bool(sensor.of(child.pid, CONNECT)), "the child's connection")
        child.communicate(b"")
    (event,) = sensor.of(child.pid, CONNECT)
    assert (event.process.uid, event.tcp_connect.destination_port) == (65534, port)
    assert program.encode() in event.process.argv


def test_a_connection_nobody_accepted_yet_is_told_by_its_initiator_only(sensor: NetlinkSensor) -> None:
    with listen(socket.AF_INET, "127.0.0.1") as listener:
        client = socket.create_connection(listener.getsockname())
        sensor.one_tcp(CONNECT, cookie(client))
        time.sleep(3 * LOOK_MS / 1000)
        sensor.drain()
        accepts = [event for event in sensor.events if event.type == ACCEPT]
        assert listener.getsockname()[1] not in {event.tcp_accept.destination_port for event in accepts}
        server = listener.accept()[0]
        sensor.one_tcp(ACCEPT, cookie(server))
        client.close()
        server.close()


def test_a_connection_between_two_looks_is_told_at_its_end(fresh: Callable[..., NetlinkSensor]) -> None:
    late = fresh()
    with listen(socket.AF_INET, "127.0.0.1") as listener:
        late.drain()
        client = socket.create_connection(listener.getsockname())
        server = listener.accept()[0]
        cookies = cookie(client), cookie(server)
        client.close()
        server.close()
        connect, accept = late.one_tcp(CONNECT, cookies[0]), late.one_tcp(ACCEPT, cookies[1])
        for number in cookies:
            late.one_tcp(CLOSE, number)
    assert connect.flags & MISSING
    assert not connect.process.pid
    assert accept.tcp_accept.source_port == connect.tcp_connect.source_port


def test_a_connection_that_was_there_before_is_told_at_its_end_only(fresh: Callable[..., NetlinkSensor]) -> None:
    with listen(socket.AF_INET, "127.0.0.1") as listener:
        client = socket.create_connection(listener.getsockname())
        server = listener.accept()[0]
        late = fresh()
        late.drain()
        number = cookie(client)
        client.close()
        server.close()
        event = late.one_tcp(CLOSE, number)
    assert event.process.pid == os.getpid()
    assert not late.tcp(CONNECT, number)


OPEN = """
from tocsin.config import SensorConfig
from tocsin.kernel.netlink.source import open_netlink
open_netlink(SensorConfig())
"""


@pytest.mark.usefixtures("_on_this_kernel")
@pytest.mark.parametrize(
    ("prefix", "missing"),
    [
        (["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"], "CAP_NET_ADMIN"),
        (["unshare", "--pid", "--fork"], "initial pid"),
        (["unshare", "--user", "--map-root-user"], "CAP_NET_ADMIN"),
        (["unshare", "--net"], "initial network namespace"),
    ],
    ids=["capability", "pid-namespace", "user-namespace", "network-namespace"],
)
def test_what_is_missing_is_said(prefix: list[str], missing: str) -> None:
    done = subprocess.run(
        [*prefix, sys.executable, "-c", OPEN], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("tocsin.errors.KernelError: ")
    assert missing in last
