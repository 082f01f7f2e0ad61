"""What each process of the agent gives away: one function per role, readable as a list.

Called once, after everything was imported and opened (afterwards the standard
library cannot be read any more), by a process with one thread. Steps marked
required raise KernelError when they cannot be taken; the others are taken where
the kernel and the caller's privileges allow it, and reported either way. Not
root: Landlock, seccomp and the limits hold all the same.
"""

import os
import resource
from collections.abc import Mapping
from pathlib import Path

from tocsin.api.event.v1.batch_pb2 import SOURCE_BCC, SOURCE_CORE, SOURCE_NETLINK, Source
from tocsin.sandbox import landlock, seccomp
from tocsin.sandbox.capabilities import Capability, bound, keep_only
from tocsin.sandbox.limits import file_size_limit, limit
from tocsin.sandbox.privileges import (
    become,
    die_with_parent,
    no_new_privileges,
    not_dumpable,
    require_one_thread,
)
from tocsin.sandbox.report import Recorder, SandboxReport, Step

_OTHERS_PROC = frozenset({Capability.SYS_PTRACE, Capability.DAC_READ_SEARCH})
"""For executable, directory, namespaces and descriptors of other users' processes in /proc."""
ENRICHER_MEMORY_BYTES = 512 << 20
"""Of address space."""
_EBPF = frozenset({Capability.BPF, Capability.PERFMON, Capability.SYS_RESOURCE})
SENSOR_CAPABILITIES: Mapping[Source.ValueType, frozenset[Capability]] = {
    SOURCE_CORE: _EBPF | _OTHERS_PROC,
    SOURCE_BCC: _EBPF | _OTHERS_PROC,
    SOURCE_NETLINK: _OTHERS_PROC,
}
"""What a source needs once it is open; one that is not named here needs nothing."""


def enter_evaluator(uid: int, memory_bytes: int, *, kill_on_violation: bool = False) -> SandboxReport:
    """No files, no network, no processes, `memory_bytes` of address space. Raises KernelError."""
    recorder = Recorder("evaluator")
    _lose_privileges(recorder, uid)
    recorder.take("limits", lambda: limit({**_computing_limits(memory_bytes), resource.RLIMIT_NPROC: 0}), required=True)
    recorder.take("landlock", lambda: landlock.restrict(deny_tcp=True))
    recorder.take("seccomp", lambda: seccomp.allow_only("evaluator", kill=kill_on_violation), required=True)
    return recorder.report()


def enter_courier(uid: int, runtime_dir: Path) -> SandboxReport:
    """Network, threads, and the files below `runtime_dir`; nothing else. Raises KernelError.

    A courier that has changed into its directory passes Path(): the parents may
    be closed to its user.
    """
    recorder = Recorder("courier")
    _lose_privileges(recorder, uid)
    recorder.take("limits", lambda: limit({resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: 4096}))
    recorder.take("landlock", lambda: _courier_files(runtime_dir))
    recorder.take("seccomp", lambda: seccomp.allow_only("courier"), required=True)
    return recorder.report()


def enter_enricher(uid: int) -> SandboxReport:
    """Every file may be read, none written; no network, no processes, threads from now on. Raises KernelError.

    Without Landlock: under it /proc/<pid>/exe and /proc/<pid>/root of others are closed, whatever the capabilities.
    """
    recorder = Recorder("enricher")
    _lose_privileges(recorder, uid, _OTHERS_PROC)
    recorder.take("limits", lambda: limit(_computing_limits(ENRICHER_MEMORY_BYTES)), required=True)
    recorder.take("seccomp", lambda: seccomp.allow_only("enricher"), required=True)
    return recorder.report()


def enter_sensor(source: Source.ValueType = SOURCE_CORE) -> SandboxReport:
    """Root with the source's capabilities, no programs, no internet sockets. After the source was opened and seeded.

    Raises KernelError.
    """
    kept = SENSOR_CAPABILITIES.get(source, frozenset())
    recorder = Recorder("sensor")
    recorder.take("threads", require_one_thread, required=True)
    recorder.take("capability bounds", lambda: bound(kept))
    recorder.take("capabilities", lambda: keep_only(kept))
    parent_pid = os.getppid()
    recorder.take("parent death", lambda: die_with_parent(parent_pid), required=True)
    recorder.take("no new privileges", no_new_privileges, required=True)
    recorder.take("limits", lambda: limit({resource.RLIMIT_CORE: 0}))
    recorder.take("seccomp", seccomp.deny_for_sensor)
    return recorder.report()


def _lose_privileges(recorder: Recorder, uid: int, kept: frozenset[Capability] = frozenset()) -> None:
    parent_pid = os.getppid()
    recorder.take("threads", require_one_thread, required=True)
    recorder.take("capability bounds", lambda: bound(kept))
    recorder.take("user", lambda: become(uid, keeps_capabilities=bool(kept)))
    recorder.take("capabilities", lambda: keep_only(kept))
    recorder.take("parent death", lambda: die_with_parent(parent_pid), required=True)
    recorder.take("no new privileges", no_new_privileges, required=True)
    recorder.take("ptrace", not_dumpable)


def _courier_files(runtime_dir: Path) -> Step:
    """gRPC's random numbers come from the device, not from getrandom, and it aborts without them."""
    return landlock.restrict(["/dev/urandom"], [str(runtime_dir)], deny_tcp=False)


def _computing_limits(memory_bytes: int) -> dict[int, int]:
    """Of a process that writes no file."""
    return {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: file_size_limit(),
        resource.RLIMIT_NOFILE: 64,
    }
