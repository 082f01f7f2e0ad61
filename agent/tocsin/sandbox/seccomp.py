"""Which system calls a process may make from now on, one list per role.

An allow-list: anything else fails with EPERM, or ends the process where the
caller asks for that. Arguments are checked where a call is harmless only with
some: no memory becomes executable any more, signals reach this process only,
threads are allowed where processes are not, files may be opened to be read only,
sockets are of named families.
The sensor has a deny-list in its place: libbpf's calls differ between kernels.
"""

import errno
import os
import socket
import termios
from typing import Final

from tocsin.sandbox.report import UnavailableError

try:
    import pyseccomp
except (ImportError, OSError, RuntimeError):  # libseccomp.so.2 is a package of its own
    pyseccomp = None

_CLONE_VM_AND_THREAD: Final = 0x00000100 | 0x00010000
_PROT_EXEC: Final = 0x4
_MEMORY: Final = "brk madvise mmap mprotect mremap munmap"
_TIME: Final = "clock_getres clock_gettime clock_nanosleep gettimeofday nanosleep"
_PROCESS: Final = (
    "exit exit_group futex getcpu getegid geteuid getgid getpgrp getpid getppid getrandom getresgid getresuid "
    "getrusage gettid getuid membarrier restart_syscall rseq sched_getaffinity sched_yield set_robust_list sysinfo "
    "times uname"
)
_SIGNALS: Final = (
    "rt_sigaction rt_sigpending rt_sigprocmask rt_sigreturn rt_sigtimedwait sigaltstack setitimer getitimer"
)
_DESCRIPTORS: Final = (
    "close close_range dup fcntl fstat lseek pread64 preadv read readv write writev "
    "epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd2 poll ppoll pselect6 select"
)
_MESSAGES: Final = "getpeername getsockname getsockopt recvfrom recvmsg sendmsg sendto setsockopt shutdown"
_SOCKETS: Final = "accept accept4 bind connect listen"
_FILES: Final = (
    "access chmod faccessat faccessat2 fchmodat fdatasync fsync fstatfs ftruncate getcwd getdents64 ioctl lstat "
    "newfstatat open openat pipe2 pwrite64 readlink readlinkat renameat renameat2 rename stat statx unlink unlinkat "
    "memfd_create dup2 dup3 mkdirat"
)

EVALUATOR: Final = f"{_MEMORY} {_TIME} {_PROCESS} {_SIGNALS} {_DESCRIPTORS} {_MESSAGES}"
ENRICHER: Final = (
    f"{EVALUATOR} access faccessat faccessat2 fstatfs getcwd getdents64 ioprio_set lstat newfstatat readlink "
    "readlinkat setpriority stat statx"
)
COURIER: Final = f"{EVALUATOR} {_SOCKETS} {_FILES} sched_getparam sched_getscheduler getrlimit"
SENSOR_DENIED: Final = (
    "execve execveat ptrace process_vm_writev init_module finit_module delete_module kexec_load kexec_file_load "
    "mount umount2 pivot_root reboot swapon swapoff setns add_key request_key keyctl userfaultfd open_by_handle_at "
    "fsopen fsmount move_mount iopl ioperm acct"
)
_LISTS: Final = {"evaluator": EVALUATOR, "enricher": ENRICHER, "courier": COURIER}
_WITH_THREADS: Final = frozenset({"enricher", "courier"})
_UNNAMED: Final = 0o20000000
"""What O_TMPFILE has beside O_DIRECTORY."""
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | _UNNAMED
_CHECKED: Final = frozenset({"mmap", "mprotect"})


def allow_only(role: str, *, kill: bool = False) -> str:
    """Puts the role's allow-list in force for every thread; `kill`: a forbidden call ends the process.

    Raises UnavailableError.
    """
    _require_library()
    names = _LISTS[role].split()
    filter_ = _filter(pyseccomp.KILL_PROCESS if kill else pyseccomp.ERRNO(errno.EPERM))
    for name in names:
        if name not in _CHECKED:
            _add(filter_, pyseccomp.ALLOW, name)
    _allow_data_memory(filter_)
    _add(filter_, pyseccomp.ALLOW, "tgkill", pyseccomp.Arg(0, pyseccomp.EQ, os.getpid()))
    _add(filter_, pyseccomp.ALLOW, "ioctl", pyseccomp.Arg(1, pyseccomp.EQ, termios.FIONBIO))  # setblocking
    _add(filter_, pyseccomp.ALLOW, "prlimit64", pyseccomp.Arg(0, pyseccomp.EQ, 0))
    if role in _WITH_THREADS:
        _allow_threads(filter_)
    if role == "enricher":
        for name, flags in (("open", 1), ("openat", 2)):
            _add(filter_, pyseccomp.ALLOW, name, pyseccomp.Arg(flags, pyseccomp.MASKED_EQ, _WRITING, 0))
    if role == "courier":
        for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6):
            _add(filter_, pyseccomp.ALLOW, "socket", pyseccomp.Arg(0, pyseccomp.EQ, family))
            _add(filter_, pyseccomp.ALLOW, "socketpair", pyseccomp.Arg(0, pyseccomp.EQ, family))
    _load(filter_)
    return f"{len(names)} calls allowed, others {'kill' if kill else 'fail'}"


def deny_for_sensor() -> str:
    """Puts the sensor's deny-list in force: no program, no internet socket. Raises UnavailableError."""
    _require_library()
    filter_ = _filter(pyseccomp.ALLOW)
    names = SENSOR_DENIED.split()
    forbidden = pyseccomp.ERRNO(errno.EPERM)
    for name in names:
        _add(filter_, forbidden, name)
    for family in (socket.AF_INET, socket.AF_INET6, socket.AF_PACKET):
        _add(filter_, forbidden, "socket", pyseccomp.Arg(0, pyseccomp.EQ, family))
    _load(filter_)
    return f"{len(names)} calls and internet sockets denied"


def available() -> bool:
    """Whether libseccomp is there."""
    return pyseccomp is not None


def _require_library() -> None:
    if not available():
        raise UnavailableError("libseccomp.so.2 is not installed (Debian: apt install libseccomp2)")


def _filter(default_action: int) -> "pyseccomp.SyscallFilter":
    filter_ = pyseccomp.SyscallFilter(default_action)
    filter_.set_attr(pyseccomp.Attr.CTL_TSYNC, 1)
    filter_.set_attr(pyseccomp.Attr.CTL_OPTIMIZE, 2)
    return filter_


def _add(filter_: "pyseccomp.SyscallFilter", action: int, name: str, *arguments: "pyseccomp.Arg") -> None:
    """A call that this architecture does not have (open on arm64), or that libseccomp is too old for, needs no rule."""
    try:
        number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
    except (OSError, ValueError):
        return
    if number >= 0:
        filter_.add_rule(action, number, *arguments)


def _allow_data_memory(filter_: "pyseccomp.SyscallFilter") -> None:
    for name in _CHECKED:
        _add(filter_, pyseccomp.ALLOW, name, pyseccomp.Arg(2, pyseccomp.MASKED_EQ, _PROT_EXEC, 0))


def _allow_threads(filter_: "pyseccomp.SyscallFilter") -> None:
    """clone3 hides its flags in memory, where a filter cannot look: ENOSYS makes glibc use clone."""
    threads = pyseccomp.Arg(0, pyseccomp.MASKED_EQ, _CLONE_VM_AND_THREAD, _CLONE_VM_AND_THREAD)
    _add(filter_, pyseccomp.ALLOW, "clone", threads)
    _add(filter_, pyseccomp.ERRNO(errno.ENOSYS), "clone3")


def _load(filter_: "pyseccomp.SyscallFilter") -> None:
    try:
        filter_.load()
    except OSError as error:
        raise UnavailableError(f"the kernel refused the filter: {error.strerror}") from error
