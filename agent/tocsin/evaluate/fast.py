"""The matcher that is shipped: one scan over a batch finds candidates, only they are decoded and checked.

batch -> index (C) -> projection of the used fields (C), left out where the like
was seen before -> one Hyperscan scan -> events with hits -> exact check by
closures. Equal to the reference matcher on every well-formed input; an event
that no rule looks at is not read.
One matcher belongs to one thread.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from tocsin.api.content.v1 import release_pb2 as pb
from tocsin.api.event.v1 import event_pb2
from tocsin.errors import WireError
from tocsin.evaluate import marker, semantics
from tocsin.evaluate.boundary import BoundedRule
from tocsin.evaluate.literal import USELESS_COST
from tocsin.evaluate.match import Match, NamedEvent, NamedMatch
from tocsin.evaluate.memo import UNKNOWN, Memo
from tocsin.evaluate.predicate import closure
from tocsin.evaluate.prefilter import Hit, Prefilter
from tocsin.evaluate.projection import Projection
from tocsin.evaluate.release import Release
from tocsin.evaluate.semantics import LogSource
from tocsin.evaluate.view import NamedView, SchemaView, View
from tocsin.records import framing
from tocsin.records.field import Field

MAX_LANES: Final = 256
"""Log sources of named events that are remembered; they come from outside."""

Candidates = dict[int, set[int]]
"""Named event -> numbers of the rules it may satisfy."""
Span = tuple[int, int]
"""Positions in a list of hits: the first, and the one behind the last."""
NO_HITS: Final = (0, 0)


@dataclass(frozen=True, slots=True)
class Lane:
    """What events of one origin have to do with: rules by literal, and rules that are always checked."""

    by_literal: tuple[tuple[int, ...], ...]
    always: tuple[int, ...]

    @property
    def empty(self) -> bool:
        """Whether no rule looks at such events."""
        return not self.always and not any(self.by_literal)


class FastMatcher:
    """A Matcher. Raises ContentError when it is made of content that Hyperscan does not take."""

    def __init__(self, release: Release, useless_cost: float = USELESS_COST) -> None:
        """`useless_cost`: literals expected more often in an event are not scanned for."""
        self._rules = [BoundedRule(rule, closure(rule.condition)) for rule in release.rules]
        self._prefilter = Prefilter((rule.condition for rule in release.rules), useless_cost)
        self._names = ("", *release.fields)
        self._numbers = {name: number for number, name in enumerate(release.fields, 1)}
        self._users: dict[int, bytes] = {}
        self._named_lanes: dict[LogSource, Lane] = {}
        lanes = {t: self._lane(semantics.log_sources(t)) for t in semantics.EVENT_FIELDS}
        self._lanes = {event_type: lane for event_type, lane in lanes.items() if not lane.empty}
        self._always = frozenset(event_type for event_type, lane in self._lanes.items() if lane.always)
        """Event types of which each event is checked."""
        self._fields: dict[int, tuple[Field | None, ...]] = {
            t: tuple(semantics.EVENT_FIELDS[t].get(name) for name in self._names) for t in self._lanes
        }
        keywords = any(uses_keyword(rule.condition) for rule in release.rules)
        self._memo = Memo()
        self._projection = Projection(release.fields, tuple(self._lanes), every_field=keywords)

    @property
    def faults(self) -> list[BoundedRule]:
        """Rules that raised; see their `faults`, `last_fault` and `muted`."""
        return [rule for rule in self._rules if rule.faults]

    def set_users(self, users: Mapping[int, bytes]) -> None:
        """Names of the host's users, for the events that follow."""
        self._users = dict(users)
        self._projection.set_users(self._users)

    def match_batch(self, batch: bytes) -> list[Match]:
        """Matches of a serialised Batch. Raises WireError when it is none."""
        return self.match_index(framing.index(batch))

    def match_index(self, index: framing.Index) -> list[Match]:
        """Matches of a batch whose index is known."""
        if not self._lanes:
            return []
        if self._memo.full:
            self._memo = Memo()
        memo = self._memo
        buffer, ends, outcomes = self._projection.project(index, memo)
        text = bytes(buffer)
        if UNKNOWN in outcomes:
            for event, hits in self._checks(index.types, text, ends, outcomes):
                outcomes[event] = memo.number(self._outcome(index, event, hits))
            memo.remember(index.types, text, ends, outcomes)
        found = [(event, outcome) for event, outcome in enumerate(outcomes) if outcome]
        return [Match(e, index.event(e), self._rules[number].rule) for e, outcome in found for number in memo[outcome]]

    def match_named(self, events: Sequence[NamedEvent]) -> list[NamedMatch]:
        """Matches of named events."""
        parts: list[bytes] = []
        ends, views, lanes, size = [], [], [], 0
        for event in events:
            values = values_by_name(event)
            text = b"".join(self._marked(values))
            size += len(text)
            parts.append(text)
            ends.append(size)
            views.append(NamedView(values, self._names))
            lanes.append(self._named_lane(event.log_source))
        candidates = named_candidates(self._prefilter.scan(b"".join(parts)), ends, lanes)
        return [
            NamedMatch(event, events[event], self._rules[number].rule)
            for event in sorted(candidates)
            for number in self._satisfied(candidates[event], views[event])
        ]

    def _checks(
        self, types: bytearray, text: bytes, ends: Sequence[int], outcomes: Sequence[int]
    ) -> Iterator[tuple[int, Sequence[Hit]]]:
        """The events of unknown outcome that may satisfy a rule, each with its hits."""
        hits = self._prefilter.scan(text)
        spans = groups(hits, ends)
        if self._always:
            unknown = (i for i, outcome in enumerate(outcomes) if outcome == UNKNOWN and i not in spans)
            spans.update({i: NO_HITS for i in unknown if types[i] in self._always})
        for event, (first, behind) in spans.items():
            yield event, hits[first:behind]

    def _outcome(self, index: framing.Index, event: int, hits: Iterable[Hit]) -> tuple[int, ...]:
        """The rules that the event satisfies; `hits` are those in its piece of the scan buffer."""
        lane = self._lanes[index.types[event]]
        numbers = set(lane.always).union(*[lane.by_literal[literal] for _, literal in hits])
        if not numbers:
            return ()
        return tuple(self._satisfied(numbers, self._schema_view(index.event(event), event)))

    def _satisfied(self, numbers: Iterable[int], view: View) -> Iterator[int]:
        return (number for number in sorted(numbers) if self._rules[number].matches(view))

    def _schema_view(self, raw: bytes, position: int) -> SchemaView:
        try:
            event = event_pb2.Event.FromString(raw)
        except DecodeError as error:
            raise WireError(f"event {position} of the batch is malformed") from error
        return SchemaView(event, self._fields[event.type], self._users)

    def _marked(self, values: Mapping[str, Sequence[bytes]]) -> Iterator[bytes]:
        for name, of_field in values.items():
            number = self._numbers.get(name, 0)
            for value in of_field:
                yield marker.start(number) + value + marker.end(number)

    def _lane(self, sources: Sequence[LogSource]) -> Lane:
        eligible = {n for n, r in enumerate(self._rules) if any(r.rule.log_source.covers(s) for s in sources)}
        by_literal = (tuple(n for n in numbers if n in eligible) for numbers in self._prefilter.rules)
        return Lane(tuple(by_literal), tuple(n for n in self._prefilter.always if n in eligible))

    def _named_lane(self, source: LogSource) -> Lane:
        lane = self._named_lanes.get(source)
        if lane is None:
            if len(self._named_lanes) >= MAX_LANES:
                self._named_lanes.clear()
            lane = self._named_lanes[source] = self._lane((source,))
        return lane


def groups(hits: Sequence[Hit], ends: Sequence[int]) -> dict[int, Span]:
    """The hits of each event that has any, in the order of events.

    `hits` are ordered by where they end; `ends[i]` is the offset behind event i in the scanned bytes.
    """
    found: dict[int, Span] = {}
    first, limit, event = 0, 0, -1
    for position, (end, _) in enumerate(hits):
        if end > limit:
            if position:
                found[event] = (first, position)
            first, event = position, bisect_left(ends, end)
            limit = ends[event]
    if hits:
        found[event] = (first, len(hits))
    return found


def values_by_name(event: NamedEvent) -> dict[str, list[bytes]]:
    """The values of each field; null is none."""
    values: dict[str, list[bytes]] = {}
    for name, value in event.values:
        if value is not None:
            values.setdefault(name, []).append(value)
    return values


def named_candidates(hits: Sequence[Hit], ends: Sequence[int], lanes: Sequence[Lane]) -> Candidates:
    """Candidates of named events, each with its own lane."""
    candidates: Candidates = {}
    for end, literal in hits:
        event = bisect_left(ends, end)
        rules = lanes[event].by_literal[literal]
        if rules:
            candidates.setdefault(event, set()).update(rules)
    for event, lane in enumerate(lanes):
        if lane.always:
            candidates.setdefault(event, set()).update(lane.always)
    return candidates


def uses_keyword(expression: pb.Expression) -> bool:
    """Whether a condition looks at every field."""
    form = expression.WhichOneof("form")
    if form == "predicate":
        return expression.predicate.field == 0
    if form == "negated":
        return uses_keyword(expression.negated)
    return any(uses_keyword(part) for part in getattr(expression, str(form)).parts)
