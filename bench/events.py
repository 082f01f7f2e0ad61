"""Batches to measure with: recorded ones where there is a recording, else made from the tests' ordinary commands.

What is made has the form of real records: each command is a fork, an exec and an
exit, with every field that the kernel fills.
"""

import ipaddress
import itertools
from collections.abc import Iterator
from pathlib import Path

import yaml

from tocsin.api.event.v1 import batch_pb2, event_pb2
from tocsin.records import framing, recording

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "agent" / "tocsin" / "sample.recording"
COMMANDS = ROOT / "tests" / "data" / "benign_commands.yml"
CONNECTIONS = ROOT / "tests" / "data" / "benign_connections.yml"
EVENTS_A_BATCH = 500
USERS = {0: "root", 33: "www-data", 1000: "deploy"}


def batches() -> tuple[list[bytes], str]:
    """Serialised batches of EVENTS_A_BATCH events each, and where they come from."""
    events = recorded(SAMPLE) if SAMPLE.exists() else []
    source = f"{len(events)} recorded events"
    if len(events) < EVENTS_A_BATCH:
        events = [event.SerializeToString() for event in made()]
        source = f"{len(events)} events made from the tests' ordinary commands and connections"
    rounded = list(itertools.islice(itertools.cycle(events), -len(events) % EVENTS_A_BATCH + len(events)))
    users = [batch_pb2.User(uid=uid, name=name) for uid, name in USERS.items()]
    header = framing.header_field(batch_pb2.BatchHeader(users=users).SerializeToString())
    parts = [rounded[at : at + EVENTS_A_BATCH] for at in range(0, len(rounded), EVENTS_A_BATCH)]
    return [b"".join(map(framing.event_field, part)) + header for part in parts], source


def recorded(path: Path) -> list[bytes]:
    """The events of a recording, losses left out."""
    events: list[bytes] = []
    with path.open("rb") as file:
        for batch in recording.batches(file, str(path)):
            index = framing.index(batch)
            kinds = enumerate(index.types)
            events += [index.event(at) for at, kind in kinds if kind not in (0, event_pb2.EVENT_TYPE_LOSS)]
    return events


NAMESPACE = 4026531840


def made() -> Iterator[event_pb2.Event]:
    """Fork, exec, exit of each ordinary command; each ordinary connection."""
    for number, values in enumerate(yaml.safe_load(COMMANDS.read_text())):
        process, parent = of(values, number)
        kinds = event_pb2.EventType
        yield event(kinds.EVENT_TYPE_FORK, number, parent, parent, fork=event_pb2.Fork(child_pid=process.pid))
        body = event_pb2.Exec(caller_tid=process.pid, exe_mode=0o100755, exe_nlink=1, argc=3, envc=20, argv_bytes=60)
        yield event(kinds.EVENT_TYPE_EXEC, number, process, parent, exec=body)
        yield event(kinds.EVENT_TYPE_EXIT, number, process, parent, exit=event_pb2.Exit(run_time_ns=2_000_000))
    for number, values in enumerate(yaml.safe_load(CONNECTIONS.read_text())):
        process, parent = of(values, number)
        connection = event_pb2.Connection(
            direction=event_pb2.DIRECTION_OUTBOUND,
            outcome=event_pb2.CONNECT_OUTCOME_ESTABLISHED,
            protocol=6,
            source_port=int(values.get("SourcePort", 40000)),
            destination_port=int(values.get("DestinationPort", 443)),
            source_ip=packed(values.get("SourceIp", "10.0.0.5")),
            destination_ip=packed(values.get("DestinationIp", "198.51.100.20")),
        )
        yield event(event_pb2.EVENT_TYPE_TCP_CONNECT, number, process, parent, tcp_connect=connection)


def packed(address: object) -> bytes:
    """An address as it stands in a record."""
    return ipaddress.ip_address(str(address)).packed


def of(values: dict[str, object], number: int) -> tuple[event_pb2.Process, event_pb2.Process]:
    """The process and the parent of a described event."""
    user = next((uid for uid, name in USERS.items() if name == values.get("User")), 1000)
    process = image(2000 + number, str(values.get("Image", "")), str(values.get("CommandLine", "")), user)
    parent = image(900 + number, str(values.get("ParentImage", "")), str(values.get("ParentCommandLine", "")), user)
    return process, parent


def image(pid: int, exe: str, command: str, uid: int) -> event_pb2.Process:
    """A process with every field that the kernel fills."""
    return event_pb2.Process(
        pid=pid,
        tid=pid,
        start_boottime_ns=10**12 + pid,
        ppid=1,
        uid=uid,
        euid=uid,
        gid=uid,
        egid=uid,
        suid=uid,
        sgid=uid,
        login_uid=uid,
        cap_effective=0 if uid else (1 << 41) - 1,
        cap_permitted=0 if uid else (1 << 41) - 1,
        cgroup_id=4711,
        mnt_ns=NAMESPACE,
        net_ns=NAMESPACE,
        pid_ns=NAMESPACE,
        user_ns=NAMESPACE,
        uts_ns=NAMESPACE,
        ipc_ns=NAMESPACE,
        cgroup_ns=NAMESPACE,
        session_id=pid,
        comm=exe.rpartition("/")[2][:15].encode(),
        exe=exe.encode(),
        cwd=b"/srv/app",
        argv=command.replace(" ", "\0").encode() + b"\0",
        exe_inode=131_000 + pid,
        exe_dev=0xFE00001,
        exec_boottime_ns=10**12 + pid,
    )


def event(
    kind: event_pb2.EventType.ValueType,
    number: int,
    process: event_pb2.Process,
    parent: event_pb2.Process,
    **body: event_pb2.Fork | event_pb2.Exec | event_pb2.Exit | event_pb2.Connection,
) -> event_pb2.Event:
    """An event with its header."""
    head = event_pb2.Event(boottime_ns=10**12 + number, cpu_sequence=number + 1, cpu=1, type=kind)
    head.process.CopyFrom(process)
    head.parent.CopyFrom(parent)
    for name, message in body.items():
        getattr(head, name).CopyFrom(message)
    return head
