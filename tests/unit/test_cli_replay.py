"""`tocsin replay` with the real evaluator process in its sandbox."""

import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulators.agent_around_courier import make_batch, make_event  # type: ignore[import-not-found]
from simulators.rules import RULE_ID, rule, write_rule  # type: ignore[import-not-found]
from simulators.running import tocsin  # type: ignore[import-not-found]
from tocsin.cli import json_lines
from tocsin.errors import WireError
from tocsin.records import recording

NETCAT = {"category": "process_creation", "product": "linux", "service": None, "event": {"Image": "/usr/bin/nc"}}
SHELL = {**NETCAT, "event": {"Image": "/bin/sh", "ProcessId": 7, "Elevated": True, "Gone": None, "Many": ["a", "b"]}}


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """A directory with one rule."""
    return write_rule(tmp_path / "rules", rule())  # type: ignore[no-any-return]


def replay(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs the verb to its end."""
    return tocsin("replay", *arguments)  # type: ignore[no-any-return]


def lines_file(tmp_path: Path, *lines: object) -> Path:
    """JSON lines; a text stands as it is."""
    file = tmp_path / "events.jsonl"
    file.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return file


def recorded(tmp_path: Path, *batches: bytes) -> Path:
    """A recording."""
    path = tmp_path / "events.rec"
    with path.open("wb") as file:
        recording.begin(file)
        for batch in batches:
            recording.append(file, batch)
    return path


# --- JSON lines


def test_each_match_of_a_json_line_is_printed_with_its_line(tmp_path: Path, rules: Path) -> None:
    done = replay(lines_file(tmp_path, SHELL, NETCAT, "", NETCAT), "--content", rules, "--json")
    assert done.returncode == 0, done.stderr
    matches = [json.loads(line) for line in done.stdout.splitlines()]
    assert matches == [{"line": line, "rule_id": RULE_ID, "title": "Netcat"} for line in (2, 4)]


def test_many_lines_are_replayed_in_order(tmp_path: Path, rules: Path) -> None:
    file = lines_file(tmp_path, *[NETCAT if number % 3 else SHELL for number in range(2000)])
    done = replay(file, "--content", rules, "--json")
    lines = [json.loads(line)["line"] for line in done.stdout.splitlines()]
    assert lines == [number + 1 for number in range(2000) if number % 3]


def test_a_bad_line_is_named_and_the_rest_goes_on(tmp_path: Path, rules: Path) -> None:
    too_long = json.dumps({**NETCAT, "event": {"Image": "x" * (1 << 20)}})
    file = lines_file(tmp_path, "{not json", NETCAT, too_long, {"event": {"A": {"b": 1}}}, NETCAT)
    done = replay(file, "--content", rules, "--json")
    assert done.returncode == 1
    assert [json.loads(line)["line"] for line in done.stdout.splitlines()] == [2, 5]
    assert [line.split(": ")[1] for line in done.stderr.splitlines() if "events.jsonl:" in line] == [
        f"{file}:{number}" for number in (1, 3, 4)
    ]


def test_words_for_people(tmp_path: Path, rules: Path) -> None:
    done = replay(lines_file(tmp_path, NETCAT), "--content", rules)
    assert done.stdout == f"1: Netcat [{RULE_ID}]\n"


# --- recordings


def test_matches_in_a_recording_are_printed_with_the_place_of_the_event(tmp_path: Path, rules: Path) -> None:
    events = [make_event(number) for number in range(6)]
    for number in (1, 4):
        events[number].process.exe = b"/bin/nc"
    batches = [make_batch(0, 10, events[:3]), make_batch(10, 20, events[3:])]
    file = recorded(tmp_path, *[batch.SerializeToString() for batch in batches])
    done = replay(file, "--content", rules, "--json")
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["line"] for line in done.stdout.splitlines()] == [2, 5]


def test_a_recording_may_hold_positions_that_start_over(tmp_path: Path, rules: Path) -> None:
    event = make_event(1)
    event.process.exe = b"/bin/nc"
    batch = make_batch(0, 10, [event]).SerializeToString()
    done = replay(recorded(tmp_path, batch, batch), "--content", rules, "--json")
    assert [json.loads(line)["line"] for line in done.stdout.splitlines()] == [1, 2]


def test_a_torn_recording_is_replayed_as_far_as_it_goes(tmp_path: Path, rules: Path) -> None:
    event = make_event(1)
    event.process.exe = b"/bin/nc"
    file = recorded(tmp_path, make_batch(0, 10, [event]).SerializeToString(), b"cut")
    file.write_bytes(file.read_bytes()[:-1])
    done = replay(file, "--content", rules, "--json")
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 1
    assert "events.rec: cut short at byte" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_batch_that_is_none_is_named_and_the_rest_goes_on(tmp_path: Path, rules: Path) -> None:
    event = make_event(1)
    event.process.exe = b"/bin/nc"
    file = recorded(tmp_path, b"\x0a\xff", make_batch(0, 10, [event]).SerializeToString())
    done = replay(file, "--content", rules, "--json")
    assert done.returncode == 1
    assert [json.loads(line)["line"] for line in done.stdout.splitlines()] == [1]
    assert "after event 0" in done.stderr


# --- what is refused


def test_a_release_that_the_evaluator_refuses_is_exit_code_1(tmp_path: Path) -> None:
    release = tmp_path / "bad.release"
    release.write_bytes(b"no release")
    done = replay(lines_file(tmp_path, NETCAT), "--content", release)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "tocsin: " in done.stderr


def test_a_missing_file_is_exit_code_2(tmp_path: Path) -> None:
    done = replay(tmp_path / "nowhere.jsonl")
    assert done.returncode == 2
    assert "no such file" in done.stderr


# --- one line


def test_values_become_text() -> None:
    event = json_lines.parse(json.dumps(SHELL).encode(), 3)
    assert [(v.name, v.value if v.HasField("value") else None) for v in event.values] == [
        ("Image", b"/bin/sh"),
        ("ProcessId", b"7"),
        ("Elevated", b"true"),
        ("Gone", None),
        ("Many", b"a"),
        ("Many", b"b"),
    ]
    assert (event.line, event.log_source.category, event.log_source.service) == (3, "process_creation", "")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "is no object"),
        ('{"event": 1}', "is no object"),
        ('{"event": {}, "evnet": 1}', "unknown key 'evnet'"),
        ('{"event": {}, "product": 1}', "product: got int"),
        ('{"event": {"A": {}}}', "field A: got dict"),
        ('{"event": {"A": [[1]]}}', "field A: got list"),
        ('{"event": {"A": "\\ud800"}}', "A: is no Unicode text"),
    ],
)
def test_a_line_that_is_wrong_is_told(line: str, words: str) -> None:
    with pytest.raises(WireError, match=words):
        json_lines.parse(line.encode(), 1)


@given(st.binary(max_size=100))
def test_any_line_is_an_event_or_a_wire_error(line: bytes) -> None:
    try:
        json_lines.parse(line, 1)
    except WireError:
        return
