"""Channels that a sensor or an evaluator reads, over real sockets."""

import logging
import os
import time
from collections.abc import Iterator

import pytest

from tocsin.errors import PeerError
from tocsin.processes.channel import Channel, Kind, Message, pair, unexpected
from tocsin.processes.peers import Peers


class Reader:
    """A process with a monitor and one peer; what it got, and who is gone."""

    def __init__(self) -> None:
        self.got: list[int] = []
        self.gone: list[Channel] = []
        self.monitor, monitor = map(Channel, pair())
        self.peers = Peers(monitor, self.take, self.gone.append, logging.getLogger("test"))
        self.peer, self.channel = map(Channel, pair())
        self.peers.attach("peer", self.channel, self.take, None)

    def take(self, message: Message) -> None:
        """Notes an ACK; drops the peer for a SHUTDOWN; nothing else may be sent."""
        if message.kind is Kind.SHUTDOWN:
            self.peers.drop(self.channel, "it said so")
        elif message.kind is not Kind.ACK:
            raise unexpected(message)
        self.got.append(message.b)


@pytest.fixture
def reader() -> Iterator[Reader]:
    """With both ends open."""
    made = Reader()
    yield made
    made.peer.close()
    made.monitor.close()


def test_a_peer_that_is_gone_is_dropped(reader: Reader) -> None:
    reader.peer.send(Message(Kind.ACK, b=1))
    reader.peer.close()
    reader.peers.serve(0)
    assert (reader.got, reader.gone) == ([1], [reader.channel])


def test_a_peer_that_sends_what_it_may_not_is_dropped(reader: Reader) -> None:
    reader.peer.send(Message(Kind.LOAD))
    reader.peers.serve(0)
    assert reader.gone == [reader.channel]


def test_a_peer_that_cannot_be_sent_to_is_dropped(reader: Reader) -> None:
    reader.peer.close()
    assert not reader.peers.send(reader.channel, Message(Kind.ACK))
    assert reader.gone == [reader.channel]


def test_nothing_is_read_of_a_peer_after_the_message_that_dropped_it(reader: Reader) -> None:
    reader.peer.send(Message(Kind.SHUTDOWN, b=1))
    reader.peer.send(Message(Kind.ACK, b=2))
    reader.peers.serve(0)
    assert (reader.got, reader.gone) == ([1], [reader.channel])


def test_a_new_peer_replaces_the_former_one(reader: Reader) -> None:
    peer, channel = map(Channel, pair())
    reader.peers.attach("peer", channel, reader.take, reader.channel)
    peer.send(Message(Kind.ACK, b=7))
    reader.peers.serve(0)
    assert (reader.got, reader.gone) == ([7], [reader.channel])
    peer.close()


def test_a_descriptor_that_is_watched_ends_the_waiting(reader: Reader) -> None:
    readable, writable = os.pipe()
    reader.peers.watch(readable)
    os.write(writable, b"x")
    began_s = time.monotonic()
    reader.peers.serve(30)
    reader.peers.unwatch(readable)
    assert time.monotonic() - began_s < 10
    assert not reader.gone
    os.close(readable)
    reader.peers.serve(0)
    os.close(writable)


def test_a_peer_that_is_held_is_read_later(reader: Reader) -> None:
    reader.peer.send(Message(Kind.ACK, b=1))
    reader.peers.hold(reader.channel, held=True)
    reader.peers.serve(0)
    assert reader.got == []
    reader.peers.hold(reader.channel, held=False)
    reader.peers.serve(0)
    assert reader.got == [1]


def test_a_peer_that_is_held_can_be_dropped(reader: Reader) -> None:
    reader.peers.hold(reader.channel, held=True)
    reader.peers.drop(reader.channel, "replaced")
    reader.peers.drop(reader.channel, "again")
    assert reader.gone == [reader.channel]


def test_the_end_of_the_monitor_is_raised(reader: Reader) -> None:
    reader.monitor.close()
    with pytest.raises(PeerError, match="closed the channel"):
        reader.peers.serve(0)
