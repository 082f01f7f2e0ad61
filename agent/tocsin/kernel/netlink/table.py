"""Processes that are known, kept from their fork to their end: a parent or an exit still has its image.

A process that is asked for and not known is read from /proc. The table is
bounded; the oldest entry goes first, and is read again when it is asked for.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tocsin.api.event.v1 import event_pb2
from tocsin.kernel.netlink.procfs import TICK_NS, Snapshot, read_process

MAX_PROCESSES: Final = 32_768
MAX_ANCESTORS_BYTES: Final = 384
"""What an event carries: max_bytes of Process.ancestors."""
UNKNOWN: Final = 0
_GONE_WITH_THE_END: Final = ("mnt_ns", "net_ns", "pid_ns", "uts_ns", "ipc_ns", "cgroup_ns")
"""What /proc does not tell of a process that has ended and was not waited for."""
_IMAGE: Final = ("exe", "cwd", "argv", "exe_inode", "exe_dev", "image_flags")


@dataclass(slots=True)
class Known:
    """A process."""

    process: event_pb2.Process
    threads: int = UNKNOWN
    """Running threads; UNKNOWN of a process that was not seen from its beginning."""


class Table:
    """Known processes by pid."""

    def __init__(self, size: int = MAX_PROCESSES) -> None:
        self._known: dict[int, Known] = {}
        self._size = size
        self.dropped = 0
        """Entries that made room for others."""

    def __len__(self) -> int:
        return len(self._known)

    def seed(self, pids: Iterable[int]) -> int:
        """Reads processes that run; returns how many are known now."""
        for pid in pids:
            self.find(pid)
        return len(self)

    def known(self, pid: int) -> event_pb2.Process | None:
        """A process, if it is in the table."""
        known = self._known.get(pid)
        return known.process if known is not None else None

    def find(self, pid: int) -> event_pb2.Process | None:
        """A process, from /proc if need be; None when it is gone."""
        return self.known(pid) or self._read(pid)

    def look_again(self, pid: int) -> event_pb2.Process | None:
        """A process as it is now, with the image that it had at its exec; None when it is gone."""
        known, now = self.find(pid), read_process(pid).task
        if known is None or now is None or not _same(known.start_boottime_ns, now.start_boottime_ns):
            return None
        for field in ("start_boottime_ns", "exec_boottime_ns", "ancestors", *_IMAGE):
            setattr(now, field, getattr(known, field))
        return now

    def _read(self, pid: int) -> event_pb2.Process | None:
        snapshot = read_process(pid) if pid else Snapshot(None, None)
        process = snapshot.task
        if process is None:
            return None
        if snapshot.image is not None:
            process.MergeFrom(snapshot.image.process)
            process.image_flags |= event_pb2.IMAGE_FLAG_SEEDED
        self._put(Known(process))  # before its parent is read: no circle of pids that changed hands
        process.ancestors = ancestors_below(self.find(process.ppid))
        return process

    def _put(self, known: Known) -> event_pb2.Process:
        if len(self._known) >= self._size and known.process.pid not in self._known:
            del self._known[next(iter(self._known))]
            self.dropped += 1
        self._known[known.process.pid] = known
        return known.process

    def fork(self, parent: event_pb2.Process | None, pid: int, ppid: int, start_ns: int) -> event_pb2.Process:
        """A child begins as its parent's copy. One that is known already, by its start, stays as it is."""
        former = self.known(pid)
        if former is not None and _same(start_ns, former.start_boottime_ns):
            return former
        process = event_pb2.Process()
        if parent is not None:
            process.CopyFrom(parent)
        process.pid = process.tid = pid
        process.ppid, process.start_boottime_ns = ppid, start_ns
        process.ancestors = ancestors_below(parent)
        return self._put(Known(process, threads=1))

    def thread_began(self, pid: int) -> None:
        """A thread was made in a process."""
        known = self._known.get(pid)
        if known is not None and known.threads != UNKNOWN:
            known.threads += 1

    def thread_ended(self, pid: int, tid: int) -> bool:
        """Whether this was the process's last thread; where they were not counted, its first one counts as the last."""
        known = self._known.get(pid)
        if known is None or known.threads == UNKNOWN:
            return tid == pid
        known.threads -= 1
        return known.threads == 0

    def exec(self, pid: int, snapshot: Snapshot, at_ns: int) -> event_pb2.Process:
        """A process has another program, and one thread. What the snapshot lacks of the task is as it was."""
        before = self.known(pid) or event_pb2.Process(pid=pid)
        process = event_pb2.Process()
        if snapshot.task is not None:
            process.CopyFrom(snapshot.task)
            for field in _GONE_WITH_THE_END:
                setattr(process, field, getattr(process, field) or getattr(before, field))
            if _same(before.start_boottime_ns, process.start_boottime_ns):
                process.start_boottime_ns = before.start_boottime_ns
        else:
            process.CopyFrom(before)
            without_image(process)
        if snapshot.image is not None:
            process.MergeFrom(snapshot.image.process)
        process.ancestors = before.ancestors or ancestors_below(self.find(process.ppid))
        process.tid, process.exec_boottime_ns = pid, at_ns
        return self._put(Known(process, threads=1))

    def change_ids(self, pid: int, real: str, real_id: int, effective: str, effective_id: int) -> None:
        """A process changed its user or group; `real` and `effective` name the fields."""
        known = self._known.get(pid)
        if known is not None:
            setattr(known.process, real, real_id)
            setattr(known.process, effective, effective_id)

    def exit(self, pid: int) -> event_pb2.Process | None:
        """Forgets a process that ended; what was known of it."""
        known = self._known.pop(pid, None)
        return known.process if known is not None else None

    def keep(self, running: Iterable[int]) -> None:
        """After datagrams were lost: what does not run any more is forgotten, threads are not sure."""
        alive = set(running)
        self._known = {pid: Known(each.process) for pid, each in self._known.items() if pid in alive}


def without_image(process: event_pb2.Process) -> None:
    """Takes away what an exec changes for certain."""
    blank = event_pb2.Process()
    for field in ("comm", *_IMAGE):
        setattr(process, field, getattr(blank, field))


def _same(exact_ns: int, tick_ns: int) -> bool:
    """Whether two starts are one: a fork's notice tells it microseconds late, /proc in whole ticks."""
    return 0 <= exact_ns - tick_ns < 2 * TICK_NS


def ancestors_below(parent: event_pb2.Process | None) -> bytes:
    """Executables from the parent upwards, each ended by NUL; the oldest are left out when they do not fit."""
    if parent is None or not parent.exe:
        return b""
    names = (parent.exe + b"\0" + parent.ancestors)[: MAX_ANCESTORS_BYTES + 1]
    if len(names) > MAX_ANCESTORS_BYTES:
        return names[: names.rfind(b"\0", 0, MAX_ANCESTORS_BYTES) + 1]
    return names
