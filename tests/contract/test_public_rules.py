"""The public Sigma rules for Linux compile, load, and match the same in both matchers."""

import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tocsin.api.content.v1 import release_pb2 as pb
from tocsin.api.event.v1 import batch_pb2, event_pb2
from tocsin.content.check import Severity, build, check
from tocsin.evaluate import engine
from tocsin.evaluate.fast import FastMatcher
from tocsin.evaluate.match import NamedEvent
from tocsin.evaluate.reference import ReferenceMatcher
from tocsin.evaluate.release import Release, Rule, decode
from tocsin.records.field_table import SCHEMA_DIGEST

RULES = Path(__file__).parents[3] / "shared" / "sigma" / "rules"
EVENTS = 1500

if not RULES.is_dir():
    pytest.skip(f"the public Sigma rules are not at {RULES}: get a checkout of SigmaHQ", allow_module_level=True)


@cache
def release() -> Release:
    return decode(build(RULES, "public"), SCHEMA_DIGEST)


def test_all_of_them_compile() -> None:
    errors = [str(finding) for finding in check(RULES) if finding.severity is Severity.ERROR]
    assert errors == []
    assert len(release().rules) == sum(1 for _ in RULES.rglob("*.yml"))


def test_the_same_sources_give_the_same_bytes() -> None:
    assert build(RULES, "public") == build(RULES, "public")


def test_they_load_and_most_process_rules_can_fire_here() -> None:
    loaded = engine.load(build(RULES, "public"), SCHEMA_DIGEST)
    inert = dict(loaded.inert)
    process = [rule for rule in loaded.rules if rule.log_source.category == "process_creation"]
    assert len(process) >= 140
    assert sum(rule.id in inert for rule in process) <= len(process) * 0.05
    auditd = [rule for rule in loaded.rules if rule.log_source.service == "auditd"]
    assert auditd
    assert all(rule.id in inert for rule in auditd)


def fragments(expression: pb.Expression) -> Iterator[tuple[int, int, bytes]]:
    """Field, operator and text of every comparison."""
    form = expression.WhichOneof("form")
    if form == "predicate":
        predicate = expression.predicate
        literal = b"x".join(piece.literal for piece in predicate.wildcard)
        yield predicate.field, predicate.operator, predicate.text or literal or predicate.number.encode()
    elif form == "negated":
        yield from fragments(expression.negated)
    else:
        for part in getattr(expression, str(form)).parts:
            yield from fragments(part)


def dressed(operator: int, text: bytes, chance: random.Random) -> bytes:
    """A value that a comparison accepts, or nearly."""
    before = b"" if operator in (pb.OPERATOR_EQUALS, pb.OPERATOR_STARTSWITH) else b"/usr/x"
    after = b"" if operator in (pb.OPERATOR_EQUALS, pb.OPERATOR_ENDSWITH) else b" y"
    value = before + text + after
    near_miss = chance.random()
    if near_miss < 0.1:
        return value[1:]
    if near_miss < 0.2:
        return value + b"."
    if near_miss < 0.4:
        return value.swapcase()
    return value


def values_for(rule: Rule, names: tuple[str, ...], chance: random.Random) -> dict[str, bytes]:
    """Fields made of the rule's own texts; some are left out."""
    values: dict[str, bytes] = {}
    for field, operator, text in fragments(rule.condition):
        name = names[field - 1] if field else chance.choice(("CommandLine", "message"))
        value = dressed(operator, text, chance)
        if chance.random() < 0.85:
            joined = operator == pb.OPERATOR_CONTAINS and name in values and chance.random() < 0.8
            values[name] = values[name] + b" " + value if joined else value
    return values


def schema_event(values: dict[str, bytes]) -> event_pb2.Event:
    """An exec with these values as far as the schema has them."""
    process = event_pb2.Process(
        exe=values.get("Image", b""),
        argv=values.get("CommandLine", b"").replace(b" ", b"\0"),
        cwd=values.get("CurrentDirectory", b""),
        euid=0 if values.get("User") == b"root" else 1000,
    )
    parent = event_pb2.Process(
        exe=values.get("ParentImage", b""), argv=values.get("ParentCommandLine", b"").replace(b" ", b"\0")
    )
    return event_pb2.Event(type=event_pb2.EVENT_TYPE_EXEC, process=process, parent=parent, exec=event_pb2.Exec(argc=1))


def test_both_matchers_agree_on_named_events_made_of_the_rules_own_texts() -> None:
    chance = random.Random(1)
    fast, reference = FastMatcher(release()), ReferenceMatcher(release())
    rules = [chance.choice(release().rules) for _ in range(EVENTS)]
    events = [NamedEvent(rule.log_source, tuple(values_for(rule, release().fields, chance).items())) for rule in rules]
    found = fast.match_named(events)
    assert found == reference.match_named(events)
    assert len({match.rule.id for match in found}) > len(release().rules) / 2, "the events are too far from the rules"
    assert not fast.faults


def test_both_matchers_agree_on_schema_events_made_of_the_rules_own_texts() -> None:
    chance = random.Random(2)
    fast, reference = FastMatcher(release()), ReferenceMatcher(release())
    for matcher in (fast, reference):
        matcher.set_users({0: b"root"})
    rules = [rule for rule in release().rules if rule.log_source.category == "process_creation"]
    chosen = [chance.choice(rules) for _ in range(EVENTS)]
    events = [schema_event(values_for(rule, release().fields, chance)) for rule in chosen]
    raw = batch_pb2.Batch(events=events).SerializeToString()
    found = fast.match_batch(raw)
    assert found == reference.match_batch(raw)
    assert len({match.rule.id for match in found}) > len(rules) / 2, "the events are too far from the rules"
    assert not fast.faults


def test_the_starter_rules_and_the_public_rules_make_one_release() -> None:
    starter = Path(__file__).parents[2] / "content"
    loaded = engine.load(build([starter, RULES], "both"), SCHEMA_DIGEST)
    alone = [engine.load(build(path, "one"), SCHEMA_DIGEST) for path in (starter, RULES)]
    assert len(loaded.rules) == sum(len(one.rules) for one in alone)
    assert loaded.samples == sum(one.samples for one in alone)
