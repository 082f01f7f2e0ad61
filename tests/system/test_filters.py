"""Filters and limits of the settings, in the whole agent on the real kernel."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from simulators.running import eventually  # type: ignore[import-not-found]
from simulators.running_agent import Agent, can_load_ebpf  # type: ignore[import-not-found]
from tocsin.api.event.v1 import batch_pb2, event_pb2

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(not can_load_ebpf(), reason="needs root and eBPF")]
CREATE = event_pb2.EVENT_TYPE_FILE_CREATE
SETTINGS = """
[sensor.filters]
events = ["process", "file", "-FILE_DELETE"]
limits = ["FILE_CREATE=5"]
"""
FILES = 200


def lost(header: batch_pb2.BatchHeader) -> int:
    """Files made that were lost or held back since the source was loaded."""
    return sum(loss.count for c in header.counters if c.event_type == CREATE for loss in c.lost)


def balanced(header: batch_pb2.BatchHeader) -> bool:
    """Whether every event since the source was loaded was drained or counted as lost: nothing is under way."""
    generated = sum(counter.generated for counter in header.counters)
    missing = sum(loss.count for counter in header.counters for loss in counter.lost)
    return generated == header.first_event_index + header.event_count + missing


def test_what_a_limit_holds_back_is_told_and_counted_and_what_is_off_is_not_told(tmp_path: Path) -> None:
    settings = tmp_path / "tocsin.toml"
    settings.write_text(SETTINGS)
    with Agent("core", "--config", str(settings)) as agent, agent.subscribed() as stream:
        eventually(lambda: stream.batches, "there is a batch to begin with")
        for number in range(FILES):
            (tmp_path / f"made-{number}").touch()
            (tmp_path / f"made-{number}").unlink()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            socket.create_connection(listener.getsockname()).close()
        subprocess.run(["/bin/echo", "all-is-done"], check=True, stdout=subprocess.DEVNULL)
        eventually(lambda: stream.execs(b"all-is-done"), "what came last is told")
        eventually(lambda: balanced(stream.batches[-1].header), "each event was drained, or is counted as lost")
        batches = list(stream.batches)
    assert held_back(batches) == lost(batches[-1].header) - lost(batches[0].header) > 0
    kinds = {event.type for event in stream.events if event.process.pid == os.getpid()}
    assert kinds <= {event_pb2.EVENT_TYPE_FORK, CREATE, event_pb2.EVENT_TYPE_FILE_WRITE}


def held_back(batches: list[batch_pb2.Batch]) -> int:
    """Files made that THROTTLED events behind the first batch tell of."""
    told = [event.throttled for batch in batches[1:] for event in batch.events]
    return sum(each.count for each in told if each.event_type == CREATE)


def test_settings_that_make_no_sense_are_refused_by_name(tmp_path: Path) -> None:
    settings = tmp_path / "tocsin.toml"
    settings.write_text('[sensor.filters]\nevents = ["files"]\n')
    with pytest.raises(AssertionError, match="the agent runs"):
        Agent("core", "--config", str(settings))
