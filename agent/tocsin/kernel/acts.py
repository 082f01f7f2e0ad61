"""Which programs and system calls tell which events.

The programs do not know system call numbers: this table is turned into a map
from number to act for the running architecture, 64-bit and 32-bit, with the
numbers of libseccomp. A program that no wanted event needs is not loaded, and
a call that none needs costs a lookup in the kernel.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from tocsin.errors import KernelError
from tocsin.kernel.filters import event_types

try:
    import pyseccomp
except (ImportError, OSError, RuntimeError):  # libseccomp.so.2 is a package of its own
    pyseccomp = None

SYSCALL_NUMBERS: Final = 512


class Act(IntEnum):
    """What a system call does; enum act of bpf/base/acts.h."""

    NONE = 0
    ACCEPT = 1
    SOCKETCALL = 2
    OPEN = 3
    CREAT = 4
    OPENAT = 5
    OPENAT2 = 6
    UNLINK = 7
    UNLINKAT = 8
    RMDIR = 9
    RENAME = 10
    RENAMEAT = 11
    LINK = 12
    LINKAT = 13
    SYMLINK = 14
    SYMLINKAT = 15
    MKDIR = 16
    MKDIRAT = 17
    MKNOD = 18
    MKNODAT = 19
    CHMOD = 20
    FCHMOD = 21
    FCHMODAT = 22
    CHOWN = 23
    FCHOWN = 24
    FCHOWNAT = 25
    SETXATTR = 26
    FSETXATTR = 27
    REMOVEXATTR = 28
    FREMOVEXATTR = 29
    TRUNCATE = 30
    FTRUNCATE = 31
    UTIME = 32
    UTIMENSAT = 33
    SETUID = 34
    CAPSET = 35
    PTRACE = 36
    PROCESS_WRITE = 37
    PRCTL = 38
    SECCOMP = 39
    UNSHARE = 40
    SETNS = 41
    MOUNT = 42
    MOVE_MOUNT = 43
    UMOUNT = 44
    PIVOT_ROOT = 45
    CHROOT = 46
    MEMFD_CREATE = 47
    MMAP = 48
    MMAP_OLD = 49
    MPROTECT = 50
    INIT_MODULE = 51
    DELETE_MODULE = 52
    BPF = 53
    KEXEC = 54
    KEXEC_FILE = 55
    PERF_EVENT_OPEN = 56
    IOPERM = 57
    IOPL = 58
    SOCKET = 59
    BIND = 60
    CONNECT = 61
    FCHMODAT2 = 62
    SETXATTRAT = 63
    REMOVEXATTRAT = 64
    TRUNCATE64 = 65
    FTRUNCATE64 = 66
    RENAMEAT2 = 67
    FUTIMESAT = 68
    UMOUNT_OLD = 69


@dataclass(frozen=True, slots=True)
class Teller:
    """A program that on_syscall calls."""

    program: str
    types: frozenset[int]
    """Event types that it tells, or whose events need it."""
    syscalls: Mapping[Act, tuple[str, ...]]
    """Names of the system calls of each act."""


@dataclass(frozen=True, slots=True)
class Hook:
    """A program that is attached by itself."""

    program: str
    types: frozenset[int]
    tracepoint: str = ""
    """What the kernel must have, as libbpf.has_tracepoints takes it; empty: every kernel has it."""
    cgroup: bool = False
    """It sees the packets of a control group; there must be a cgroup2 hierarchy."""


_CONNECTIONS: Final = event_types("TCP_CONNECT", "TCP_ACCEPT", "TCP_CLOSE")
_DNS: Final = event_types("DNS_QUERY", "DNS_ANSWER")
_FILE_REQUESTS: Final = event_types(
    "FILE_WRITE",
    "FILE_CREATE",
    "FILE_READ",
    "FILE_DELETE",
    "FILE_RENAME",
    "FILE_LINK",
    "FILE_SYMLINK",
    "DIRECTORY_CREATE",
    "FILE_XATTR",
    "FILE_TRUNCATE",
)
_REQUESTS: Final = _FILE_REQUESTS | event_types("TCP_ACCEPT", "TCP_CLOSE", "SOCKET_BIND", "RAW_SOCKET", "UNIX_CONNECT")
"""What is told of io_uring: it needs to see requests end."""

HOOKS: Final = (
    # These two stand in the object for kernels before 5.12 only.
    Hook("make_cookies", _CONNECTIONS, cgroup=True),
    Hook("make_cookie_of_new", _CONNECTIONS | event_types("SOCKET_LISTEN", "SOCKET_BIND", "RAW_SOCKET"), cgroup=True),
    # DNS over TCP needs to know whose the connection is.
    Hook("on_tcp_state", _CONNECTIONS | _DNS | event_types("SOCKET_LISTEN")),
    # An answer is of who asked.
    Hook("on_egress", _DNS | event_types("UDP_FLOW"), cgroup=True),
    Hook("on_ingress", event_types("DNS_ANSWER"), cgroup=True),
    Hook("on_signal", event_types("SIGNAL")),
    Hook("on_module_load", event_types("MODULE_LOAD"), "module_load"),
    Hook("on_module_unload", event_types("MODULE_UNLOAD"), "module_free"),
    # One of each kind fits: what io_uring's tracepoints tell has changed.
    Hook("on_uring_submit", _FILE_REQUESTS, "io_uring_submit_req"),
    Hook("on_uring_sqe", _FILE_REQUESTS, "io_uring_submit_sqe(io_kiocb *)"),
    Hook("on_uring_sqe_5", _FILE_REQUESTS, "io_uring_submit_sqe(void *, void *, u8)"),
    Hook("on_uring_complete", _REQUESTS, "io_uring_complete(_, void *, io_uring_cqe *)"),
    Hook("on_uring_complete_6", _REQUESTS, "io_uring_complete(void *, void *, u64, int, unsigned int)"),
    Hook("on_uring_complete_5", _REQUESTS, "io_uring_complete(void *, u64, int, unsigned int)"),
    Hook("on_uring_overflow", _REQUESTS, "io_uring_cqe_overflow"),
)
"""Beside those for processes, which are always there: the others need what they keep."""

TELLERS: Final = (
    Teller("act_accept", event_types("TCP_ACCEPT", "TCP_CLOSE"), {Act.ACCEPT: ("accept", "accept4")}),
    Teller("act_connect", event_types("TCP_CONNECT", "UNIX_CONNECT"), {Act.CONNECT: ("connect",)}),
    Teller("act_bind", event_types("SOCKET_BIND"), {Act.BIND: ("bind",)}),
    Teller("act_socket", event_types("RAW_SOCKET"), {Act.SOCKET: ("socket",)}),
    Teller(
        "act_socketcall",  # of 32-bit processes: calls on one of those before
        event_types("TCP_ACCEPT", "TCP_CLOSE", "TCP_CONNECT", "UNIX_CONNECT", "SOCKET_BIND", "RAW_SOCKET"),
        {Act.SOCKETCALL: ("socketcall",)},
    ),
    Teller(
        "act_file_open",
        event_types("FILE_WRITE", "FILE_CREATE", "FILE_READ"),
        {Act.OPEN: ("open",), Act.CREAT: ("creat",), Act.OPENAT: ("openat",), Act.OPENAT2: ("openat2",)},
    ),
    Teller(
        "act_file_name",
        event_types("FILE_CREATE", "FILE_DELETE", "FILE_RENAME", "FILE_LINK", "FILE_SYMLINK", "DIRECTORY_CREATE"),
        {
            Act.UNLINK: ("unlink",),
            Act.UNLINKAT: ("unlinkat",),
            Act.RMDIR: ("rmdir",),
            Act.RENAME: ("rename",),
            Act.RENAMEAT: ("renameat",),
            Act.RENAMEAT2: ("renameat2",),
            Act.LINK: ("link",),
            Act.LINKAT: ("linkat",),
            Act.SYMLINK: ("symlink",),
            Act.SYMLINKAT: ("symlinkat",),
            Act.MKDIR: ("mkdir",),
            Act.MKDIRAT: ("mkdirat",),
            Act.MKNOD: ("mknod",),
            Act.MKNODAT: ("mknodat",),
        },
    ),
    Teller(
        "act_file_attribute",
        event_types("FILE_CHMOD", "FILE_CHOWN", "FILE_XATTR", "FILE_TRUNCATE", "FILE_TIMES"),
        {
            Act.CHMOD: ("chmod",),
            Act.FCHMOD: ("fchmod",),
            Act.FCHMODAT: ("fchmodat",),
            Act.FCHMODAT2: ("fchmodat2",),
            Act.CHOWN: ("chown", "lchown", "chown32", "lchown32"),
            Act.FCHOWN: ("fchown", "fchown32"),
            Act.FCHOWNAT: ("fchownat",),
            Act.SETXATTR: ("setxattr", "lsetxattr"),
            Act.FSETXATTR: ("fsetxattr",),
            Act.REMOVEXATTR: ("removexattr", "lremovexattr"),
            Act.FREMOVEXATTR: ("fremovexattr",),
            Act.SETXATTRAT: ("setxattrat",),
            Act.REMOVEXATTRAT: ("removexattrat",),
            Act.TRUNCATE: ("truncate",),
            Act.FTRUNCATE: ("ftruncate",),
            Act.TRUNCATE64: ("truncate64",),
            Act.FTRUNCATE64: ("ftruncate64",),
            Act.UTIME: ("utime", "utimes"),
            Act.UTIMENSAT: ("utimensat", "utimensat_time64"),
            Act.FUTIMESAT: ("futimesat",),
        },
    ),
    Teller(
        "act_credentials",
        event_types("CREDENTIALS"),
        {
            Act.SETUID: tuple(
                f"set{ids}{width}"
                for ids in ("uid", "gid", "reuid", "regid", "resuid", "resgid", "fsuid", "fsgid")
                for width in ("", "32")
            ),
            Act.CAPSET: ("capset",),
        },
    ),
    Teller("act_ptrace", event_types("PTRACE"), {Act.PTRACE: ("ptrace",)}),
    Teller("act_process_write", event_types("PROCESS_WRITE"), {Act.PROCESS_WRITE: ("process_vm_writev",)}),
    Teller("act_prctl", event_types("PRCTL"), {Act.PRCTL: ("prctl",)}),
    Teller("act_seccomp", event_types("PRCTL"), {Act.SECCOMP: ("seccomp",)}),
    Teller("act_memfd_create", event_types("MEMFD_CREATE"), {Act.MEMFD_CREATE: ("memfd_create",)}),
    Teller(
        "act_memory_protect",
        event_types("MEMORY_EXECUTABLE"),
        {Act.MMAP: ("mmap", "mmap2"), Act.MPROTECT: ("mprotect", "pkey_mprotect")},
    ),
    Teller("act_memory_map_old", event_types("MEMORY_EXECUTABLE"), {Act.MMAP_OLD: ("old_mmap",)}),
    Teller(
        "act_namespace",
        event_types("NAMESPACE"),
        {Act.UNSHARE: ("unshare",), Act.SETNS: ("setns",)},
    ),
    Teller(
        "act_mount",
        event_types("MOUNT", "UMOUNT", "PIVOT_ROOT", "CHROOT"),
        {
            Act.MOUNT: ("mount",),
            Act.MOVE_MOUNT: ("move_mount",),
            Act.UMOUNT: ("umount2",),
            Act.UMOUNT_OLD: ("umount",),
            Act.PIVOT_ROOT: ("pivot_root",),
            Act.CHROOT: ("chroot",),
        },
    ),
    Teller(
        "act_module",
        event_types("MODULE_LOAD", "MODULE_UNLOAD"),
        {Act.INIT_MODULE: ("init_module", "finit_module"), Act.DELETE_MODULE: ("delete_module",)},
    ),
    Teller("act_bpf", event_types("BPF"), {Act.BPF: ("bpf",)}),
    Teller(
        "act_kexec",
        event_types("KEXEC"),
        {Act.KEXEC: ("kexec_load",), Act.KEXEC_FILE: ("kexec_file_load",)},
    ),
    Teller("act_perf_event", event_types("PERF_EVENT_OPEN"), {Act.PERF_EVENT_OPEN: ("perf_event_open",)}),
    Teller("act_io_ports", event_types("IO_PORTS"), {Act.IOPERM: ("ioperm",), Act.IOPL: ("iopl",)}),
)
"""Every program that tells system calls."""

_NEWER: Final = {"setxattrat": 463, "removexattrat": 466, "fchmodat2": 452}
"""Numbers that are the same on every architecture and that libseccomp may not know yet."""
_I386: Final = {"socket": 359, "bind": 361, "connect": 362, "accept4": 364, "mmap": None, "old_mmap": 90}
"""Numbers of calls that libseccomp knows as parts of socketcall; mmap there is another call than elsewhere."""
_NO_ACTS: Final = (Act.NONE, Act.NONE)


def wanted_tellers(wanted: Collection[int]) -> tuple[Teller, ...]:
    """The programs that events of these types need."""
    return tuple(teller for teller in TELLERS if not teller.types.isdisjoint(wanted))


def wanted_hooks(wanted: Collection[int]) -> tuple[Hook, ...]:
    """The same for those that are attached."""
    return tuple(hook for hook in HOOKS if not hook.types.isdisjoint(wanted))


def untold(wanted: Collection[int], tracepoints: Collection[str]) -> frozenset[int]:
    """Types that only hooks tell whose tracepoints this kernel has not."""
    hooks = wanted_hooks(wanted)
    able: set[int] = set()
    for teller in wanted_tellers(wanted):
        able |= teller.types
    for hook in hooks:
        if not hook.tracepoint or hook.tracepoint in tracepoints:
            able |= hook.types
    return frozenset(kind for hook in hooks for kind in hook.types if kind in wanted and kind not in able)


def numbers(tellers: Collection[Teller], machine: str) -> dict[int, tuple[Act, Act]]:
    """System call number -> its act for 64-bit and for 32-bit processes. `machine` as uname has it."""
    native, compat = _architectures(machine)
    table: dict[int, tuple[Act, Act]] = {}
    for act, name in ((a, n) for t in tellers for a, names in t.syscalls.items() for n in names):
        if (at := _number(native, name)) is not None:
            table[at] = (act, table.get(at, _NO_ACTS)[1])
        if (at := _number(compat, name)) is not None:
            table[at] = (table.get(at, _NO_ACTS)[0], act)
    return table


def _architectures(machine: str) -> tuple[int, int]:
    if pyseccomp is None:
        raise KernelError("libseccomp.so.2 is missing, which knows the numbers of system calls: install libseccomp2")
    known = {
        "x86_64": (pyseccomp.Arch.X86_64, pyseccomp.Arch.X86),
        "aarch64": (pyseccomp.Arch.AARCH64, pyseccomp.Arch.ARM),
    }
    if machine not in known:
        raise KernelError(f"no system calls are known for {machine}; known: {', '.join(known)}")
    return known[machine]


def _number(architecture: int, name: str) -> int | None:
    if architecture == pyseccomp.Arch.X86 and name in _I386:
        return _I386[name]
    found: int = pyseccomp.resolve_syscall(architecture, name)
    if found == -1:
        return _NEWER.get(name)
    return found if 0 <= found < SYSCALL_NUMBERS else None
