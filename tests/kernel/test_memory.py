"""Memory that code can be put into and run from: memfd_create, and pages to write and to execute."""

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator

import pytest

from kernel.acting import Acts  # type: ignore[import-not-found]
from kernel.calling import call, compat, done, fails_with, refuse  # type: ignore[import-not-found]
from kernel.sensing import Sensor  # type: ignore[import-not-found]
from tocsin.api.event.v1 import event_pb2 as pb
from tocsin.config import FilterConfig, SensorConfig

MEMFD, EXECUTABLE = pb.EVENT_TYPE_MEMFD_CREATE, pb.EVENT_TYPE_MEMORY_EXECUTABLE
READ, WRITE, EXEC = mmap.PROT_READ, mmap.PROT_WRITE, mmap.PROT_EXEC
ALL = READ | WRITE | EXEC
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
PAGE = mmap.PAGESIZE
I386_MMAP, I386_MPROTECT, I386_MMAP2, I386_MEMFD_CREATE = 90, 125, 192, 356


@pytest.fixture(scope="module")
def sensor() -> Iterator[Sensor]:
    """One that tells memory and processes only: it loads quickly."""
    opened = Sensor(SensorConfig(filters=FilterConfig(events=("memory", "process"))))
    yield opened
    opened.close()


def pages(protection: int = READ | WRITE) -> int:
    return int(call("mmap", 0, PAGE, protection, PRIVATE, -1, 0))


def check_actor(event: pb.Event, pid: int) -> None:
    assert (event.process.pid, event.process.tid, event.parent.pid) == (pid, pid, os.getpid())
    assert event.process.exe == os.readlink(b"/proc/self/exe")
    assert event.flags == 0


@pytest.mark.parametrize("name", [b"payload", b"", b"n" * 249])
def test_memfd_create_is_told_with_name_flags_and_inode(sensor: Sensor, name: bytes) -> None:
    reader, writer = os.pipe()

    def act() -> None:
        os.write(
            writer, str(os.stat(call("memfd_create", name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)).st_ino).encode()
        )

    pid = done(act)
    inode = int(os.read(reader, 32))
    os.close(reader)
    os.close(writer)
    event = sensor.one(pid, MEMFD)
    check_actor(event, pid)
    assert event.memfd_create == pb.Memory(flags=os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING, inode=inode, name=name)


@pytest.mark.parametrize("code", [errno.EPERM, errno.EACCES])
def test_a_memfd_that_is_refused_is_told_with_its_error(sensor: Sensor, code: int) -> None:
    def act() -> None:
        refuse("memfd_create", code)
        fails_with(code, lambda: call("memfd_create", b"refused", os.MFD_CLOEXEC))

    pid = done(act)
    event = sensor.one(pid, MEMFD)
    check_actor(event, pid)
    assert event.memfd_create == pb.Memory(error=code, flags=os.MFD_CLOEXEC, name=b"refused")


def test_a_memfd_with_wrong_flags_is_not_told(sensor: Sensor) -> None:
    pid = done(lambda: fails_with(errno.EINVAL, lambda: call("memfd_create", b"wrong", 0xFFFF)))
    sensor.settle()
    assert sensor.of(pid, MEMFD) == []


def test_memfd_create_of_a_32_bit_process_is_told(sensor: Sensor, acts: Acts) -> None:
    pid, (fd,) = compat(acts.path("int80"), (I386_MEMFD_CREATE, "s:small", os.MFD_CLOEXEC))
    assert fd >= 0
    body = sensor.one(pid, MEMFD).memfd_create
    assert body.inode
    assert body == pb.Memory(flags=os.MFD_CLOEXEC, inode=body.inode, name=b"small")


def test_mapping_memory_to_write_and_execute_is_told(sensor: Sensor) -> None:
    reader, writer = os.pipe()
    pid = done(lambda: os.write(writer, str(pages(ALL)).encode()))
    address = int(os.read(reader, 32))
    os.close(reader)
    os.close(writer)
    event = sensor.one(pid, EXECUTABLE)
    check_actor(event, pid)
    assert event.memory_executable == pb.Memory(address=address, length=PAGE, protection=ALL, flags=PRIVATE)


@pytest.mark.parametrize("name", ["mprotect", "pkey_mprotect"])
def test_making_memory_writable_and_executable_is_told(sensor: Sensor, name: str) -> None:
    address = pages()
    extra = (-1,) if name == "pkey_mprotect" else ()
    pid = done(lambda: call(name, address, PAGE, ALL, *extra))
    event = sensor.one(pid, EXECUTABLE)
    check_actor(event, pid)
    assert event.memory_executable == pb.Memory(address=address, length=PAGE, protection=ALL)


@pytest.mark.parametrize("code", [errno.EPERM, errno.EACCES])
def test_executable_memory_that_is_refused_is_told_with_its_error(sensor: Sensor, code: int) -> None:
    address = pages()

    def act() -> None:
        refuse("mprotect", code)
        fails_with(code, lambda: call("mprotect", address, PAGE, ALL))

    event = sensor.one(done(act), EXECUTABLE)
    assert event.memory_executable == pb.Memory(error=code, address=address, length=PAGE, protection=ALL)


def test_a_mapping_that_is_refused_is_told_with_the_address_that_was_asked_for(sensor: Sensor) -> None:
    def act() -> None:
        refuse("mmap")
        fails_with(errno.EPERM, lambda: call("mmap", 0x10000000, PAGE, ALL, PRIVATE, -1, 0))

    event = sensor.one(done(act), EXECUTABLE)
    assert event.memory_executable == pb.Memory(
        error=errno.EPERM, address=0x10000000, length=PAGE, protection=ALL, flags=PRIVATE
    )


def test_memory_that_is_written_first_and_executed_later_is_not_told(sensor: Sensor) -> None:
    def act() -> None:
        address = pages()
        ctypes.memset(address, 0xC3, 1)
        call("mprotect", address, PAGE, READ | EXEC)
        call("mprotect", address, PAGE, EXEC)
        call("mprotect", address, PAGE, READ | WRITE)
        pages(READ | EXEC)

    pid = done(act)
    sensor.settle()
    assert sensor.of(pid, EXECUTABLE) == []


def test_a_mapping_that_is_impossible_is_not_told(sensor: Sensor) -> None:
    pid = done(lambda: fails_with(errno.EINVAL, lambda: call("mmap", 0, 0, ALL, PRIVATE, -1, 0)))
    sensor.settle()
    assert sensor.of(pid, EXECUTABLE) == []


@pytest.mark.parametrize(
    "made",
    [
        (I386_MMAP2, 0, PAGE, ALL, PRIVATE, -1),
        (I386_MMAP, f"w:0,{PAGE},{ALL},{PRIVATE},-1,0"),
    ],
    ids=["mmap2", "old mmap"],
)
def test_mapping_of_a_32_bit_process_is_told(sensor: Sensor, acts: Acts, made: tuple[int | str, ...]) -> None:
    pid, (address,) = compat(acts.path("int80"), made)
    event = sensor.one(pid, EXECUTABLE)
    assert event.process.pid == pid
    assert event.memory_executable == pb.Memory(
        address=address & 0xFFFFFFFF, length=PAGE, protection=ALL, flags=PRIVATE
    )


@pytest.mark.parametrize(
    "made",
    [(I386_MMAP2, 0, PAGE, READ | EXEC, PRIVATE, -1), (I386_MMAP, f"w:0,{PAGE},{READ | WRITE},{PRIVATE},-1,0")],
    ids=["mmap2", "old mmap"],
)
def test_ordinary_mapping_of_a_32_bit_process_is_not_told(
    sensor: Sensor, acts: Acts, made: tuple[int | str, ...]
) -> None:
    pid, _ = compat(acts.path("int80"), made)
    sensor.settle()
    assert sensor.of(pid, EXECUTABLE) == []


def test_mprotect_of_a_32_bit_process_is_told(sensor: Sensor, acts: Acts) -> None:
    address = 0x20000000
    fixed = PRIVATE | 0x10  # MAP_FIXED
    pid, results = compat(
        acts.path("int80"),
        (I386_MMAP2, address, PAGE, READ | WRITE, fixed, -1),
        (I386_MPROTECT, address, PAGE, ALL),
    )
    assert results == [address, 0]
    assert sensor.one(pid, EXECUTABLE).memory_executable == pb.Memory(address=address, length=PAGE, protection=ALL)
