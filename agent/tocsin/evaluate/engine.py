"""What the sandboxed evaluator calls: a release in, detections out.

`load` takes untrusted bytes and gives an Engine or a ContentError; it runs the
release's own samples through the matcher that will run on live events.
"""

from collections.abc import Sequence
from typing import Final

from google.protobuf.message import DecodeError

from tocsin.api.content.v1 import release_pb2 as pb
from tocsin.api.event.v1 import batch_pb2, event_pb2
from tocsin.errors import ContentError, WireError
from tocsin.evaluate.boundary import BoundedRule
from tocsin.evaluate.code import Code
from tocsin.evaluate.fast import FastMatcher
from tocsin.evaluate.inert import inert_rules
from tocsin.evaluate.match import Match, NamedEvent
from tocsin.evaluate.release import Release, Rule, decode
from tocsin.evaluate.semantics import LogSource
from tocsin.records import framing

DETECTIONS_TAG: Final = bytes((batch_pb2.DetectionBatch.DETECTIONS_FIELD_NUMBER << 3 | 2,))
EVENT_TAG: Final = bytes((batch_pb2.Detection.EVENT_FIELD_NUMBER << 3 | 2,))
SAMPLES_AT_ONCE: Final = 256


class Engine:
    """A loaded release. Belongs to one thread."""

    def __init__(self, release: Release, matcher: FastMatcher) -> None:
        self._release = release
        self._matcher = matcher
        self._user_names: dict[int, str] = {}
        self.inert = inert_rules(release)
        """Rule id and reason of the rules that cannot fire here."""

    @property
    def digest(self) -> bytes:
        """SHA-256 of the release's bytes."""
        return self._release.digest

    @property
    def name(self) -> str:
        """Name and version given by the author."""
        return self._release.name

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules, ordered by id."""
        return self._release.rules

    @property
    def samples(self) -> int:
        """How many samples the release passed."""
        return len(self._release.samples)

    @property
    def faults(self) -> list[BoundedRule]:
        """Rules that raised."""
        return self._matcher.faults

    def match_batch(self, batch: bytes) -> bytes:
        """The serialised DetectionBatch of a serialised Batch. Raises WireError."""
        index = framing.index(batch)
        header = _header(index.header)
        if header.users:
            self._set_users(header)
        found = [
            DETECTIONS_TAG + framing.varint(len(raw)) + raw
            for match in self._matcher.match_index(index)
            for raw in (self._detection(match, header),)
        ]
        end = batch_pb2.DetectionBatch(end_position=header.end_position)
        return b"".join(found) + end.SerializeToString()

    def match_named(self, batch: bytes) -> bytes:
        """The serialised NamedMatches of a serialised NamedEventBatch. Raises WireError."""
        try:
            events = pb.NamedEventBatch.FromString(batch).events
        except DecodeError as error:
            raise WireError(f"{len(batch)} bytes are no NamedEventBatch: {error}") from error
        found = self._matcher.match_named([named_event(event) for event in events])
        matches = [pb.NamedMatch(line=m.event.line, rule_id=m.rule.id, rule_title=m.rule.title) for m in found]
        return pb.NamedMatches(matches=matches).SerializeToString()

    def _set_users(self, header: batch_pb2.BatchHeader) -> None:
        self._user_names = {user.uid: user.name for user in header.users}
        self._matcher.set_users({uid: name.encode() for uid, name in self._user_names.items()})

    def _detection(self, match: Match, header: batch_pb2.BatchHeader) -> bytes:
        """A serialised Detection; the event's bytes are those that came."""
        rule = match.rule
        process = event_pb2.Event.FromString(match.event).process
        detection = batch_pb2.Detection(
            rule_id=rule.id,
            rule_title=rule.title,
            rule_author=rule.author,
            level=rule.level,  # type: ignore[arg-type]
            tags=rule.tags,
            release_digest=self.digest,
            realtime_offset_ns=header.realtime_offset_ns,
            user_name=self._user_names.get(process.euid, ""),
        )
        return detection.SerializeToString() + EVENT_TAG + framing.varint(len(match.event)) + match.event


def load(raw: bytes, schema_digest: bytes) -> Engine:
    """An Engine for a release. Raises ContentError, and nothing else, when the release is refused."""
    release = decode(raw, schema_digest)
    try:
        matcher = FastMatcher(release)
    except (ValueError, OverflowError, RecursionError) as error:
        raise ContentError(Code.MALFORMED, f"the conditions cannot be compiled: {error}") from error
    run_samples(release, matcher)
    return Engine(release, matcher)


def run_samples(release: Release, matcher: FastMatcher) -> None:
    """Raises ContentError for the first sample that does not do what it says."""
    for problem in failed_samples(release, matcher):
        raise problem


def failed_samples(release: Release, matcher: FastMatcher) -> list[ContentError]:
    """An error for each sample that does not do what it says."""
    problems: list[ContentError] = []
    for start in range(0, len(release.samples), SAMPLES_AT_ONCE):
        problems += _failed(release, matcher, release.samples[start : start + SAMPLES_AT_ONCE])
    return problems


def _failed(release: Release, matcher: FastMatcher, samples: Sequence[pb.Sample]) -> list[ContentError]:
    found = matcher.match_named([named_event(sample.event) for sample in samples])
    matched = {(match.event_index, match.rule.id) for match in found}
    rules = {rule.id: rule for rule in release.rules}
    problems = []
    for position, sample in enumerate(samples):
        if ((position, sample.rule_id) in matched) == sample.must_match:
            continue
        code = Code.SAMPLE_NOT_MATCHED if sample.must_match else Code.SAMPLE_MATCHED
        does, expected = ("does not match", "must") if sample.must_match else ("matches", "must not")
        file, _, line = sample.origin.rpartition(":")
        title = rules[sample.rule_id].title
        problems.append(
            ContentError(
                code,
                f"rule {sample.rule_id} ({title}) {does} the sample at {sample.origin}, but {expected}: "
                "mend the rule or the sample",
                file=file,
                line=int(line) if line.isdecimal() and len(line) < 10 else 0,
                rule_id=sample.rule_id,
            )
        )
    return problems


def named_event(event: pb.NamedEvent) -> NamedEvent:
    """A decoded named event as matchers take it."""
    source = LogSource(event.log_source.category, event.log_source.product, event.log_source.service)
    values = tuple((v.name, v.value if v.HasField("value") else None) for v in event.values)
    return NamedEvent(source, values, event.line)


def _header(raw: bytes) -> batch_pb2.BatchHeader:
    try:
        return batch_pb2.BatchHeader.FromString(raw)
    except DecodeError as error:
        raise WireError(f"the batch's header of {len(raw)} bytes is malformed: {error}") from error
