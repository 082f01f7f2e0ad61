"""Acts that no program saw: the kernel skips a program on a CPU where it is running already.

That happens where a program may be preempted or interrupted (every tracepoint's since Linux 7): another task or an
interrupt reaches the same tracepoint on the same CPU. The kernel counts it in the program (recursion_misses), and
nobody else can.
"""

import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tocsin.api.event.v1 import event_pb2 as pb
from tocsin.kernel import libbpf

REFRESH_S: Final = 1.0
_PROGRAM: Final = Path("anon_inode:bpf-prog")
"""What the link of a program's descriptor says."""
_TYPES: Final = {
    "on_exec": pb.EVENT_TYPE_EXEC,
    "on_fork": pb.EVENT_TYPE_FORK,
    "on_exit": pb.EVENT_TYPE_EXIT,
    "on_signal": pb.EVENT_TYPE_SIGNAL,
    "on_module_load": pb.EVENT_TYPE_MODULE_LOAD,
    "on_module_unload": pb.EVENT_TYPE_MODULE_UNLOAD,
}
"""Programs that tell one type; the others tell several."""
_TELLS_NOTHING: Final = frozenset({"on_free"})


class Skipped:
    """Counts of the attached programs among some descriptors, which are borrowed."""

    def __init__(self, fds: Iterable[int]) -> None:
        """`fds`: those of a handover; what is no program is left out."""
        self._programs = {fd: libbpf.program_info(fd).name for fd in fds if _is_program(fd)}
        self._counts: Counter[int] = Counter()
        self._due_s = 0.0

    @property
    def programs(self) -> frozenset[str]:
        """Names, cut at 15 bytes."""
        return frozenset(self._programs.values())

    def counts(self) -> Counter[int]:
        """How often a program was skipped, by the event type that it tells, 0 where it tells several.

        As it was at most a second ago. Raises KernelError.
        """
        now_s = time.monotonic()
        if now_s >= self._due_s:
            self._due_s = now_s + REFRESH_S
            self._counts = by_type(libbpf.program_info(fd) for fd in self._programs)
        return self._counts


def by_type(programs: Iterable[libbpf.ProgramInfo]) -> Counter[int]:
    """Sums what the programs say, by the type that they tell."""
    types = {name[: libbpf.PROGRAM_NAME_BYTES]: kind for name, kind in _TYPES.items()}
    counts: Counter[int] = Counter()
    for program in programs:
        if program.skipped and program.name not in _TELLS_NOTHING:
            counts[types.get(program.name, pb.EVENT_TYPE_UNSPECIFIED)] += program.skipped
    return counts


def _is_program(fd: int) -> bool:
    return Path(f"/proc/self/fd/{fd}").readlink() == _PROGRAM
