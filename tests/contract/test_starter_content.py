"""The starter release: what its authors promise about content/, asked of the real compiler and the real engine."""

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tocsin.api.content.v1 import release_pb2 as pb
from tocsin.api.event.v1 import batch_pb2
from tocsin.content.check import build, check
from tocsin.evaluate.engine import Engine, load
from tocsin.evaluate.release import Rule
from tocsin.records.field_table import SCHEMA_DIGEST

ROOT = Path(__file__).parents[2]
CONTENT = ROOT / "content"
DATA = ROOT / "tests" / "data"
SELF_TEST_ID = "7c51c000-0000-4000-8000-000000000001"
TACTICS = frozenset(
    (
        "reconnaissance",
        "resource-development",
        "initial-access",
        "execution",
        "persistence",
        "privilege-escalation",
        "stealth",
        "defense-impairment",
        "credential-access",
        "discovery",
        "lateral-movement",
        "collection",
        "command-and-control",
        "exfiltration",
        "impact",
    )
)
"""The tactics of ATT&CK for Enterprise, from version 19 on."""


def rule_files() -> list[Path]:
    return sorted(path for path in CONTENT.rglob("*.yml") if not path.name.endswith(".samples.yml"))


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.fixture(scope="module")
def engine() -> Engine:
    return load(build(CONTENT, "starter"), SCHEMA_DIGEST)


def matches(engine: Engine, category: str, events: Sequence[dict[str, object]]) -> dict[int, list[Rule]]:
    """The rules that match, by position of the event."""
    source = pb.LogSource(product="linux", category=category)
    batch = pb.NamedEventBatch(
        events=(
            pb.NamedEvent(
                log_source=source,
                line=line,
                values=(pb.NamedValue(name=name, value=str(value).encode()) for name, value in event.items()),
            )
            for line, event in enumerate(events, 1)
        )
    )
    rules = {rule.id: rule for rule in engine.rules}
    found: dict[int, list[Rule]] = {}
    for match in pb.NamedMatches.FromString(engine.match_named(batch.SerializeToString())).matches:
        found.setdefault(match.line - 1, []).append(rules[match.rule_id])
    return found


def loud(engine: Engine, category: str, file: str) -> list[str]:
    """The matches above medium on a file of ordinary events."""
    events = read(DATA / file)
    return [
        f"{rule.title}: {events[position]}"
        for position, rules in matches(engine, category, events).items()
        for rule in rules
        if rule.level > batch_pb2.LEVEL_MEDIUM
    ]


def test_compiler_and_engine_have_nothing_to_say_about_the_content() -> None:
    assert check(CONTENT) == []


def test_engine_accepts_the_release_and_its_samples_pass(engine: Engine) -> None:
    assert len(engine.rules) == len(rule_files())
    assert engine.samples >= 5 * len(engine.rules)
    assert engine.faults == []
    assert engine.inert == []


def test_content_is_broad(engine: Engine) -> None:
    tags = {tag.removeprefix("attack.") for rule in engine.rules for tag in rule.tags}
    assert len(engine.rules) >= 36
    assert len(tags & TACTICS) >= 9
    assert {rule.log_source.category for rule in engine.rules} == {"process_creation", "network_connection"}


@pytest.mark.parametrize("path", rule_files(), ids=lambda path: path.stem)
def test_rule_says_what_an_analyst_needs(path: Path) -> None:
    rule = read(path)
    assert str(uuid.UUID(rule["id"])) == rule["id"]
    assert rule["status"] in {"experimental", "stable"}
    assert rule["author"] == "Tocsin"
    assert len(rule["description"]) > 80
    assert rule["references"]
    assert rule["falsepositives"]
    assert rule["logsource"]["product"] == "linux"
    if path.parent.name == "selftest":
        return
    tactics = {tag.removeprefix("attack.") for tag in rule["tags"]} & TACTICS
    assert tactics, "no tactic"
    assert any(tag.startswith("attack.t1") for tag in rule["tags"]), "no technique"
    assert path.parent.name in tactics, "stands in the folder of a tactic that it has not"


@pytest.mark.parametrize("path", rule_files(), ids=lambda path: path.stem)
def test_rule_has_samples_of_both_kinds(path: Path) -> None:
    samples = read(path.with_suffix(".samples.yml"))
    assert len(samples["must_match"]) >= 2
    assert len(samples["must_not_match"]) >= 3


def test_ids_and_titles_are_unique() -> None:
    rules = [read(path) for path in rule_files()]
    assert len({rule["id"] for rule in rules}) == len(rules)
    assert len({rule["title"] for rule in rules}) == len(rules)


def test_nothing_above_medium_on_ordinary_commands(engine: Engine) -> None:
    assert len(read(DATA / "benign_commands.yml")) >= 200
    assert loud(engine, "process_creation", "benign_commands.yml") == []


def test_nothing_above_medium_on_ordinary_connections(engine: Engine) -> None:
    assert loud(engine, "network_connection", "benign_connections.yml") == []


def test_self_test_rule_answers_to_its_marker(engine: Engine) -> None:
    event: dict[str, object] = {"Image": "/usr/bin/true", "CommandLine": "true tocsin-self-test-act"}
    (rules,) = matches(engine, "process_creation", [event]).values()
    assert [(rule.id, rule.title, rule.level) for rule in rules] == [
        (SELF_TEST_ID, "Tocsin self-test", batch_pb2.LEVEL_INFORMATIONAL)
    ]
