"""The whole agent on the source netlink: it detects, it says that it is reduced, it comes back."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulators.running import eventually  # type: ignore[import-not-found]
from simulators.running_agent import Agent  # type: ignore[import-not-found]
from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.api.event.v1 import batch_pb2, event_pb2
from tocsin.errors import KernelError
from tocsin.kernel.netlink.connector import Connector
from tocsin.kernel.netlink.source import LIMITS

SELF_TEST = "7c51c000-0000-4000-8000-000000000001"
SYS_PTRACE_AND_DAC_READ_SEARCH = 1 << 19 | 1 << 2


def refusal() -> str:
    """Why the proc connector cannot be used here; empty where it can."""
    if os.geteuid() != 0:
        return f"uid {os.geteuid()}, not root"
    try:
        Connector(1 << 16).close()
    except KernelError as error:
        return str(error)
    return ""


REFUSAL = refusal()
pytestmark = [pytest.mark.kernel, pytest.mark.skipif(bool(REFUSAL), reason=f"NETLINK IS NOT TESTED: {REFUSAL}")]


@pytest.fixture
def agent() -> Iterator[Agent]:
    with Agent("netlink") as running:
        yield running


@contextlib.contextmanager
def connected_child() -> Iterator[tuple[int, int]]:
    """A process of another user with a connection; its pid and the port that it is connected to."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        program = (
            "import os, socket, sys; s = socket.socket(); os.setuid(65534); "
            f"s.connect(('127.0.0.1', {port})); sys.stdin.read()"
        )
        child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
        server = listener.accept()[0]
        yield child.pid, port
        child.communicate(b"")
        server.close()


def test_an_exec_is_detected_and_a_connect_is_told(agent: Agent) -> None:
    with agent.subscribed() as stream, connected_child() as (pid, port):

        def detected() -> bool:
            subprocess.run(["/bin/echo", "tocsin-self-test-act"], check=True, stdout=subprocess.DEVNULL)
            return SELF_TEST in {each.rule_id for each in stream.detections}

        def connects() -> list[event_pb2.Event]:
            found = [each for each in stream.events if each.type == event_pb2.EVENT_TYPE_TCP_CONNECT]
            return [each for each in found if each.tcp_connect.destination_port == port]

        eventually(detected, "the starter release's rule fires")
        (connect,) = eventually(connects, "the child's connection is told")
        assert stream.batches[-1].header.source == batch_pb2.SOURCE_NETLINK
    assert (connect.process.pid, connect.process.uid) == (pid, 65534)
    assert connect.process.exe == os.fsencode(os.path.realpath(sys.executable))
    assert str(port).encode() in connect.process.argv
    assert connect.parent.pid == os.getpid()
    detection = next(each for each in stream.detections if each.rule_id == SELF_TEST)
    assert detection.event.process.argv == b"/bin/echo\0tocsin-self-test-act\0"


def test_the_status_says_what_is_not_seen(agent: Agent) -> None:
    status = agent.status()
    assert status.source == batch_pb2.SOURCE_NETLINK
    assert status.health == control.HEALTH_DEGRADED
    for limit in LIMITS:
        assert limit in status.health_reason


def test_the_sensor_keeps_no_more_than_it_needs_to_read_proc(agent: Agent) -> None:
    lines = Path(f"/proc/{agent.pid(control.ROLE_SENSOR)}/status").read_text().splitlines()
    facts = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    assert int(facts["CapEff"], 16) & ~SYS_PTRACE_AND_DAC_READ_SEARCH == 0
    assert int(facts["CapBnd"], 16) & ~SYS_PTRACE_AND_DAC_READ_SEARCH == 0
    assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")


def test_a_killed_sensor_is_replaced_and_senses(agent: Agent) -> None:
    pid = agent.pid(control.ROLE_SENSOR)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: agent.pid(control.ROLE_SENSOR) not in (0, pid) and agent.settled(), "another takes its place")
    with agent.subscribed() as stream:

        def seen() -> list[event_pb2.Event]:
            subprocess.run(["/bin/echo", "after-the-restart"], check=True, stdout=subprocess.DEVNULL)
            return list(stream.execs(b"after-the-restart"))

        eventually(seen, "execs are told again")
