"""What a matcher takes and gives: the interface that both matchers have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tocsin.evaluate.release import Rule
from tocsin.evaluate.semantics import LogSource


@dataclass(frozen=True, slots=True)
class NamedEvent:
    """An event described by field names. A value of None is null: no value."""

    log_source: LogSource
    values: tuple[tuple[str, bytes | None], ...]
    """A name may stand more than once: a list."""
    line: int = 0


@dataclass(frozen=True, slots=True)
class Match:
    """A rule matched a schema event."""

    event_index: int
    """Position in the batch, from 0."""
    event: bytes
    """Serialised Event."""
    rule: Rule


@dataclass(frozen=True, slots=True)
class NamedMatch:
    """A rule matched a named event."""

    event_index: int
    """Position in the sequence, from 0."""
    event: NamedEvent
    rule: Rule


class Matcher(Protocol):
    """Finds the rules that events match. Results are ordered by event, then by rule id."""

    def set_users(self, users: Mapping[int, bytes]) -> None:
        """Names of the host's users, for the events that follow."""

    def match_batch(self, batch: bytes) -> list[Match]:
        """Matches of a serialised Batch. Raises WireError when it is none."""

    def match_named(self, events: Sequence[NamedEvent]) -> list[NamedMatch]:
        """Matches of named events."""
