"""The whole agent on the source bcc: an exec is detected, a connect is told, a later sensor goes on."""

import ctypes
import os
import signal
import socket
import subprocess
from collections.abc import Iterator

import pytest

from simulators.running import eventually  # type: ignore[import-not-found]
from simulators.running_agent import Agent  # type: ignore[import-not-found]
from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.api.event.v1 import batch_pb2, event_pb2
from tocsin.errors import KernelError
from tocsin.kernel.bcc import compiler
from tocsin.kernel.core import check_requirements

SELF_TEST = "7c51c000-0000-4000-8000-000000000001"


def refusal() -> str:
    """Why the source cannot be used here; empty where it can."""
    if os.geteuid() != 0:
        return f"uid {os.geteuid()}, not root"
    try:
        check_requirements()
        ctypes.CDLL(compiler.LIBRARY)
    except (KernelError, OSError) as error:
        return str(error)
    return ""


REFUSAL = refusal()
pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(bool(REFUSAL), reason=f"BCC IS NOT TESTED: {REFUSAL}"),
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    with Agent("bcc") as running:
        yield running


def test_an_exec_is_detected_and_a_connect_is_told(agent: Agent) -> None:
    with agent.subscribed() as stream, socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def detected() -> bool:
            subprocess.run(["/bin/echo", "tocsin-self-test-act"], check=True, stdout=subprocess.DEVNULL)
            return SELF_TEST in {each.rule_id for each in stream.detections}

        def connects() -> list[event_pb2.Event]:
            found = [each for each in stream.events if each.type == event_pb2.EVENT_TYPE_TCP_CONNECT]
            return [each for each in found if each.tcp_connect.destination_port == port]

        eventually(detected, "the starter release's rule fires")
        socket.create_connection(("127.0.0.1", port)).close()
        (connect,) = eventually(connects, "the connection is told")
        assert stream.batches[-1].header.source == batch_pb2.SOURCE_BCC
    assert connect.process.pid == os.getpid()
    assert connect.tcp_connect.outcome == event_pb2.CONNECT_OUTCOME_ESTABLISHED
    detection = next(each for each in stream.detections if each.rule_id == SELF_TEST)
    assert detection.event.process.argv == b"/bin/echo\0tocsin-self-test-act\0"


def test_the_status_says_who_made_the_programs(agent: Agent) -> None:
    status = agent.status()
    assert status.source == batch_pb2.SOURCE_BCC
    assert status.health == control.HEALTH_DEGRADED
    assert "compiled on this host by BCC" in status.health_reason


def test_a_killed_sensor_is_replaced_and_goes_on(agent: Agent) -> None:
    pid = agent.pid(control.ROLE_SENSOR)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: agent.pid(control.ROLE_SENSOR) not in (0, pid) and agent.settled(), "another takes its place")
    with agent.subscribed() as stream:

        def seen() -> list[event_pb2.Event]:
            subprocess.run(["/bin/echo", "after-the-restart"], check=True, stdout=subprocess.DEVNULL)
            return list(stream.execs(b"after-the-restart"))

        eventually(seen, "execs are told again")
        assert stream.batches[-1].header.source == batch_pb2.SOURCE_BCC
