"""Whether the programs read what they say: known acts, and every field of what is told of them.

A compiler that lays out one struct otherwise than the kernel does not fail: the
programs load, and a field is silently another. So a child executes a program,
connects to this process, says something and ends; /proc, both ends of the
connection and the clock say what has to come.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.protobuf.message import Message

from tocsin.api.event.v1 import batch_pb2, event_pb2
from tocsin.errors import KernelError
from tocsin.kernel import filters
from tocsin.kernel.netlink.procfs import TICK_NS, read_process
from tocsin.kernel.source import EventSource

PROVED: Final = filters.wanted(["EXEC", "FORK", "EXIT", "TCP_CONNECT", "TCP_ACCEPT", "TCP_CLOSE"])
"""Event types of the known acts."""
TIMEOUT_S: Final = 5.0
POLL_S: Final = 0.01
SO_COOKIE: Final = 57
STATUS: Final = 7
GREETING: Final = b"tocsin"
PROGRAM: Final = f"""
import socket, sys
peer = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
peer.sendall({GREETING!r})
sys.stdin.read()
sys.exit({STATUS})
"""
BATCH_BYTES: Final = 1 << 20
ANCESTOR_BYTES: Final = 191
"""Of one ancestor's path: bpf/maps/maps.h."""
KEPT_ARGV_BYTES: Final = 512
"""What is surely kept of the arguments of a process that was there before: its image has 1472 bytes in all."""
CUT: Final = (0, 0)
"""In the place of a range: only the beginning is compared."""
CPUS: Final = os.sysconf("SC_NPROCESSORS_CONF")
LOOPBACK: Final = bytes((127, 0, 0, 1))

Ranges = dict[str, tuple[int, int]]
"""Least and greatest value of fields that cannot be known exactly, by their path."""


@dataclass(frozen=True, slots=True)
class Known:
    """A process, as /proc has it."""

    process: event_pb2.Process
    exec: event_pb2.Exec
    ancestors: bytes


@dataclass(frozen=True, slots=True)
class Acts:
    """What was done, as others than the programs know it."""

    child: Known
    own: Known
    """This process."""
    parent: Known
    """Its parent."""
    begin_ns: int
    end_ns: int
    source_port: int
    destination_port: int
    accepted_cookie: int


def prove_fields(source: EventSource) -> None:
    """Does the acts and compares. `source` tells PROVED, of all processes. Raises KernelError for any difference."""
    source.seed()
    acts = do_acts()
    told = _told(source, acts)
    for kind, (expected, ranges) in expectations(acts).items():
        name = event_pb2.EventType.Name(kind)
        if kind not in told:
            raise KernelError(f"{name} of a known act was not told within {TIMEOUT_S:.0f} s: the programs are not used")
        wrong = differences(told[kind], expected, ranges)
        if wrong:
            raise KernelError(f"the programs misread the kernel and are not used: {name}: {'; '.join(wrong)}")


def do_acts() -> Acts:
    """A child's life, and what /proc says meanwhile. Raises KernelError when it cannot be done."""
    begin_ns = _now_ns()
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        listener.settimeout(TIMEOUT_S)
        port = listener.getsockname()[1]
        command = [sys.executable, "-I", "-S", "-c", PROGRAM, str(port)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, cwd="/", env={"TOCSIN": "proof"}) as child:
            try:
                accepted, (_, source_port) = listener.accept()
                with closing(accepted):
                    cookie = int.from_bytes(accepted.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), sys.byteorder)
                    accepted.settimeout(TIMEOUT_S)
                    known, own, parent = map(_known, (child.pid, os.getpid(), os.getppid()))
                    if accepted.recv(len(GREETING), socket.MSG_WAITALL) != GREETING:
                        raise KernelError("the known act cannot be done: the child does not say what it should")
                    child.communicate(b"", TIMEOUT_S)
            except OSError as error:
                child.kill()
                raise KernelError(f"the known act cannot be done: {error}") from error
    return Acts(known, own, parent, begin_ns, _now_ns(), source_port, port, cookie)


def _now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _known(pid: int) -> Known:
    snapshot = read_process(pid)
    if snapshot.task is None or snapshot.image is None:
        raise KernelError(f"/proc does not tell of process {pid}: mount it without hidepid")
    process = event_pb2.Process()
    process.CopyFrom(snapshot.task)
    process.MergeFrom(snapshot.image.process)
    process.exe_dev, process.exe_inode = _mapped(pid, process.exe)
    return Known(process, snapshot.image.exec, b"".join(exe + b"\0" for exe in _ancestors(pid)))


def _mapped(pid: int, exe: bytes) -> tuple[int, int]:
    """Device and inode of the executable as the kernel has them: on some file systems stat tells others."""
    for line in Path(f"/proc/{pid}/maps").read_bytes().splitlines():
        fields = line.split(None, 5)
        if len(fields) == 6 and fields[5].removesuffix(b" (deleted)") == exe:
            major, minor = (int(part, 16) for part in fields[3].split(b":"))
            return major << 20 | minor, int(fields[4])
    raise KernelError(f"/proc/{pid}/maps does not name {exe!r}")


def _ancestors(pid: int) -> Iterator[bytes]:
    """Executables of parent, grandparent and so on."""
    while pid := int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()[1]):
        try:
            yield os.fsencode(Path(f"/proc/{pid}/exe").readlink()).removesuffix(b" (deleted)")[-ANCESTOR_BYTES:]
        except OSError:
            return


def expectations(acts: Acts) -> "dict[event_pb2.EventType.ValueType, tuple[event_pb2.Event, Ranges]]":
    """What each event has to say, by its type."""
    span = (0, acts.end_ns - acts.begin_ns)
    child_pid = acts.child.process.pid
    executed = event_pb2.Exec()
    executed.CopyFrom(acts.child.exec)
    executed.caller_tid = child_pid
    executed.filename = os.fsencode(sys.executable)
    own = acts.own.process
    executed.previous_euid, executed.previous_egid = own.euid, own.egid
    executed.previous_cap_permitted = own.cap_permitted
    fork = event_pb2.Fork(child_pid=child_pid)
    start = _start_range(acts.child)
    # How the C library makes a process is its own affair; a flag of the kernel's is below bit 40.
    fork_ranges = {"fork.child_start_boottime_ns": start, "fork.clone_flags": (0, 1 << 40)}
    connect, closed = _connection(acts, outbound=True), _connection(acts, outbound=True)
    closed.sent_bytes = len(GREETING)
    cookie = (1, (1 << 64) - 1)
    found = {
        event_pb2.EVENT_TYPE_FORK: _by(acts, acts.own, fork_ranges, fork=fork),
        event_pb2.EVENT_TYPE_EXEC: _by(acts, acts.child, {}, exec=executed),
        event_pb2.EVENT_TYPE_TCP_CONNECT: _by(
            acts,
            acts.child,
            {"tcp_connect.duration_ns": span, "tcp_connect.socket_cookie": cookie},
            tcp_connect=connect,
        ),
        event_pb2.EVENT_TYPE_TCP_ACCEPT: _by(
            acts, acts.own, {"tcp_accept.duration_ns": span}, tcp_accept=_connection(acts, outbound=False)
        ),
        event_pb2.EVENT_TYPE_TCP_CLOSE: _by(
            acts, acts.child, {"tcp_close.duration_ns": span, "tcp_close.socket_cookie": cookie}, tcp_close=closed
        ),
        event_pb2.EVENT_TYPE_EXIT: _by(acts, acts.child, {"exit.run_time_ns": span}, exit=event_pb2.Exit(code=STATUS)),
    }
    for kind, (event, _) in found.items():
        event.type = kind
    return found


def _connection(acts: Acts, *, outbound: bool) -> event_pb2.Connection:
    return event_pb2.Connection(
        direction=event_pb2.DIRECTION_OUTBOUND if outbound else event_pb2.DIRECTION_INBOUND,
        outcome=event_pb2.CONNECT_OUTCOME_ESTABLISHED,
        protocol=socket.IPPROTO_TCP,
        source_port=acts.source_port,
        destination_port=acts.destination_port,
        socket_cookie=0 if outbound else acts.accepted_cookie,
        source_ip=LOOPBACK,
        destination_ip=LOOPBACK,
    )


def _by(acts: Acts, actor: Known, ranges: Ranges, **body: Message) -> tuple[event_pb2.Event, Ranges]:
    """An event by one of the two processes. `body`: by its name in Event."""
    parent = acts.own if actor is acts.child else acts.parent
    event = event_pb2.Event(process=actor.process, parent=parent.process)
    for name, message in body.items():
        getattr(event, name).CopyFrom(message)
    event.process.ancestors = actor.ancestors
    found: Ranges = {
        "boottime_ns": (acts.begin_ns, acts.end_ns),
        "cpu_sequence": (1, (1 << 64) - 1),
        "cpu": (0, CPUS - 1),
        **_image_ranges("process", actor, acts),
        **_image_ranges("parent", parent, acts),
        **ranges,
    }
    return event, found


def _image_ranges(where: str, known: Known, acts: Acts) -> Ranges:
    """What is not known exactly of a process: times, and what is cut of one that was there before."""
    found: Ranges = {f"{where}.start_boottime_ns": _start_range(known)}
    if known is acts.child:
        found[f"{where}.exec_boottime_ns"] = acts.begin_ns, acts.end_ns
        return found
    seeded = int(event_pb2.IMAGE_FLAG_SEEDED)
    found[f"{where}.image_flags"] = seeded, seeded
    if len(known.process.argv) > KEPT_ARGV_BYTES:
        found[f"{where}.image_flags"] = seeded, seeded | event_pb2.IMAGE_FLAG_ARGV_TRUNCATED
        found[f"{where}.argv"] = CUT
    return found


def _start_range(known: Known) -> tuple[int, int]:
    start_ns = known.process.start_boottime_ns
    return start_ns, start_ns + TICK_NS - 1


def _told(source: EventSource, acts: Acts) -> dict[int, event_pb2.Event]:
    """What the source says of the acts, by type: waits until all is there, or TIMEOUT_S have passed."""
    found: dict[int, event_pb2.Event] = {}
    deadline_s = time.monotonic() + TIMEOUT_S
    while PROVED - found.keys() and time.monotonic() < deadline_s:
        drained = source.drain(BATCH_BYTES)
        for event in batch_pb2.Batch.FromString(drained.body).events:
            if _is_of(event, acts):
                found[event.type] = event
        source.commit(drained.end)
        if drained.end == drained.start:
            time.sleep(POLL_S)
    return found


def _is_of(event: event_pb2.Event, acts: Acts) -> bool:
    child, own = acts.child.process.pid, acts.own.process.pid
    if event.type == event_pb2.EVENT_TYPE_FORK:
        return event.fork.child_pid == child
    if event.type == event_pb2.EVENT_TYPE_TCP_ACCEPT:
        return event.process.pid == own and event.tcp_accept.destination_port == acts.destination_port
    return event.process.pid == child


def differences(got: Message, expected: Message, ranges: Ranges, where: str = "") -> list[str]:
    """Every field that is not as expected, with both values; fields of nested messages by their path."""
    found: list[str] = []
    for field in expected.DESCRIPTOR.fields:
        path = f"{where}{field.name}"
        if field.message_type is not None:
            if got.HasField(field.name) != expected.HasField(field.name):
                found.append(f"{path}: got {got.HasField(field.name)}, expected {expected.HasField(field.name)}")
            elif expected.HasField(field.name):
                found += differences(getattr(got, field.name), getattr(expected, field.name), ranges, f"{path}.")
            continue
        value, wanted = getattr(got, field.name), getattr(expected, field.name)
        if not _fits(value, wanted, ranges.get(path), cut=field.name == "ancestors"):
            found.append(f"{path}: got {value!r}, expected {_words(wanted, ranges.get(path))}")
    return found


def _fits(got: int | bytes, expected: int | bytes, allowed: tuple[int, int] | None, *, cut: bool) -> bool:
    if isinstance(got, bytes) and isinstance(expected, bytes):
        if allowed == CUT:
            return got[:KEPT_ARGV_BYTES] == expected[:KEPT_ARGV_BYTES]
        return got == expected or (cut and len(got) > ANCESTOR_BYTES and expected.startswith(got))
    if allowed is not None:
        return allowed[0] <= int(got) <= allowed[1]
    return got == expected


def _words(expected: int | bytes, allowed: tuple[int, int] | None) -> str:
    return repr(expected) if allowed is None or allowed == CUT else f"{allowed[0]} to {allowed[1]}"
