"""The guest's first process: mounts, runs the session, says how it ended, and switches the machine off.

init.py [OPTION...]: the options are pytest's. The last line on the second serial port, `EXIT n`, is the only verdict: a
guest that died cannot say it.
"""

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import sys
import termios
import traceback
from pathlib import Path
from typing import Final

RESULTS: Final = "/dev/ttyS1"
MOUNTS: Final = (
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("devpts", "/dev/pts"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("bpf", "/sys/fs/bpf"),
    ("tracefs", "/sys/kernel/tracing"),
    ("securityfs", "/sys/kernel/security"),
)
ROOT: Final = Path(__file__).parents[3]
ROOT_MOUNT: Final = "/root/mount"
MS_BIND, MS_MOVE = 0x1000, 0x2000
RESTART: Final = 0x01234567
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
LIBC: Final = ctypes.CDLL(None, use_errno=True)


def mount(kind: str, target: str) -> None:
    """Raises OSError."""
    Path(target).mkdir(exist_ok=True)
    if LIBC.mount(b"none", target.encode(), kind.encode(), 0, None):
        raise OSError(ctypes.get_errno(), f"mount {kind} on {target}")


def enter_mount() -> None:
    """Makes the root a mount on what the kernel unpacked, which itself cannot be left by pivot_root. Raises OSError."""
    inner = ROOT_MOUNT.encode()
    Path(ROOT_MOUNT).mkdir()
    if LIBC.mount(b"/", inner, None, MS_BIND, None):
        raise OSError(ctypes.get_errno(), "bind the root")
    os.chdir(inner)
    if LIBC.mount(b".", b"/", None, MS_MOVE, None):
        raise OSError(ctypes.get_errno(), "move the root")
    os.chroot(".")


def bring_up_loopback() -> None:
    """lo answers from here on."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(any_socket, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))


def run_session() -> int:
    """Runs the session as an ordinary child, so that orphans come to this process; returns its exit status."""
    environment = {
        "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
        "PYTHONPATH": str(ROOT / "agent"),
        "HOME": "/root",
        "LOGNAME": "root",
        "LANG": "C.UTF-8",
    }
    program = str(Path(__file__).with_name("session.py"))
    session = subprocess.Popen([sys.executable, program, RESULTS, *sys.argv[1:]], env=environment)
    while True:
        pid, status = os.wait()
        if pid == session.pid:
            return os.waitstatus_to_exitcode(status)


def main() -> None:
    """A life: mount, run, tell, end."""
    status = 70
    try:
        enter_mount()
        for kind, target in MOUNTS:
            mount(kind, target)
        Path("/tmp").chmod(0o1777)
        bring_up_loopback()
        status = run_session()
    except OSError:
        traceback.print_exc()
    results = os.open(RESULTS, os.O_WRONLY | os.O_NOCTTY)
    os.write(results, b"EXIT %d\n" % status)
    termios.tcdrain(results)
    LIBC.reboot(RESTART)


main()
