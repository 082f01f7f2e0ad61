"""The source netlink, without a kernel: datagrams, doubts, threads, connections."""

import struct
from collections.abc import Collection, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.diag import SS_ESTABLISHED, SS_LISTEN, SS_SYN_SENT

from tocsin.api.event.v1 import event_pb2
from tocsin.config import from_mapping
from tocsin.errors import ConfigError
from tocsin.kernel.netlink.connections import LOOKS_FOR_AN_OWNER, LOOKS_UNTIL_GONE, Connections
from tocsin.kernel.netlink.connector import Notice, Sequences, What, parse
from tocsin.kernel.netlink.diag import Endpoint, TcpSocket, messages
from tocsin.kernel.netlink.ledger import Ledger
from tocsin.kernel.netlink.lives import events
from tocsin.kernel.netlink.procfs import Image, Snapshot
from tocsin.kernel.netlink.reader import EXEC_TAKES_NS, Glance, Observation, without_doubtful
from tocsin.kernel.netlink.source import shortfall
from tocsin.kernel.netlink.table import MAX_ANCESTORS_BYTES, Table, ancestors_below
from tocsin.processes.state import MAX_TEXT_BYTES

GONE = 1 << 22
"""Above every pid of this host: /proc has none of them."""
NOTHING = Snapshot(None, None)
A_MS = 1_000_000


def notice(what: int, pid: int, *, tid: int = 0, first: int = 0, second: int = 0, at_ns: int = 0) -> Notice:
    return Notice(what, 0, 0, at_ns, tid or pid, pid, first, second)


def seen(*notices: Notice) -> list[Observation]:
    return [Observation(each, 0, NOTHING) for each in notices]


def test_a_datagram_is_read_as_the_kernel_lays_it_out() -> None:
    header = struct.pack("=IHHII", 76, 3, 0, 0, 0) + struct.pack("=IIIIHH", 1, 1, 77, 0, 40, 0)
    body = struct.pack("=IIQ", What.FORK, 1, 123) + struct.pack("=6I", 11, 10, 21, 20, 0, 0)
    assert parse(header + body) == Notice(What.FORK, 1, 77, 123, 11, 10, 21, 20)


def test_a_datagram_of_another_sender_or_cut_short_is_none() -> None:
    assert parse(b"") is None
    assert parse(bytes(75)) is None


@given(st.binary(max_size=200))
def test_no_datagram_breaks_the_readers(datagram: bytes) -> None:
    parse(datagram)
    for _, body in messages(datagram):
        assert len(body) <= len(datagram)


def test_a_gap_in_a_cpus_numbers_is_counted_over_the_turn_of_the_counter() -> None:
    sequences = Sequences()
    numbered = [(0, 2**32 - 2), (1, 5), (0, 2**32 - 1), (0, 3), (1, 6)]
    missing = [sequences.missing_before(Notice(What.EXIT, cpu, number, 0, 1, 1, 0, 0)) for cpu, number in numbered]
    assert missing == [0, 0, 0, 3, 0]


def exec_glance(pid: int, at_ns: int, seen_ns: int) -> Glance:
    image = Image(event_pb2.Process(exe=b"/x"), event_pb2.Exec())
    return Glance(notice(What.EXEC, pid, at_ns=at_ns), 0, None, image, seen_ns)


def images(*glances: Glance) -> list[bool]:
    return [each.image is not None for each in without_doubtful(list(glances))]


def test_an_image_that_was_read_after_the_next_exec_is_not_believed() -> None:
    assert images(exec_glance(1, 0, 12 * A_MS), exec_glance(1, 10 * A_MS, 13 * A_MS)) == [False, True]


def test_an_image_that_was_read_while_the_next_program_was_loaded_is_not_believed() -> None:
    assert images(exec_glance(1, 0, 10 * A_MS - EXEC_TAKES_NS), exec_glance(1, 10 * A_MS, 13 * A_MS)) == [False, True]


def test_an_image_that_was_read_before_the_next_exec_or_of_another_process_is_believed() -> None:
    assert images(exec_glance(1, 0, A_MS), exec_glance(2, A_MS, 3 * A_MS), exec_glance(1, 9 * A_MS, 9 * A_MS)) == [
        True,
        True,
        True,
    ]


def lives(table: Table, *notices: Notice) -> list[event_pb2.Event]:
    return [event for _, event in events(seen(*notices), table, 0)]


def test_a_process_ends_with_its_last_thread_and_threads_are_not_told() -> None:
    found = lives(
        Table(),
        notice(What.FORK, GONE, first=GONE + 1, second=GONE + 1, at_ns=5),
        notice(What.FORK, GONE + 1, first=GONE + 2, second=GONE + 1),
        notice(What.EXIT, GONE + 1, first=0),
        notice(What.EXIT, GONE + 1, tid=GONE + 2, first=7 << 8, at_ns=25),
    )
    assert [event.type for event in found] == [event_pb2.EVENT_TYPE_FORK, event_pb2.EVENT_TYPE_EXIT]
    assert (found[0].fork.child_pid, found[0].fork.child_start_boottime_ns) == (GONE + 1, 5)
    assert (found[1].exit.code, found[1].exit.run_time_ns, found[1].process.tid) == (7, 20, GONE + 2)


def test_a_signal_and_a_core_are_told() -> None:
    (event,) = lives(Table(), notice(What.EXIT, GONE, first=0x8B))
    assert (event.exit.signal, event.exit.core_dumped, event.exit.code) == (11, 1, 0)


def test_an_exec_that_nobody_saw_does_not_keep_the_former_image() -> None:
    table = Table()
    parent = event_pb2.Process(pid=GONE, exe=b"/bin/bash", argv=b"bash\0", comm=b"bash", uid=5)
    table.fork(parent, GONE + 1, GONE, 10 * A_MS)
    (event,) = lives(table, notice(What.EXEC, GONE + 1, at_ns=20 * A_MS))
    assert (event.process.exe, event.process.argv, event.process.comm) == (b"", b"", b"")
    assert (event.process.uid, event.process.ppid) == (5, GONE)
    assert event.process.exec_boottime_ns == 20 * A_MS
    assert event.process.ancestors == b"/bin/bash\0"


def test_changed_ids_show_at_the_exit() -> None:
    table = Table()
    table.fork(event_pb2.Process(pid=GONE, uid=1, euid=1), GONE + 1, GONE, 0)
    changes = notice(What.UID, GONE + 1, first=2, second=3), notice(What.GID, GONE + 1, first=4, second=5)
    (event,) = lives(table, *changes, notice(What.EXIT, GONE + 1))
    process = event.process
    assert (process.uid, process.euid, process.gid, process.egid) == (2, 3, 4, 5)


def test_the_table_makes_room_and_counts_it() -> None:
    table = Table(size=2)
    for number in range(4):
        table.fork(None, GONE + number, GONE, 0)
    assert (len(table), table.dropped) == (2, 2)
    assert table.known(GONE + 3) is not None


def test_ancestors_that_do_not_fit_are_left_out_whole() -> None:
    parent = event_pb2.Process(exe=b"/p", ancestors=b"a" * 300 + b"\0" + b"b" * 100 + b"\0")
    assert ancestors_below(parent) == b"/p\0" + b"a" * 300 + b"\0"
    parent.exe = b"x" * 4000
    assert ancestors_below(parent) == b""
    assert len(ancestors_below(event_pb2.Process(exe=b"x" * (MAX_ANCESTORS_BYTES - 1)))) == MAX_ANCESTORS_BYTES


def test_the_ledger_numbers_by_cpu_and_leaves_a_gap_for_what_was_lost() -> None:
    ledger, numbers = Ledger(), []
    for cpu, lost in ((0, 0), (1, 0), (0, 3), (1, 0)):
        ledger.lose(cpu, lost)
        event = event_pb2.Event(type=event_pb2.EVENT_TYPE_FORK, process=event_pb2.Process(exe=b"/x"))
        ledger.number(event, cpu)
        ledger.finish(event)
        numbers.append((event.cpu, event.cpu_sequence))
        assert event.flags == event_pb2.EVENT_FLAG_PARENT_IMAGE_MISSING
    assert numbers == [(0, 1), (1, 1), (0, 5), (1, 2)]
    assert ledger.images_missing == 4
    told, unknown = ledger.types()
    assert (told.event_type, told.generated) == (event_pb2.EVENT_TYPE_FORK, 4)
    assert (unknown.generated, unknown.lost[0].count) == (3, 3)
    assert unknown.lost[0].reason == event_pb2.LOSS_REASON_RING_FULL


def test_the_source_and_its_interval_are_settings() -> None:
    config = from_mapping({"sensor": {"source": "netlink", "connection_interval_ms": 250}}, "x")
    assert (config.sensor.source, config.sensor.connection_interval_ms) == ("netlink", 250)
    with pytest.raises(ConfigError, match="connection_interval_ms: got 5"):
        from_mapping({"sensor": {"connection_interval_ms": 5}}, "x")


def test_what_the_source_cannot_see_fits_the_status() -> None:
    assert len(shortfall()) < MAX_TEXT_BYTES - 100


HERE, THERE = b"\x0a\0\0\1", b"\x0a\0\0\2"
OWNER = event_pb2.Process(pid=4, exe=b"/usr/bin/curl")


def tcp(
    local: Endpoint = (HERE, 40000),
    remote: Endpoint = (THERE, 443),
    *,
    cookie: int = 1,
    state: int = SS_ESTABLISHED,
    inode: int = 9,
    answered: bool = True,
) -> TcpSocket:
    return TcpSocket(cookie, state, local, remote, 0, inode, answered, 10, 20)


class World:
    """Connections, with owners that can be found or not."""

    def __init__(self, owned: Mapping[int, int]) -> None:
        self.owned = owned
        self.searches = 0
        self.connections = Connections(self.find, lambda _: (OWNER, event_pb2.Process()), range(32768, 61000))

    def find(self, inodes: Collection[int]) -> Mapping[int, int]:
        self.searches += 1
        return {inode: pid for inode, pid in self.owned.items() if inode in inodes}

    def look(self, *sockets: TcpSocket, at_ns: int = 1) -> list[str]:
        return [described(event) for event in self.connections.look(sockets, at_ns)]

    def end(self, *sockets: TcpSocket, at_ns: int = 1) -> list[str]:
        return [described(event) for event in self.connections.endings(sockets, at_ns)]


def described(event: event_pb2.Event) -> str:
    name = str(event.WhichOneof("body"))
    body = getattr(event, name)
    outcome = event_pb2.ConnectOutcome.Name(body.outcome).rpartition("_")[2]
    return f"{name} {outcome} {body.source_port}-{body.destination_port} pid {event.process.pid}"


def test_a_new_connection_is_told_once_and_its_end_with_its_owner() -> None:
    world = World({9: 4})
    assert world.look(tcp()) == ["tcp_connect ESTABLISHED 40000-443 pid 4"]
    assert world.look(tcp()) == []
    assert world.end(tcp()) == ["tcp_close ESTABLISHED 40000-443 pid 4"]
    assert world.look() == []
    assert world.searches == 1


def test_a_connection_to_a_port_that_listens_is_inbound_and_told_when_it_is_accepted() -> None:
    world = World({9: 4})
    listener = tcp((b"\0" * 4, 443), (b"\0" * 4, 0), cookie=2, state=SS_LISTEN)
    waiting = tcp((HERE, 443), (THERE, 40000), inode=0)
    assert world.look(listener, waiting) == []
    assert world.look(listener, waiting._replace(inode=9)) == ["tcp_accept ESTABLISHED 40000-443 pid 4"]


def test_both_ends_on_one_host_are_told_apart() -> None:
    world = World({9: 4, 8: 5})
    listener = tcp((HERE, 45000), (b"\0" * 4, 0), cookie=2, state=SS_LISTEN)
    found = world.look(
        listener, tcp((HERE, 40000), (HERE, 45000)), tcp((HERE, 45000), (HERE, 40000), cookie=3, inode=8)
    )
    assert [each.split()[0] for each in found] == ["tcp_connect", "tcp_accept"]


def test_an_inbound_connection_whose_listener_is_gone_is_known_by_its_ports() -> None:
    assert World({9: 4}).look(tcp((HERE, 443), (THERE, 40000)))[0].startswith("tcp_accept")


def test_a_short_connection_is_told_at_its_end_without_an_owner() -> None:
    assert World({}).end(tcp(inode=0)) == [
        "tcp_connect ESTABLISHED 40000-443 pid 0",
        "tcp_close ESTABLISHED 40000-443 pid 0",
    ]


def test_a_socket_that_never_had_another_side_is_not_told() -> None:
    assert World({}).end(tcp(remote=(b"\0" * 4, 0))) == []


def test_a_connect_that_got_no_answer_is_told_at_its_end_with_its_owner_and_as_not_followed() -> None:
    world = World({9: 4})
    assert world.look(tcp(state=SS_SYN_SENT, answered=False)) == []
    assert world.end(tcp(inode=0, answered=False)) == ["tcp_connect PENDING 40000-443 pid 4"]


def test_an_owner_that_is_not_found_is_looked_for_a_few_times() -> None:
    world = World({})
    looks = [world.look(tcp()) for _ in range(LOOKS_FOR_AN_OWNER + 1)]
    assert looks == [[]] * (LOOKS_FOR_AN_OWNER - 1) + [["tcp_connect ESTABLISHED 40000-443 pid 0"], []]
    assert world.searches == LOOKS_FOR_AN_OWNER


def test_a_connection_that_one_list_misses_is_not_told_as_gone() -> None:
    world = World({9: 4})
    world.look(tcp())
    assert [world.look(), world.look(tcp())] == [[], []]
    gone = [world.look(at_ns=5) for _ in range(LOOKS_UNTIL_GONE)]
    assert gone == [[]] * (LOOKS_UNTIL_GONE - 1) + [["tcp_close ESTABLISHED 40000-443 pid 4"]]


def test_connections_that_were_there_before_are_not_told_and_their_ends_are() -> None:
    world = World({9: 4})
    world.connections.seed([tcp()], 1)
    assert world.look(tcp()) == []
    assert world.end(tcp()) == ["tcp_close ESTABLISHED 40000-443 pid 4"]
