"""The agent's state on its way from the monitor to the courier."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tocsin.errors import WireError
from tocsin.processes.state import AgentState, ProcessState, unpack

U8, U32, U64 = st.integers(0, 2**8 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
STATES = st.builds(
    AgentState,
    health=U8,
    reason=st.text(st.characters(codec="utf-8"), max_size=200),
    source=U8,
    processes=st.lists(st.builds(ProcessState, U8, U32, U32, U32), max_size=8).map(tuple),
    release_digest=st.binary(min_size=32, max_size=32),
    release_name=st.binary(max_size=200),
    rules=U32,
    rules_inert=U32,
    start_monotonic_ns=st.integers(0, 2**63 - 1),
    sensor_progress=U64,
    evaluator_progress=U64,
    enrichment=st.binary(max_size=200),
)


@given(STATES)
def test_what_was_packed_is_unpacked(state: AgentState) -> None:
    assert unpack(state.pack()) == state


@given(st.binary(max_size=300))
def test_garbage_is_a_wire_error(data: bytes) -> None:
    with pytest.raises(WireError):
        unpack(data)


@given(STATES, st.data())
def test_a_damaged_state_is_a_wire_error_or_another_state(state: AgentState, data: st.DataObject) -> None:
    packed = bytearray(state.pack())
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(WireError):
        unpack(bytes(packed))


@given(STATES, st.data())
def test_a_state_cut_short_is_a_wire_error(state: AgentState, data: st.DataObject) -> None:
    packed = state.pack()
    with pytest.raises(WireError):
        unpack(packed[: data.draw(st.integers(0, len(packed) - 1))])


def test_long_words_are_cut_to_the_bound() -> None:
    assert len(unpack(AgentState(reason="x" * 5000, release_name=b"y" * 5000).pack()).reason) == 1024


def test_an_enrichment_that_is_too_long_is_left_out() -> None:
    assert unpack(AgentState(reason="kept", enrichment=b"x" * 5000).pack()) == AgentState(reason="kept")


def test_more_processes_than_there_can_be_are_refused() -> None:
    with pytest.raises(ValueError, match="65 processes"):
        AgentState(processes=(ProcessState(1, 2, 3, 4),) * 65).pack()
