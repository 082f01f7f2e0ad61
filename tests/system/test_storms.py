"""Many acts at full speed: each is received once, none is lost. Execs are in test_agent, more acts in `make storms`."""

import os
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulators.running import eventually  # type: ignore[import-not-found]
from simulators.running_agent import Agent, Stream, can_load_ebpf  # type: ignore[import-not-found]
from tocsin.api.event.v1 import event_pb2

ACTS = 2000
pytestmark = [pytest.mark.kernel, pytest.mark.skipif(not can_load_ebpf(), reason="needs root and eBPF")]


@pytest.fixture
def stream() -> Iterator[Stream]:
    """A subscription to an agent with live events."""
    with Agent("core") as agent, agent.subscribed() as stream:
        yield stream


def of_this_process(stream: Stream, kind: int) -> list[event_pb2.Event]:
    """Events of a type that this process caused."""
    return [event for event in stream.events if event.type == kind and event.process.pid == os.getpid()]


def assert_nothing_lost(stream: Stream) -> None:
    assert not stream.losses
    assert not [event for batch in stream.batches for event in batch.events if event.HasField("loss")]
    assert not any(counter.lost for counter in stream.batches[-1].header.counters)


def test_two_thousand_unlinks_are_each_seen_once(stream: Stream, tmp_path: Path) -> None:
    paths = [tmp_path / f"file-{number}" for number in range(ACTS)]
    for path in paths:
        path.touch()
        path.unlink()
    expected = Counter(bytes(path) for path in paths)

    def seen() -> Counter[bytes]:
        found = [event.file_delete.path for event in of_this_process(stream, event_pb2.EVENT_TYPE_FILE_DELETE)]
        return Counter(path for path in found if path.startswith(bytes(tmp_path)))

    eventually(lambda: bytes(paths[-1]) in seen(), "the last unlink is seen")
    assert seen() == expected
    assert_nothing_lost(stream)


def test_two_thousand_loopback_connects_are_each_seen_once(stream: Stream) -> None:
    ports: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        for _ in range(ACTS):
            with socket.create_connection(address) as client:
                ports.append(client.getsockname()[1])
                listener.accept()[0].close()

    def seen() -> list[int]:
        connects = of_this_process(stream, event_pb2.EVENT_TYPE_TCP_CONNECT)
        return [e.tcp_connect.source_port for e in connects if e.tcp_connect.destination_port == address[1]]

    eventually(lambda: len(seen()) >= ACTS, "every connect is seen")
    assert seen() == ports
    assert_nothing_lost(stream)
