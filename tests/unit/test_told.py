"""Losses in the kernel that were told, over the death of a sensor."""

import os
from collections import Counter

import pytest

from tocsin.api.event.v1 import batch_pb2, event_pb2
from tocsin.errors import KernelError
from tocsin.kernel.source import SourceCounters
from tocsin.processes.batching import Losses
from tocsin.processes.told import ToldLosses, lost

EXEC, EXIT = event_pb2.EVENT_TYPE_EXEC, event_pb2.EVENT_TYPE_EXIT
RING_FULL = event_pb2.LOSS_REASON_RING_FULL


def counters(execs: int, exits: int) -> SourceCounters:
    """A source that lost so many."""
    return SourceCounters(
        [
            batch_pb2.TypeCounter(event_type=kind, lost=[batch_pb2.LossCounter(reason=RING_FULL, count=count)])
            for kind, count in ((EXEC, execs), (EXIT, exits))
        ]
    )


def test_a_later_sensor_tells_what_its_predecessor_did_not() -> None:
    first = ToldLosses()
    first.note(lost(counters(7, 2)))
    losses = Losses(ToldLosses(os.dup(first.fd)).counters())
    assert [(e.loss.event_type, e.loss.count, e.loss.total) for e in losses.take(counters(10, 2))] == [(EXEC, 3, 10)]


def test_the_first_sensor_tells_every_loss() -> None:
    losses = Losses(ToldLosses().counters())
    assert [(e.loss.event_type, e.loss.count) for e in losses.take(counters(1, 0))] == [(EXEC, 1)]


def test_a_batch_that_is_sent_again_does_not_take_back_what_was_told() -> None:
    told = ToldLosses()
    told.note(lost(counters(7, 2)))
    told.note(lost(counters(3, 0)))
    assert lost(ToldLosses(told.fd).counters()) == Counter({(EXEC, RING_FULL): 7, (EXIT, RING_FULL): 2})


def test_another_file_is_a_kernel_error() -> None:
    fd = os.memfd_create("other")
    os.write(fd, b"no rows")
    with pytest.raises(KernelError, match="not readable"):
        ToldLosses(fd)
    os.close(fd)
