"""What reaches into the kernel: eBPF, performance events, I/O ports, kexec, modules. What a kernel lacks is skipped."""

import ctypes
import errno
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kernel.acting import fork_and  # type: ignore[import-not-found]
from kernel.sensing import Sensor  # type: ignore[import-not-found]
from kernel.telling import answer, check_body, expect, told, told_types  # type: ignore[import-not-found]
from tocsin.api.event.v1 import event_pb2
from tocsin.config import FilterConfig, SensorConfig

BPF, PERF = event_pb2.EVENT_TYPE_BPF, event_pb2.EVENT_TYPE_PERF_EVENT_OPEN
IO_PORTS, KEXEC = event_pb2.EVENT_TYPE_IO_PORTS, event_pb2.EVENT_TYPE_KEXEC
MODULE_LOAD, MODULE_UNLOAD = event_pb2.EVENT_TYPE_MODULE_LOAD, event_pb2.EVENT_TYPE_MODULE_UNLOAD
NOBODY = 65534
EVERY_ONE = 0xFFFFFFFF

MAP_CREATE, PROG_LOAD, PROG_ATTACH, PROG_DETACH = 0, 5, 8, 9
OBJ_GET_INFO, TRACEPOINT_OPEN, LINK_CREATE = 15, 17, 28
ARRAY, SOCKET_FILTER, CGROUP_SKB, RAW_TRACEPOINT = 2, 1, 8, 17
EGRESS = 1
RETURN_ONE = struct.pack("<BBhiBBhi", 0xB7, 0, 0, 1, 0x95, 0, 0, 0)
LICENSE = ctypes.create_string_buffer(b"GPL")
CODE = ctypes.create_string_buffer(RETURN_ONE)
ATTRIBUTE_BYTES = 128


def as_nobody() -> None:
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def refused(act: Callable[[], int], *errors: int) -> Callable[[], None]:
    """The act as nobody, which must fail with one of the errors."""

    def act_refused() -> None:
        as_nobody()
        got = act()
        expect(got if -got in errors else -errors[0], got)

    return act_refused


def needs(name: str, *arguments: int | bytes | None) -> None:
    """Skips where the kernel does not have the system call; the arguments must do nothing."""
    if answer(name, *arguments) == -errno.ENOSYS:
        pytest.skip(f"{name} IS NOT TESTED: this kernel does not have it")


# ---- eBPF ---------------------------------------------------------------------------------------


def bpf(command: int, attributes: bytes) -> int:
    got: int = answer("bpf", command, attributes.ljust(ATTRIBUTE_BYTES, b"\0"), ATTRIBUTE_BYTES)
    return got


def create_map(name: bytes = b"tocsin_map") -> int:
    return bpf(MAP_CREATE, struct.pack("<7I16s", ARRAY, 4, 8, 1, 0, 0, 0, name))


def load(kind: int, name: bytes, attach_type: int = 0) -> int:
    code, terms = ctypes.addressof(CODE), ctypes.addressof(LICENSE)
    return bpf(PROG_LOAD, struct.pack("<IIQQIIQII16sII", kind, 2, code, terms, 0, 0, 0, 0, 0, name, 0, attach_type))


def object_id(fd: int, field: str) -> int:
    """What fdinfo says."""
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


@pytest.fixture
def filter_program() -> Iterator[int]:
    """A program for control groups."""
    fd = load(CGROUP_SKB, b"tocsin_skb", EGRESS)
    assert fd >= 0, os.strerror(-fd)
    yield fd
    os.close(fd)


@pytest.fixture
def group() -> Iterator[int]:
    """An empty control group."""
    roots = [
        path for path in map(Path, ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")) if (path / "cgroup.procs").exists()
    ]
    if not roots:
        pytest.skip("ATTACHING TO A CONTROL GROUP IS NOT TESTED: no unified hierarchy is mounted")
    folder = roots[0] / f"tocsin-bpf-{os.getpid()}"
    folder.mkdir()
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)
    folder.rmdir()


def test_a_map_is_told_with_type_name_and_id(sensor: Sensor) -> None:
    said = os.pipe()
    event = told(sensor, BPF, lambda: os.write(said[1], b"%d" % object_id(create_map(), "map_id")))
    number = int(os.read(said[0], 32))
    check_body(event, command=MAP_CREATE, object_type=ARRAY, object_id=number, name=b"tocsin_map")


def test_a_program_is_told_with_type_name_and_id(sensor: Sensor) -> None:
    said = os.pipe()

    def act() -> None:
        os.write(said[1], b"%d" % object_id(load(CGROUP_SKB, b"tocsin_skb", EGRESS), "prog_id"))

    event = told(sensor, BPF, act)
    number = int(os.read(said[0], 32))
    expected = {"object_type": CGROUP_SKB, "attach_type": EGRESS, "object_id": number, "name": b"tocsin_skb"}
    check_body(event, command=PROG_LOAD, **expected)


def test_an_attached_program_is_told(sensor: Sensor, filter_program: int, group: int) -> None:
    attributes = struct.pack("<IIII", group, filter_program, EGRESS, 0)

    def act() -> None:
        expect(0, bpf(PROG_ATTACH, attributes))
        expect(0, bpf(PROG_DETACH, attributes))

    expected = {"object_id": object_id(filter_program, "prog_id"), "name": b"tocsin_skb"}
    event = told(sensor, BPF, act)
    check_body(event, command=PROG_ATTACH, object_type=CGROUP_SKB, attach_type=EGRESS, **expected)


def test_a_link_is_told_with_its_program(sensor: Sensor, filter_program: int, group: int) -> None:
    attributes = struct.pack("<IIII", filter_program, group, EGRESS, 0)
    event = told(sensor, BPF, lambda: expect(0, min(bpf(LINK_CREATE, attributes), 0)))
    expected = {"object_id": object_id(filter_program, "prog_id"), "name": b"tocsin_skb"}
    check_body(event, command=LINK_CREATE, object_type=CGROUP_SKB, attach_type=EGRESS, **expected)


def test_a_program_on_a_tracepoint_is_told(sensor: Sensor) -> None:
    program = load(RAW_TRACEPOINT, b"tocsin_raw")
    assert program >= 0, os.strerror(-program)
    where = ctypes.create_string_buffer(b"sched_process_hang")
    attributes = struct.pack("<QI", ctypes.addressof(where), program)
    got = bpf(TRACEPOINT_OPEN, attributes)
    if got < 0:
        pytest.skip(f"BPF ON A TRACEPOINT IS NOT TESTED: {os.strerror(-got)}")
    os.close(got)
    event = told(sensor, BPF, lambda: expect(0, min(bpf(TRACEPOINT_OPEN, attributes), 0)))
    expected = {"object_id": object_id(program, "prog_id"), "name": b"tocsin_raw"}
    os.close(program)
    check_body(event, command=TRACEPOINT_OPEN, object_type=RAW_TRACEPOINT, **expected)


def test_refused_uses_of_bpf_are_told(sensor: Sensor, filter_program: int, group: int) -> None:
    event = told(sensor, BPF, refused(lambda: load(RAW_TRACEPOINT, b"tocsin_raw"), errno.EPERM))
    check_body(event, error=errno.EPERM, command=PROG_LOAD, object_type=RAW_TRACEPOINT, name=b"tocsin_raw")
    attributes = struct.pack("<IIII", filter_program, group, EGRESS, 0)
    event = told(sensor, BPF, refused(lambda: bpf(LINK_CREATE, attributes), errno.EPERM))
    known = {"object_id": object_id(filter_program, "prog_id"), "name": b"tocsin_skb"}
    check_body(event, error=errno.EPERM, command=LINK_CREATE, object_type=CGROUP_SKB, attach_type=EGRESS, **known)


def test_a_refused_map_is_told(sensor: Sensor) -> None:
    if os.waitstatus_to_exitcode(os.waitpid(fork_and(refused(create_map, errno.EPERM)), 0)[1]):
        pytest.skip("A REFUSED MAP IS NOT TESTED: this kernel lets everybody make maps")
    event = told(sensor, BPF, refused(create_map, errno.EPERM))
    check_body(event, error=errno.EPERM, command=MAP_CREATE, object_type=ARRAY, name=b"tocsin_map")


def test_questions_and_mistakes_are_not_told(sensor: Sensor) -> None:
    def act() -> None:
        expect(-errno.EINVAL, bpf(MAP_CREATE, struct.pack("<7I", ARRAY, 0, 8, 1, 0, 0, 0)))
        expect(-errno.EBADFD, bpf(OBJ_GET_INFO, struct.pack("<IIQ", 999, 0, 0)))

    assert told_types(sensor, act) == []


def test_the_agents_own_use_of_bpf_is_not_told() -> None:
    sensor = Sensor(SensorConfig(filters=FilterConfig(events=("process", "BPF"))), own_pid=os.getpid())
    try:
        assert told_types(sensor, create_map) == []
    finally:
        sensor.close()


# ---- performance events -------------------------------------------------------------------------

SOFTWARE, TRACEPOINT = 1, 2
PID_CGROUP = 4


def open_perf(kind: int, config: int, pid: int, cpu: int, flags: int = 0) -> int:
    attributes = struct.pack("<IIQ", kind, 112, config).ljust(112, b"\0")
    got: int = answer("perf_event_open", attributes, pid, cpu, -1, flags)
    return got


def test_a_performance_event_is_told(sensor: Sensor) -> None:
    needs("perf_event_open", None, 0, 0, -1, 0)
    event = told(sensor, PERF, lambda: expect(0, min(open_perf(SOFTWARE, 2, 0, -1), 0)))
    check_body(event, event_type=SOFTWARE, config=2, target_cpu=EVERY_ONE)
    event = told(sensor, PERF, lambda: expect(0, min(open_perf(SOFTWARE, 2, -1, 0), 0)))
    check_body(event, event_type=SOFTWARE, config=2, target_pid=EVERY_ONE)
    pid = os.getpid()
    event = told(sensor, PERF, lambda: expect(0, min(open_perf(SOFTWARE, 2, pid, 0), 0)))
    check_body(event, event_type=SOFTWARE, config=2, target_pid=pid)


def test_a_refused_performance_event_is_told_with_what_was_asked_for(sensor: Sensor) -> None:
    needs("perf_event_open", None, 0, 0, -1, 0)
    event = told(sensor, PERF, refused(lambda: open_perf(SOFTWARE, 3, -1, 0), errno.EACCES, errno.EPERM))
    check_body(event, error=event.perf_event_open.error, event_type=SOFTWARE, config=3, target_pid=EVERY_ONE)
    assert event.perf_event_open.error in (errno.EACCES, errno.EPERM)
    assert told_types(sensor, lambda: expect(-errno.EINVAL, open_perf(SOFTWARE, 0, -1, -1))) == []


def test_a_performance_event_of_a_control_group_names_no_process(sensor: Sensor, group: int) -> None:
    needs("perf_event_open", None, 0, 0, -1, 0)
    act = refused(lambda: open_perf(SOFTWARE, 2, group, 0, PID_CGROUP), errno.EACCES, errno.EPERM)
    event = told(sensor, PERF, act)
    check_body(event, error=event.perf_event_open.error, event_type=SOFTWARE, config=2, target_pid=EVERY_ONE)


# ---- I/O ports ----------------------------------------------------------------------------------


def test_access_to_io_ports_is_told(sensor: Sensor) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("I/O PORTS ARE NOT TESTED: only x86 has them")
    needs("ioperm", 0x80, 1, 0)
    check_body(told(sensor, IO_PORTS, lambda: expect(0, answer("ioperm", 0x80, 2, 1))), first=0x80, count=2, granted=1)
    check_body(told(sensor, IO_PORTS, lambda: expect(0, answer("ioperm", 0x80, 2, 0))), first=0x80, count=2)
    check_body(told(sensor, IO_PORTS, lambda: expect(0, answer("iopl", 3))), level=3, granted=1)


def test_refused_access_to_io_ports_is_told(sensor: Sensor) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("I/O PORTS ARE NOT TESTED: only x86 has them")
    needs("ioperm", 0x80, 1, 0)
    event = told(sensor, IO_PORTS, refused(lambda: answer("ioperm", 0x80, 2, 1), errno.EPERM))
    check_body(event, error=errno.EPERM, first=0x80, count=2, granted=1)
    event = told(sensor, IO_PORTS, refused(lambda: answer("iopl", 3), errno.EPERM))
    check_body(event, error=errno.EPERM, level=3, granted=1)


# ---- kexec --------------------------------------------------------------------------------------


def test_a_refused_kexec_is_told_with_its_flags(sensor: Sensor) -> None:
    needs("kexec_load", 0, 0, None, 0xFFFF)
    event = told(sensor, KEXEC, refused(lambda: answer("kexec_load", 0, 0, None, 1), errno.EPERM))
    check_body(event, error=errno.EPERM, flags=1)


def test_a_refused_kexec_of_a_file_is_told_with_its_path(sensor: Sensor, tmp_path: Path) -> None:
    needs("kexec_file_load", -1, -1, 0, None, 0xFFFF)
    (tmp_path / "kernel").write_bytes(b"no kernel")
    fd = os.open(tmp_path / "kernel", os.O_RDONLY)
    event = told(sensor, KEXEC, refused(lambda: answer("kexec_file_load", fd, -1, 1, b"\0", 4), errno.EPERM))
    os.close(fd)
    check_body(event, error=errno.EPERM, flags=4, path=os.fsencode(tmp_path / "kernel"))


def test_unloading_a_kexec_kernel_is_told(sensor: Sensor) -> None:
    needs("kexec_load", 0, 0, None, 0xFFFF)
    check_body(told(sensor, KEXEC, lambda: expect(0, answer("kexec_load", 0, 0, None, 0))))


# ---- modules ------------------------------------------------------------------------------------


@pytest.fixture
def module_file() -> Path:
    """A module of the running kernel that needs no other and is not loaded."""
    if not Path("/proc/modules").exists():
        pytest.skip("MODULES ARE NOT TESTED: this kernel has none")
    folder = Path("/lib/modules") / os.uname().release
    loaded = {line.split()[0] for line in Path("/proc/modules").read_text().splitlines()}
    for name in ("dummy", "ifb", "zram", "loop"):
        for path in folder.rglob(f"{name}.ko"):
            if name not in loaded:
                return path
    pytest.skip(f"LOADING A MODULE IS NOT TESTED: {folder} has none that is not compressed and can be loaded")


def test_a_module_is_told_when_it_is_loaded_and_unloaded(sensor: Sensor, module_file: Path) -> None:
    name = module_file.stem.encode()

    def insert() -> None:
        expect(0, answer("finit_module", os.open(module_file, os.O_RDONLY), b"\0", 0))

    event = told(sensor, MODULE_LOAD, insert)
    taints = Path(f"/sys/module/{module_file.stem}/taint").read_text().strip()
    check_body(event, name=name, taints=sum({"O": 1 << 12, "E": 1 << 13}.get(letter, 0) for letter in taints))
    event = told(sensor, MODULE_UNLOAD, lambda: expect(0, answer("delete_module", name + b"\0", 0)))
    check_body(event, name=name, taints=event.module_unload.taints)


@pytest.mark.skipif(not Path("/proc/modules").exists(), reason="MODULES ARE NOT TESTED: this kernel has none")
def test_refused_modules_are_told(sensor: Sensor) -> None:
    event = told(sensor, MODULE_LOAD, refused(lambda: answer("init_module", b"\x7fELF", 4, b"\0"), errno.EPERM))
    check_body(event, error=errno.EPERM)
    event = told(sensor, MODULE_LOAD, lambda: expect(-errno.ENOEXEC, answer("init_module", b"x" * 4096, 4096, b"\0")))
    check_body(event, error=errno.ENOEXEC)
    event = told(sensor, MODULE_UNLOAD, refused(lambda: answer("delete_module", b"dummy\0", 0), errno.EPERM))
    check_body(event, error=errno.EPERM, name=b"dummy")
