"""Observations of the proc connector become EXEC, FORK and EXIT events, in their order."""

from collections.abc import Iterable, Iterator

from tocsin.api.event.v1.event_pb2 import (
    EVENT_TYPE_EXEC,
    EVENT_TYPE_EXIT,
    EVENT_TYPE_FORK,
    EXEC_FLAG_SETGID,
    EXEC_FLAG_SETUID,
    Event,
    Exec,
    Exit,
    Fork,
    Process,
)
from tocsin.kernel.netlink.connector import Notice, What
from tocsin.kernel.netlink.reader import Observation
from tocsin.kernel.netlink.table import Table


def events(observations: Iterable[Observation], table: Table, offset_ns: int) -> Iterator[tuple[int, Event]]:
    """CPU and event, without flags and number; keeps the table up to date.

    `offset_ns`: CLOCK_BOOTTIME less CLOCK_MONOTONIC.
    """
    for observation in observations:
        notice = observation.notice
        at_ns = notice.monotonic_ns + offset_ns
        match notice.what:
            case What.EXEC:
                yield notice.cpu, _exec(observation, table, at_ns)
            case What.FORK if notice.first != notice.second:
                table.thread_began(notice.second)
            case What.FORK:
                yield notice.cpu, _fork(notice, table, at_ns)
            case What.EXIT:
                if table.thread_ended(notice.pid, notice.tid):
                    yield notice.cpu, _exit(notice, table, at_ns)
            case What.UID:
                table.change_ids(notice.pid, "uid", notice.first, "euid", notice.second)
            case What.GID:
                table.change_ids(notice.pid, "gid", notice.first, "egid", notice.second)


def _exec(observation: Observation, table: Table, at_ns: int) -> Event:
    pid, image = observation.notice.pid, observation.snapshot.image
    before = table.known(pid)
    event = Event(boottime_ns=at_ns, type=EVENT_TYPE_EXEC)
    event.process.CopyFrom(table.exec(pid, observation.snapshot, at_ns))
    event.exec.CopyFrom(image.exec if image is not None else Exec())
    _add_previous_ids(event.exec, event.process)
    event.exec.previous_cap_permitted = (before or event.process).cap_permitted
    add_parent(event, table)
    return event


def _add_previous_ids(body: Exec, process: Process) -> None:
    """A set-id program changes the effective id from the real one; others leave it. The kernel says neither."""
    set_uid, set_gid = body.exec_flags & EXEC_FLAG_SETUID, body.exec_flags & EXEC_FLAG_SETGID
    body.previous_euid = process.uid if set_uid else process.euid
    body.previous_egid = process.gid if set_gid else process.egid


def _fork(notice: Notice, table: Table, at_ns: int) -> Event:
    parent = table.find(notice.pid)
    event = Event(boottime_ns=at_ns, type=EVENT_TYPE_FORK)
    event.process.CopyFrom(parent if parent is not None else Process(pid=notice.pid))
    event.process.tid = notice.tid
    child = table.fork(parent, notice.second, notice.pid, at_ns)
    event.fork.CopyFrom(Fork(child_pid=child.pid, child_start_boottime_ns=child.start_boottime_ns))
    add_parent(event, table)
    return event


def _exit(notice: Notice, table: Table, at_ns: int) -> Event:
    process = table.exit(notice.pid)
    event = Event(boottime_ns=at_ns, type=EVENT_TYPE_EXIT)
    event.process.CopyFrom(process if process is not None else Process(pid=notice.pid))
    event.process.tid = notice.tid
    start_ns, status = event.process.start_boottime_ns, notice.first
    event.exit.CopyFrom(
        Exit(
            code=status >> 8 & 0xFF,
            signal=status & 0x7F,
            core_dumped=status >> 7 & 1,
            run_time_ns=max(0, at_ns - start_ns) if start_ns else 0,
        )
    )
    add_parent(event, table)
    return event


def add_parent(event: Event, table: Table) -> None:
    """The parent as it is known, else its pid alone."""
    pid = event.process.ppid
    parent = table.find(pid)
    event.parent.CopyFrom(parent if parent is not None else Process(pid=pid))
    event.parent.ClearField("ancestors")
