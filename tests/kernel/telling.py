"""Acts of children, checked by the kernel's own answers, and what was told of them."""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

from google.protobuf.message import Message

from kernel.acting import fork_and  # type: ignore[import-not-found]
from kernel.calling import LIBC, ended, number  # type: ignore[import-not-found]
from kernel.sensing import BODY, Sensor  # type: ignore[import-not-found]
from tocsin.api.event.v1 import event_pb2

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_SYMLINK_NOFOLLOW = 0x100
NEWER = {"fchmodat2": 452, "setxattrat": 463, "removexattrat": 466}
"""Numbers that libseccomp may not know yet: the same on every architecture."""
Argument = int | bytes | Path | ctypes.Array[ctypes.c_char] | None


def answer(name: str, *arguments: Argument) -> int:
    """What the kernel returns: the result, or the negative errno."""
    called = NEWER[name] if name in NEWER else number(name)
    result: int = LIBC.syscall(ctypes.c_long(called), *[_passed(argument) for argument in arguments])
    return -ctypes.get_errno() if result == -1 else result


def _passed(argument: Argument) -> object:
    if isinstance(argument, Path):
        return os.fsencode(argument)
    return ctypes.c_long(argument) if isinstance(argument, int) else argument


def expect(result: int, got: int) -> None:
    """In a child: ends it with an error when the call did not do what the test is about."""
    if got != result:
        raise AssertionError(f"the call returned {got} ({os.strerror(abs(got))}), expected {result}")


def told(
    sensor: Sensor, kind: "event_pb2.EventType.ValueType", act: Callable[[], object], count: int = 1
) -> event_pb2.Event:
    """The last of the `count` events of this type that a child's act caused."""
    pid = ended(fork_and(act))
    event: event_pb2.Event = sensor.one(pid, kind, count)
    assert event.parent.pid == os.getpid()
    return event


def told_types(sensor: Sensor, act: Callable[[], object]) -> list[str]:
    """Names of all types that were told of a child's act, in order, without those of its life."""
    pid = ended(fork_and(act))
    sensor.settle()
    names = [event_pb2.EventType.Name(event.type) for event in sensor.events if event.process.pid == pid]
    return [name.removeprefix("EVENT_TYPE_") for name in names if name not in ("EVENT_TYPE_FORK", "EVENT_TYPE_EXIT")]


def body_of(event: event_pb2.Event) -> Message:
    """What the event says that was done."""
    found: Message = getattr(event, BODY[event.type])
    return found


def check_body(event: event_pb2.Event, **expected: bytes | int) -> None:
    """The whole body: a field that is not expected must be empty."""
    body = body_of(event)
    assert body == type(body)(**expected), f"got {body}, expected {expected}"
