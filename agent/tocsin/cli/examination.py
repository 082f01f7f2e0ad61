"""The checks of `tocsin doctor`: each looks at one thing and tells what it found."""

import ctypes
import ctypes.util
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import tocsin
from tocsin.api.event.v1 import event_pb2
from tocsin.config import Config, process_uid
from tocsin.errors import KernelError, TocsinError
from tocsin.kernel import acts, filters, libbpf
from tocsin.kernel.core import cgroup_root
from tocsin.kernel.guard import MARKER, MAX_UNCLEAN_BOOTS, AttachGuard
from tocsin.records import framing
from tocsin.sandbox import landlock, libc, seccomp
from tocsin.sandbox.capabilities import Capability, permitted

OBJECTS: Final = Path(tocsin.__file__).parent / "kernel" / "objects"
MIN_FREE_BYTES: Final = 256 << 20
OLDEST_KERNEL: Final = (5, 10)
_BPF: Final = 280 if platform.machine() == "aarch64" else 321
_BPF_MAP_CREATE, _BPF_PROG_LOAD = 0, 5
_BPF_MAP_TYPE_RINGBUF: Final = 27


class Verdict(StrEnum):
    """What a finding means."""

    OK = "ok"
    REDUCED = "reduced"
    """The agent runs, with less."""
    MISSING = "missing"
    """What needs it does not run."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    name: str
    verdict: Verdict
    found: str
    needed_for: str
    advice: str = ""
    """What to do; empty when nothing is to be done."""


Result = tuple[Verdict, str, str]
"""Verdict, what was found, advice."""


def ok(found: str) -> Result:
    """Nothing to do."""
    return Verdict.OK, found, ""


def check_privileges() -> Result:
    """Root, or the capabilities in its place."""
    held = permitted()
    needed = {Capability.BPF, Capability.PERFMON, Capability.SYS_PTRACE, Capability.DAC_READ_SEARCH}
    absent = sorted(c.name for c in needed if not held >> c & 1)
    if absent:
        return Verdict.MISSING, f"uid {os.geteuid()} without {', '.join(absent)}", "run it as root"
    if not held >> Capability.SYS_RESOURCE & 1:
        advice = "before Linux 5.11 give CAP_SYS_RESOURCE, or raise the locked-memory limit"
        return Verdict.REDUCED, f"uid {os.geteuid()} without SYS_RESOURCE", advice
    return ok(f"uid {os.geteuid()} with every capability that the sensor keeps")


def check_kernel() -> Result:
    """Old enough kernels lack what the programs use."""
    release = platform.release()
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    if numbers < OLDEST_KERNEL:
        return Verdict.MISSING, release, "use Linux 5.10 or later"
    return ok(f"{release}, {platform.machine()}")


def check_btf() -> Result:
    """Type information of the running kernel."""
    path = Path("/sys/kernel/btf/vmlinux")
    try:
        return ok(f"{path}, {path.stat().st_size} bytes")
    except OSError as error:
        return Verdict.MISSING, f"{path}: {error.strerror}", "use a kernel with CONFIG_DEBUG_INFO_BTF=y"


def check_libbpf() -> Result:
    """The library that loads the programs."""
    try:
        library = ctypes.CDLL("libbpf.so.1")
    except OSError as error:
        return Verdict.MISSING, str(error), "install it (Debian: apt install libbpf1)"
    library.libbpf_version_string.restype = ctypes.c_char_p
    return ok(library.libbpf_version_string().decode(errors="replace"))


def check_bpf_allowed() -> Result:
    """Makes a ring buffer and loads a program of two instructions; both are gone at once."""
    ring = struct.pack("<IIII", _BPF_MAP_TYPE_RINGBUF, 0, 0, 4096)
    try:
        os.close(_bpf(_BPF_MAP_CREATE, ring))
    except OSError as error:
        return (
            Verdict.MISSING,
            f"making a ring buffer: {error.strerror}",
            "run it as root, outside restricted containers",
        )
    program = ctypes.create_string_buffer(struct.pack("<BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0), 16)
    licence = ctypes.create_string_buffer(b"GPL")
    load = struct.pack("<IIQQ", 1, 2, ctypes.addressof(program), ctypes.addressof(licence))
    try:
        os.close(_bpf(_BPF_PROG_LOAD, load))
    except OSError as error:
        return Verdict.MISSING, f"loading a program: {error.strerror}", "run it as root, outside restricted containers"
    return ok("ring buffer and program")


def _bpf(command: int, attributes: bytes) -> int:
    padded = ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128)
    return libc.syscall(_BPF, command, padded, 128)


def check_unprivileged_bpf() -> Result:
    """Whether everybody may load eBPF programs."""
    path = Path("/proc/sys/kernel/unprivileged_bpf_disabled")
    try:
        value = path.read_text().strip()
    except OSError as error:
        return Verdict.REDUCED, f"{path}: {error.strerror}", ""
    if value == "0":
        return Verdict.REDUCED, "every user may load eBPF", "sysctl kernel.unprivileged_bpf_disabled=1"
    return ok(f"disabled for users ({value})")


def check_lockdown() -> Result:
    """Kernel lockdown in confidentiality mode forbids programs to read kernel memory."""
    path = Path("/sys/kernel/security/lockdown")
    if not path.exists():
        return ok("no lockdown")
    text = path.read_text().strip()
    if "[confidentiality]" in text:
        return Verdict.MISSING, text, "boot with lockdown=integrity, or none"
    return ok(text)


def check_lsm() -> Result:
    """Which security modules are active: any may have a say in bpf()."""
    path = Path("/sys/kernel/security/lsm")
    try:
        return ok(path.read_text().strip())
    except OSError as error:
        return Verdict.OK, f"not to be seen ({path}: {error.strerror})", ""


def check_tracepoints(config: Config) -> Result:
    """What cannot be told on this kernel."""
    wanted = filters.wanted(config.sensor.filters.events)
    missing = acts.untold(wanted, libbpf.has_tracepoints({hook.tracepoint for hook in acts.HOOKS if hook.tracepoint}))
    if missing:
        names = (event_pb2.EventType.Name(event_pb2.EventType.ValueType(kind)) for kind in sorted(missing))
        return Verdict.REDUCED, f"no tracepoint for {', '.join(n.removeprefix('EVENT_TYPE_') for n in names)}", ""
    return ok(f"all that {len(wanted)} event types need")


def check_cgroup() -> Result:
    """The hierarchy of version 2, where programs see packets."""
    root = cgroup_root()
    if root is None:
        return Verdict.REDUCED, "no cgroup2 is mounted", "mount -t cgroup2 none /sys/fs/cgroup/unified"
    return ok(str(root))


def check_marker(config: Config) -> Result:
    """Boots that ended while eBPF was attached."""
    try:
        unclean = AttachGuard(Path(config.state_dir)).unclean_boots()
    except KernelError as error:
        return Verdict.MISSING, str(error), ""
    if unclean >= MAX_UNCLEAN_BOOTS:
        advice = f"look into the kernel's log of those boots; remove {Path(config.state_dir) / MARKER} to allow eBPF"
        return Verdict.MISSING, f"{unclean} boots in a row ended while eBPF was attached", advice
    return ok(f"{unclean} boots in a row ended while eBPF was attached")


def check_proc_connector() -> Result:
    """What the reduced source stands on."""
    try:
        from tocsin.kernel.netlink.connector import Connector  # pyroute2 is large: only for those who use it

        Connector(1 << 16).close()
    except (ImportError, TocsinError) as error:
        return Verdict.REDUCED, str(error), ""
    return ok("answers")


def check_landlock() -> Result:
    """Which Landlock ABI."""
    version = landlock.abi()
    if not version:
        return Verdict.REDUCED, "none", "boot with lsm=landlock,... on Linux 5.13 or later"
    if version < landlock.FULL_ABI:
        return Verdict.REDUCED, f"ABI {version}, {landlock.FULL_ABI} covers TCP and signals too", "use a later kernel"
    return ok(f"ABI {version}")


def check_seccomp() -> Result:
    """The library that compiles system-call filters, and the kernel's word that it takes them."""
    if not seccomp.available():
        return Verdict.MISSING, "libseccomp.so.2 cannot be loaded", "install it (Debian: apt install libseccomp2)"
    path = Path("/proc/sys/kernel/seccomp/actions_avail")
    try:
        return ok(path.read_text().strip())
    except OSError as error:
        return Verdict.MISSING, f"{path}: {error.strerror}", "use a kernel with CONFIG_SECCOMP_FILTER=y"


def check_native() -> Result:
    """The C library of this package, used once."""
    try:
        framing.index(b"")
    except TocsinError as error:
        return Verdict.MISSING, str(error), "make build"
    return ok("loads and works")


def check_objects() -> Result:
    """The eBPF objects against their manifest."""
    manifest = OBJECTS / "manifest.json"
    try:
        digests: dict[str, str] = json.loads(manifest.read_text())["objects"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Verdict.MISSING, f"{manifest.name}: {type(error).__name__}", "make build, or install the package again"
    if not digests:
        return Verdict.MISSING, "the manifest names no object", "make build, with clang and libbpf-dev installed"
    for name, expected in sorted(digests.items()):
        try:
            found = hashlib.sha256((OBJECTS / name).read_bytes()).hexdigest()
        except OSError as error:
            return Verdict.MISSING, f"{name}: {error.strerror}", "make build, or install the package again"
        if found != expected:
            return Verdict.MISSING, f"{name}: SHA-256 is not the manifest's", "install the package again"
    return ok(f"{len(digests)} objects, as in the manifest")


def check_hyperscan() -> Result:
    """Compiles and scans once."""
    try:
        import hyperscan

        database = hyperscan.Database()
        database.compile(expressions=[b"a"], ids=[1], elements=1, flags=[0])
    except Exception as error:  # noqa: BLE001 - whatever a native library raises is what was found
        return (
            Verdict.MISSING,
            f"{type(error).__name__}: {error}",
            "pip install hyperscan; the CPU needs SSE4.2 or NEON",
        )
    return ok(importlib.metadata.version("hyperscan"))


def check_disk(config: Config) -> Result:
    """Room for the state, on the file system that will hold it."""
    path = Path(config.state_dir)
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free
    if free < MIN_FREE_BYTES:
        return Verdict.REDUCED, f"{free >> 20} MiB free at {path}", f"have {MIN_FREE_BYTES >> 20} MiB free"
    return ok(f"{free >> 20} MiB free at {path}")


def check_sandbox(config: Config) -> Result:
    """Enters the evaluator's sandbox in a process made for it."""
    uid, memory = process_uid("tocsin-evaluator"), config.evaluator.memory_bytes
    command = [sys.executable, "-P", "-m", "tocsin.sandbox.probe", "evaluator", str(uid), str(memory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    try:
        steps = [tuple(step) for step in json.loads(done.stdout)]
    except ValueError:
        return Verdict.MISSING, f"ended with {done.returncode}: {done.stderr[-200:]}", "report it"
    weak = [f"{name}: {detail}" for name, outcome, detail in steps if outcome != "done"]
    if done.returncode:
        return Verdict.MISSING, "; ".join(weak), "see landlock and libseccomp2"
    if weak:
        return Verdict.REDUCED, "; ".join(weak), "run it as root" if os.geteuid() else "use a later kernel"
    return ok(f"{len(steps)} steps, all in force")


def examine(config: Config) -> list[Finding]:
    """Every check, in the order in which the agent would need what it looks at."""
    checks: tuple[tuple[str, str, Callable[[], Result]], ...] = (
        ("privileges", "loading eBPF, reading every process", check_privileges),
        ("kernel", "the eBPF programs", check_kernel),
        ("BTF", "programs that fit this kernel's structures", check_btf),
        ("libbpf", "loading eBPF", check_libbpf),
        ("bpf()", "loading eBPF", check_bpf_allowed),
        ("unprivileged bpf", "keeping others from loading eBPF", check_unprivileged_bpf),
        ("tracepoints", "every event type", lambda: check_tracepoints(config)),
        ("cgroup2", "DNS and UDP events", check_cgroup),
        ("unclean boots", "loading eBPF", lambda: check_marker(config)),
        ("proc connector", "the source netlink, where eBPF cannot be", check_proc_connector),
        ("lockdown", "reading kernel memory from eBPF", check_lockdown),
        ("security modules", "knowing who else decides", check_lsm),
        ("landlock", "the sandbox: files, TCP, signals", check_landlock),
        ("seccomp", "the sandbox: system calls", check_seccomp),
        ("sandbox", "content that cannot hurt the host", lambda: check_sandbox(config)),
        ("native library", "cutting and matching batches", check_native),
        ("eBPF objects", "live events", check_objects),
        ("hyperscan", "matching", check_hyperscan),
        ("disk", "keeping the active release", lambda: check_disk(config)),
    )
    return [_finding(name, needed_for, check) for name, needed_for, check in checks]


def _finding(name: str, needed_for: str, check: Callable[[], Result]) -> Finding:
    try:
        verdict, found, advice = check()
    except (OSError, subprocess.SubprocessError) as error:
        verdict, found, advice = Verdict.MISSING, f"{type(error).__name__}: {error}", "report it"
    return Finding(name, verdict, found, needed_for, advice)
