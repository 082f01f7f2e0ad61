"""Who a process is, and that it can become nobody else.

Order matters: the user changes first (that clears the parent-death signal and
needs capabilities), then the signal is armed again, then no_new_privs. The
caller must be single-threaded: the kernel keeps most of this per thread.
"""

import os
import pwd
import signal
from pathlib import Path
from typing import Final

from tocsin.errors import KernelError
from tocsin.sandbox.libc import prctl
from tocsin.sandbox.report import Outcome, Step, UnavailableError

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_KEEPCAPS: Final = 8
_PR_SET_NO_NEW_PRIVS: Final = 38


def require_one_thread() -> str:
    """Raises KernelError when this process has more than one thread."""
    count = len(list(Path("/proc/self/task").iterdir()))
    if count != 1:
        raise KernelError(f"got {count} threads, expected 1: a sandbox binds only the thread that enters it")
    return "one"


def become(uid: int, *, keeps_capabilities: bool = False) -> Step:
    """Real, effective and saved ids of the user; no supplementary groups. Not root: stays who it is.

    `keeps_capabilities`: they stay permitted, all of them, and are for the caller to reduce.
    Raises KernelError when root refuses to go away.
    """
    if os.geteuid() != 0:
        if uid == os.getuid():
            return Step("user", Outcome.DONE, f"uid {uid}, unprivileged from the start")
        raise UnavailableError(f"stays uid {os.getuid()}: only root can become {uid}")
    if uid == 0:
        raise KernelError("got uid 0 to drop to, expected an unprivileged one")
    gid = _primary_group(uid)
    os.setgroups([])
    prctl(_PR_SET_KEEPCAPS, int(keeps_capabilities))
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid) or _can_be_root():
        raise KernelError(f"still has privileges after changing to uid {uid}: {os.getresuid()} {os.getresgid()}")
    return Step("user", Outcome.DONE, f"uid {uid}, gid {gid}, no groups")


def _primary_group(uid: int) -> int:
    """A uid without an entry in the user database has a group of the same number."""
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return uid


def _can_be_root() -> bool:
    try:
        os.setresuid(0, 0, 0)
    except PermissionError:
        return False
    return True


def die_with_parent(parent_pid: int) -> str:
    """SIGKILL when the parent ends; to be called after the last change of user, which disarms it.

    Raises KernelError when the parent is gone already.
    """
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        raise KernelError(f"the parent {parent_pid} has ended: nobody watches this process")
    return f"with {parent_pid}"


def no_new_privileges() -> str:
    """No exec gives privileges from now on. Landlock and seccomp require it."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    return "set"


def not_dumpable() -> str:
    """No core, and no ptrace or /proc/<pid>/mem by processes of the same user."""
    prctl(_PR_SET_DUMPABLE, 0)
    return "not traceable, no core"
