"""The source `bcc`: the same programs, compiled here: compared with /proc, and with what core tells."""

import ctypes
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel import oracle  # type: ignore[import-not-found]
from kernel.acting import Acts, Held, fork_and  # type: ignore[import-not-found]
from kernel.sensing import EXEC, EXIT, Sensor  # type: ignore[import-not-found]
from tocsin.api.event.v1 import event_pb2
from tocsin.api.event.v1.batch_pb2 import SOURCE_BCC
from tocsin.config import SensorConfig
from tocsin.errors import KernelError
from tocsin.kernel.bcc import compiler, source
from tocsin.kernel.btf import VMLINUX, Btf, Member, running_kernel

TIMES = ("boottime_ns", "exec_boottime_ns", "duration_ns", "run_time_ns")


def absence() -> str:
    """Why BCC cannot be tried here; empty where it can."""
    try:
        ctypes.CDLL(compiler.LIBRARY)
    except OSError as error:
        return str(error)
    return ""


ABSENCE = absence()
pytestmark = [
    pytest.mark.skipif(bool(ABSENCE), reason=f"BCC IS NOT TESTED: {ABSENCE}: install libbpfcc"),
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="module")
def bcc() -> Iterator[Sensor]:
    sensor = Sensor(source=source.open_bcc(SensorConfig())[0])
    yield sensor
    sensor.close()


def misreading(struct_name: str, member_name: str, bits: int) -> Btf:
    """The kernel's types, with one member moved."""

    class Moved(Btf):
        def members(self, number: int, bit_offset: int = 0) -> dict[str, Member]:
            found = super().members(number, bit_offset)
            if number == self.structure(struct_name) and member_name in found:
                was = found[member_name]
                found[member_name] = Member(was.bit_offset + bits, was.bits, was.scalar_bytes)
            return found

    return Moved(VMLINUX.read_bytes())


def test_a_program_is_told_as_proc_has_it(bcc: Sensor, acts: Acts) -> None:
    with Held([str(acts.path("hold")), "one", "two"], cwd="/tmp") as held:
        event = bcc.one(held.pid, EXEC)
        oracle.check(event.process, {**oracle.task(held.pid), **oracle.image(held.pid)})
        oracle.check(event.parent, oracle.task(os.getpid()))
        assert event.process.argv.split(b"\0")[1:3] == [b"one", b"two"]
        assert b"".join(part + b"\0" for part in oracle.ancestors(held.pid)).startswith(event.process.ancestors)
    assert bcc.one(held.pid, EXIT).exit.code == 0
    assert bcc.source.kind == SOURCE_BCC


def test_it_tells_every_act_as_core_does(bcc: Sensor, tmp_path: Path) -> None:
    core = Sensor()
    pid = fork_and(lambda: do_many(tmp_path))
    assert os.waitpid(pid, 0)[1] == 0
    try:
        for sensor in (bcc, core):
            sensor.one(pid, EXIT)
        told, expected = ([plain(each) for each in sensor.events if each.process.pid == pid] for sensor in (bcc, core))
        kinds = {event.type for event in expected}
        assert len(kinds) >= 15, [event_pb2.EventType.Name(kind) for kind in kinds]
        assert told == expected
    finally:
        core.close()


def do_many(folder: Path) -> None:
    """Acts of every family that this process may do to itself."""
    path = folder / "file"
    path.write_bytes(b"x")
    path.chmod(0o640)
    os.utime(path, (1, 1))
    os.truncate(path, 0)
    os.link(path, folder / "link")
    (folder / "symlink").symlink_to("file")
    path.rename(folder / "renamed")
    os.setxattr(folder / "renamed", "user.tocsin", b"1")
    os.chown(folder / "renamed", 1, 1)
    (folder / "directory").mkdir()
    (folder / "link").unlink()
    os.close(os.memfd_create("tocsin"))
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as peer:
        listener.accept()[0].close()
        peer.recv(1)
    os.setresuid(1, 1, 1)
    os.execv("/bin/true", ["true", "of", "bcc"])


def plain(event: event_pb2.Event) -> event_pb2.Event:
    """Without what differs between two looks at one act: times and numbers."""
    found = event_pb2.Event()
    found.CopyFrom(event)
    found.ClearField("cpu_sequence")
    found.boottime_ns = 0
    found.process.exec_boottime_ns = found.parent.exec_boottime_ns = 0
    body = getattr(found, str(found.WhichOneof("body")))
    for name in TIMES:
        if name in body.DESCRIPTOR.fields_by_name:
            body.ClearField(name)
    return found


def test_a_member_read_beside_its_place_is_found_and_refused() -> None:
    with pytest.raises(KernelError, match=r"misread the kernel and are not used: .*argv: got .* expected"):
        source.prove_apart(source.compile_programs(misreading("mm_struct", "arg_start", 8 * 16)))


def test_a_member_that_the_kernel_has_not_is_refused() -> None:
    class Without(Btf):
        def members(self, number: int, bit_offset: int = 0) -> dict[str, Member]:
            found = super().members(number, bit_offset)
            found.pop("start_boottime", None)
            return found

    with pytest.raises(KernelError, match=r"reads struct task_struct\.start_boottime, which this kernel has not"):
        source.prove_apart(source.compile_programs(Without(VMLINUX.read_bytes())))


def test_a_member_that_the_kernel_has_smaller_is_refused() -> None:
    class Smaller(Btf):
        def members(self, number: int, bit_offset: int = 0) -> dict[str, Member]:
            found = super().members(number, bit_offset)
            if number == self.structure("task_struct"):
                found["tgid"] = Member(found["tgid"].bit_offset, 0, 2)
            return found

    with pytest.raises(KernelError, match=r"struct task_struct\.tgid: the kernel has it otherwise"):
        source.compile_programs(Smaller(VMLINUX.read_bytes()))


def test_the_kernel_layout_is_that_of_the_running_kernel() -> None:
    btf = running_kernel()
    members = btf.members(btf.structure("task_struct"))
    assert members["comm"].bit_offset % 8 == 0
    assert members["tgid"].bit_offset - members["pid"].bit_offset == 32


def test_events_go_on_from_the_descriptors_of_a_handover(bcc: Sensor) -> None:
    bcc.settle()  # the ring has filled meanwhile
    resumed = source.resume_bcc([os.dup(fd) for fd in bcc.source.handover()])
    assert resumed.kind == SOURCE_BCC
    second = Sensor(source=resumed)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    second.one(child.pid, EXIT)
    resumed.close()
