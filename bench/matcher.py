"""Section `matcher`: the fast matcher against the plain reference matcher, on the same batches.

The fast one remembers what it has seen, so it is measured twice: on batches that
come again and again, and on events with a number in each command line that was
never there before.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from bench import events
from bench.figures import Figures
from bench.timing import in_turns, ratio

from tocsin.api.event.v1 import batch_pb2
from tocsin.content.check import build
from tocsin.evaluate.fast import FastMatcher
from tocsin.evaluate.match import Match, Matcher
from tocsin.evaluate.reference import ReferenceMatcher
from tocsin.evaluate.release import Release, decode
from tocsin.records.field_table import SCHEMA_DIGEST

STARTER = events.ROOT / "agent" / "tocsin" / "starter.release"
PUBLIC = events.ROOT.parent / "shared" / "sigma" / "rules"
COLUMNS = (
    "content",
    "rules",
    "matches/1000",
    "repeating events/s",
    "unlike events/s",
    "reference events/s",
    "unlike : reference",
)
SERIAL = b"--serial=00000000"


def measure(*, quick: bool) -> Figures:
    """Measures each release that is there."""
    batches, source = events.batches()
    size = sum(map(len, batches)) / (len(batches) * events.EVENTS_A_BATCH)
    rows = [_row(name, release, batches, quick=quick) for name, release in releases()]
    notes = [
        f"CPU time of one core; {source}, {size:.0f} bytes each, {events.EVENTS_A_BATCH} a batch",
        "both matchers gave the same matches on every batch",
    ]
    if not PUBLIC.is_dir():
        notes.append("left out: the public Sigma rules, which are not on this machine")
    return Figures("matcher: fast against reference, in turns", COLUMNS, rows, notes)


def releases() -> Iterator[tuple[str, Release]]:
    """The starter release, and the public rules for processes where they are at hand."""
    yield "starter", decode(STARTER.read_bytes(), SCHEMA_DIGEST)
    if PUBLIC.is_dir():
        public = decode(build(PUBLIC, "public"), SCHEMA_DIGEST)
        rules = tuple(rule for rule in public.rules if rule.log_source.category == "process_creation")
        yield "public process_creation", replace(public, rules=rules)


def _row(name: str, release: Release, batches: Sequence[bytes], *, quick: bool) -> tuple[str | float | int, ...]:
    fast, reference = FastMatcher(release), ReferenceMatcher(release)
    matches = agreed(fast, reference, batches)
    work = {
        "repeating": _one_batch(fast, batches),
        "unlike": _one_unlike_batch(fast, batches),
        "reference": _one_batch(reference, batches),
    }
    rounds, seconds = (3, 0.3) if quick else (7, 1.0)
    taken = in_turns(work, seconds, rounds)
    events_seen = len(batches) * events.EVENTS_A_BATCH
    return (
        name,
        len(release.rules),
        1000 * matches / events_seen,
        1 / taken["repeating"][0],
        1 / taken["unlike"][0],
        1 / taken["reference"][0],
        f"{ratio(taken['reference'][1], taken['unlike'][1]):.0f} x",
    )


def agreed(fast: Matcher, reference: Matcher, batches: Sequence[bytes]) -> int:
    """The number of matches. Raises AssertionError when the two differ: there is nothing to measure then."""
    users = {uid: name.encode() for uid, name in events.USERS.items()}
    found: list[list[Match]] = []
    for matcher in (fast, reference):
        matcher.set_users(users)
        found.append([match for batch in batches for match in matcher.match_batch(batch)])
    assert found[0] == found[1], f"{len(found[0])} matches of the fast matcher, {len(found[1])} of the reference"
    return len(found[0])


def _one_batch(matcher: Matcher, batches: Sequence[bytes]) -> Callable[[], int]:
    following = itertools.cycle(batches)

    def run() -> int:
        matcher.match_batch(next(following))
        return events.EVENTS_A_BATCH

    return run


def _one_unlike_batch(matcher: Matcher, batches: Sequence[bytes]) -> Callable[[], int]:
    following = itertools.cycle([numbered(batch) for batch in batches])
    numbers = itertools.count()

    def run() -> int:
        matcher.match_batch(next(following).replace(SERIAL, b"--serial=%08d" % next(numbers)))
        return events.EVENTS_A_BATCH

    return run


def numbered(batch: bytes) -> bytes:
    """The batch with SERIAL as the last argument of each process, so that a number can be put there."""
    parsed = batch_pb2.Batch.FromString(batch)
    for event in parsed.events:
        event.process.argv += SERIAL + b"\0"
    return parsed.SerializeToString()
