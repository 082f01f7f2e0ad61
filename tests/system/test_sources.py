"""Which source an agent takes when eBPF may not be, and that it comes back."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from simulators.running import eventually  # type: ignore[import-not-found]
from simulators.running_agent import Agent, can_load_ebpf  # type: ignore[import-not-found]
from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.api.event.v1 import batch_pb2
from tocsin.kernel.guard import MARKER, MAX_UNCLEAN_BOOTS

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(not can_load_ebpf(), reason="needs root and eBPF")]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory whose marker tells of boots that ended while eBPF was attached."""
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    marker = {"boot_id": "an-earlier-one", "unclean_boots": MAX_UNCLEAN_BOOTS - 1}
    (directory / MARKER).write_text(json.dumps(marker))
    return directory


def test_after_two_unclean_boots_the_agent_sees_without_ebpf_and_says_why(state: Path) -> None:
    with Agent("auto", "--state-dir", str(state)) as agent, agent.subscribed() as stream:
        status = agent.status()
        assert status.source == batch_pb2.SOURCE_NETLINK
        assert status.health == control.HEALTH_DEGRADED
        eventually(lambda: stream.batches, "batches come")
        subprocess.run(["/bin/sleep", "0.3"], check=True)
        eventually(lambda: stream.execs(b"sleep\x00"), "an exec is seen all the same")
        assert "boots in a row ended while eBPF was attached" in stream.batches[-1].header.shortfall
    assert (state / MARKER).exists(), "who may not attach does not take the marker away"


def test_without_the_marker_ebpf_is_attached_again_and_taken_away_in_the_end(state: Path) -> None:
    (state / MARKER).unlink()
    with Agent("auto", "--state-dir", str(state)) as agent:
        assert agent.status().source == batch_pb2.SOURCE_CORE
        assert json.loads((state / MARKER).read_text())["boot_id"]
        sensor = agent.pid(control.ROLE_SENSOR)
        os.kill(sensor, 9)
        eventually(lambda: agent.pid(control.ROLE_SENSOR) not in (0, sensor) and agent.settled(), "a new sensor runs")
        assert agent.status().source == batch_pb2.SOURCE_CORE
    assert not (state / MARKER).exists()
