"""The thread that reads the proc connector.

A program that lives a millisecond can only be looked up in /proc at once: the
sensor's loop, which comes round every 15 ms, would be too late for most. So
one thread waits for datagrams, looks at what was executed, and hands both on;
it decides nothing. What it cannot keep up with stays in the socket's buffer,
where the kernel counts what does not fit.

The image is read first, for it is gone when the process ends; the rest when
nobody else waits. The thread starts with the first `take`, not before: the
sandbox binds only the thread that enters it, and those that it starts later.

It runs before ordinary processes where the host allows that: on two busy cores
half of the programs were gone when it came, and then one in a hundred. It has
work only when others had the time to fork, so it does not starve them.
"""

import contextlib
import os
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Final

from tocsin.errors import KernelError
from tocsin.kernel.netlink.connector import Connector, Notice, Sequences, What
from tocsin.kernel.netlink.procfs import Image, Snapshot, open_process, read_image, read_task

MAX_WAITING: Final = 65_536
"""Observations kept for the loop, each of at most about 5 KiB."""
MAX_TOGETHER: Final = 256
"""Handed on together at the latest; as many descriptors are open."""
PAUSE_S: Final = 0.005
"""Until the loop has made room."""
SWITCH_INTERVAL_S: Final = 0.000_5
"""The interpreter's 5 ms between threads is longer than many programs live."""
EXEC_TAKES_NS: Final = 500_000
"""/proc shows the new program already while the kernel loads it; it gives notice afterwards."""


@dataclass(frozen=True, slots=True)
class Glance:
    """A datagram; after an exec, with the image, and a descriptor of /proc/PID for the rest."""

    notice: Notice
    lost_before: int
    """Datagrams of the same CPU that were lost since the one before."""
    folder: int | None = None
    image: Image | None = None
    seen_ns: int = 0
    """CLOCK_MONOTONIC after the image was read."""


@dataclass(frozen=True, slots=True)
class Observation:
    """A datagram and, after an exec, what was seen of the process."""

    notice: Notice
    lost_before: int
    snapshot: Snapshot


class Reader:
    """Reads a Connector until it is stopped."""

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._sequences = Sequences()
        self._waiting: deque[Observation] = deque()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="proc-connector", daemon=True)
        with contextlib.suppress(PermissionError):  # the thread inherits it; later there is no privilege to set it
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))

    def take(self, limit: int) -> list[Observation]:
        """At most `limit` observations in their order. Raises KernelError when the thread has died."""
        if self._thread.ident is None:
            sys.setswitchinterval(SWITCH_INTERVAL_S)
            self._thread.start()
            _be_ordinary()
        elif not self._thread.is_alive():
            raise KernelError("the reader of the proc connector has died: see the log; the sensor is to be restarted")
        return [self._waiting.popleft() for _ in range(min(limit, len(self._waiting)))]

    def stop(self) -> None:
        """Ends the thread."""
        self._ended = True
        if self._thread.ident is None:
            _be_ordinary()
        else:
            self._thread.join()

    def _run(self) -> None:
        together: list[Glance] = []
        while not self._ended:
            if len(self._waiting) >= MAX_WAITING:
                time.sleep(PAUSE_S)
                continue
            notice = self._connector.receive(wait=not together)
            if notice is not None:
                together.append(self._glance(notice))
            if notice is None or len(together) >= MAX_TOGETHER:
                self._waiting.extend(completed(each) for each in without_doubtful(together))
                together = []

    def _glance(self, notice: Notice) -> Glance:
        lost = self._sequences.missing_before(notice)
        folder = open_process(notice.pid) if notice.what == What.EXEC else None
        if folder is None:
            return Glance(notice, lost)
        return Glance(notice, lost, folder, read_image(folder), time.monotonic_ns())


def _be_ordinary() -> None:
    """Takes the calling thread back among all others."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def completed(glance: Glance) -> Observation:
    """With what remains to be read; closes the descriptor."""
    task = None
    if glance.folder is not None:
        task = read_task(glance.folder)
        os.close(glance.folder)
    return Observation(glance.notice, glance.lost_before, Snapshot(glance.image, task))


def without_doubtful(glances: list[Glance]) -> list[Glance]:
    """Takes away images that may be those of a later exec of the same process.

    `glances` end where the socket was empty, so a later exec stands in them.
    """
    later_ns: dict[int, int] = {}
    kept = []
    for each in reversed(glances):
        notice = each.notice
        if notice.what == What.EXEC:
            doubtful = each.seen_ns >= later_ns.get(notice.pid, sys.maxsize) - EXEC_TAKES_NS
            later_ns[notice.pid] = notice.monotonic_ns
            kept.append(replace(each, image=None) if doubtful else each)
        else:
            kept.append(each)
    return kept[::-1]
