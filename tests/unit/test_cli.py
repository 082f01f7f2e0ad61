"""The command, run as people run it, against a real courier; the rest of the agent is simulated."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from simulators.agent_around_courier import (  # type: ignore[import-not-found]
    SimulatedAgent,
    expect,
    make_batch,
    make_detections,
    make_event,
    send_batch,
    send_detections,
)
from simulators.rules import rule, write_rule  # type: ignore[import-not-found]
from simulators.running import COMMAND, eventually, tocsin  # type: ignore[import-not-found]
from tocsin.api.content.v1 import content_service_pb2 as content
from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.api.event.v1 import batch_pb2
from tocsin.processes.channel import Kind
from tocsin.processes.state import AgentState, ProcessState
from tocsin.records import recording


@pytest.fixture
def agent() -> Iterator[SimulatedAgent]:
    """A courier with default settings."""
    with SimulatedAgent() as running:
        yield running


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """A directory with one rule."""
    return write_rule(tmp_path / "rules", rule(), "nc.yml")  # type: ignore[no-any-return]


def one_line(text: str) -> str:
    """What a failed command says: one line, and no traceback."""
    assert text.count("\n") == 1, text
    assert "Traceback" not in text
    return text


def status_of(agent: SimulatedAgent) -> dict[str, Any]:
    """What the status verb tells."""
    shown: dict[str, Any] = json.loads(tocsin("status", "--json", "--socket", agent.config.socket_path).stdout)
    return shown


class Stream:
    """A command that follows the stream, with the batches that it is to see."""

    def __init__(self, agent: SimulatedAgent, *arguments: object) -> None:
        self.sensor, self.evaluator = agent.attach_sensor(), agent.attach_evaluator()
        command = [*COMMAND, *map(str, arguments), "--socket", str(agent.config.socket_path)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        eventually(lambda: status_of(agent)["subscribers"], "somebody subscribed")

    def give(self, end: int, *events: object) -> None:
        """A batch and the detection of its first event."""
        send_batch(self.sensor, make_batch(end - 10, end, list(events), {0: "root"}))
        send_detections(self.evaluator, make_detections(end, list(events)[:1]))
        expect(self.sensor, Kind.ACK)

    def end(self) -> tuple[int, str, str]:
        """Interrupts it as Ctrl-C does; exit code, output, errors."""
        time.sleep(1)
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err


# --- the command itself


def test_help_names_every_verb_and_exit_code() -> None:
    done = tocsin("--help")
    assert done.returncode == 0
    for word in ("run", "tail", "status", "doctor", "record", "replay", "content", "version", "exit codes", "  4  "):
        assert word in done.stdout


@pytest.mark.parametrize("verb", ["tail", "status", "doctor", "record", "replay", "version"])
def test_each_verb_has_help(verb: str) -> None:
    assert "usage: tocsin" in tocsin(verb, "--help").stdout


@pytest.mark.parametrize("verb", ["check", "build", "load"])
def test_each_content_verb_has_help(verb: str) -> None:
    assert f"usage: tocsin content {verb}" in tocsin("content", verb, "--help").stdout


@pytest.mark.parametrize("arguments", [["nonsense"], ["tail", "--type", "x"], ["tail", "--for", "-1"], ["content"], []])
def test_wrong_arguments_are_exit_code_2_and_one_line(arguments: list[str]) -> None:
    done = tocsin(*arguments)
    assert done.returncode == 2
    one_line(done.stderr)


def test_version() -> None:
    assert tocsin("version").stdout.startswith("tocsin 0.")
    assert json.loads(tocsin("version", "--json").stdout)["schema_digest"]


@pytest.mark.parametrize("verb", [["status"], ["tail"], ["record", "new.rec"]])
def test_no_agent_is_exit_code_3(verb: list[str], tmp_path: Path) -> None:
    done = tocsin(*verb, "--socket", tmp_path / "none.sock", cwd=tmp_path)
    assert done.returncode == 3
    assert "start it with `tocsin run`" in one_line(done.stderr)
    assert not list(tmp_path.iterdir())


def test_a_wrong_setting_is_exit_code_2_and_named(tmp_path: Path) -> None:
    config = tmp_path / "tocsin.toml"
    config.write_text("runtime_dirr = 'x'\n")
    done = tocsin("status", "--config", config)
    assert done.returncode == 2
    assert "runtime_dirr is no setting" in one_line(done.stderr)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_stranger_is_exit_code_4(agent: SimulatedAgent) -> None:
    code = f"""
import os, shutil, sys
from tocsin.cli import agent, arguments, status, main
import grpc._utilities
os.setgroups([]); os.setresgid(65493, 65493, 65493); os.setresuid(65493, 65493, 65493)
sys.exit(main.main(["status", "--socket", {str(agent.config.socket_path)!r}]))
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 4
    assert "permission denied: this user may not talk to the agent" in one_line(done.stderr)


# --- status


def test_status_of_a_healthy_agent_is_exit_code_0(agent: SimulatedAgent) -> None:
    processes = (ProcessState(control.ROLE_SENSOR, 7, 3, 0),)
    state = AgentState(control.HEALTH_OK, "", 1, processes, b"\x01" * 32, b"starter [x]", 144, 5)
    counted = [control.EnrichmentCounter(name=name, count=n) for name, n in (("hashes.files", 12), ("told.hits", 0))]
    enrichment = control.EnrichmentStatus(counters=counted).SerializeToString()
    agent.tell_state(replace(state, enrichment=enrichment))
    done = wait_for_health(agent)
    assert done.returncode == 0
    shown = json.loads(done.stdout)
    assert (shown["health"], shown["release_digest"]) == ("HEALTH_OK", "01" * 32)
    assert shown["enrichment"]["counters"][0] == {"name": "hashes.files", "count": "12"}
    table = tocsin("status", "--socket", agent.config.socket_path).stdout
    for word in ("ok", "sensor", "pid 7", "3 restarts", "starter [x]", "144 rules, 5 of them inert", "source core"):
        assert word in table
    assert "hashes.files 12" in table
    assert "told.hits" not in table


def test_status_of_a_degraded_agent_is_exit_code_1(agent: SimulatedAgent) -> None:
    agent.tell_state(AgentState(control.HEALTH_DEGRADED, "the [sensor] restarts"))
    assert wait_for_health(agent).returncode == 1
    assert "degraded" in (table := tocsin("status", "--socket", agent.config.socket_path).stdout)
    assert "the [sensor] restarts" in table


def wait_for_health(agent: SimulatedAgent) -> subprocess.CompletedProcess[str]:
    """The first status with the monitor's word in it."""
    eventually(lambda: status_of(agent)["health"] != "HEALTH_UNSPECIFIED", "the state came")
    return tocsin("status", "--json", "--socket", agent.config.socket_path)  # type: ignore[no-any-return]


# --- tail and record


def test_tail_shows_events_and_detections_as_json_lines(agent: SimulatedAgent) -> None:
    stream = Stream(agent, "tail", "--json")
    stream.give(10, make_event(1))
    code, out, err = stream.end()
    assert (code, err) == (0, "")
    event, detection = (json.loads(line) for line in out.splitlines())
    assert event["event"]["process"]["user"] == "root"
    assert detection["detection"]["rule_id"] == "rule-1"


def test_tail_shows_lines_for_people(agent: SimulatedAgent) -> None:
    stream = Stream(agent, "tail", "--detections", "--level", "high")
    stream.give(10, make_event(1))
    code, out, err = stream.end()
    assert (code, err) == (0, "")
    (line,) = out.splitlines()
    assert "HIGH" in line
    assert "A rule" in line


def test_tail_ends_when_its_time_is_over(agent: SimulatedAgent) -> None:
    agent.attach_sensor()
    started = time.monotonic()
    done = tocsin("tail", "--for", "1", "--socket", agent.config.socket_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - started < 10


def test_tail_tells_when_the_agent_ends(agent: SimulatedAgent) -> None:
    stream = Stream(agent, "tail")
    agent.process.kill()
    _, err = stream.process.communicate(timeout=20)
    assert stream.process.returncode == 3
    assert "the agent ended the call" in one_line(err)


def test_tail_into_a_pipe_that_closes_says_nothing(agent: SimulatedAgent) -> None:
    stream = Stream(agent, "tail", "--json")
    assert stream.process.stdout is not None
    stream.process.stdout.close()
    for number in range(1, 5):
        stream.give(number * 10, make_event(number))
        time.sleep(0.1)
    assert stream.process.stderr is not None
    assert stream.process.stderr.read() == ""
    assert stream.process.wait(20) == 0


def test_record_writes_the_batches_and_the_users(agent: SimulatedAgent, tmp_path: Path) -> None:
    file = tmp_path / "events.rec"
    stream = Stream(agent, "record", file)
    stream.give(10, make_event(1), make_event(2))
    stream.give(20, make_event(3))
    code, _, err = stream.end()
    assert (code, err) == (0, f"2 batches in {file}\n")
    with file.open("rb") as opened:
        batches = [batch_pb2.Batch.FromString(raw) for raw in recording.batches(opened, "x")]
    assert [len(batch.events) for batch in batches] == [0, 2, 1]


def test_record_never_overwrites(agent: SimulatedAgent, tmp_path: Path) -> None:
    file = tmp_path / "events.rec"
    file.write_text("precious")
    done = tocsin("record", file, "--socket", agent.config.socket_path)
    assert done.returncode == 2
    assert "exists already" in one_line(done.stderr)
    assert file.read_text() == "precious"


# --- content


def test_content_in_order_is_exit_code_0(rules: Path) -> None:
    assert tocsin("content", "check", rules).returncode == 0


def test_content_out_of_order_is_exit_code_1_with_file_and_line(rules: Path) -> None:
    write_rule(rules, rule(condition="selektion"), "nc.yml")
    done = tocsin("content", "check", rules)
    assert done.returncode == 1
    assert "nc.yml:" in done.stdout
    finding = json.loads(tocsin("content", "check", rules, "--json").stdout)[0]
    assert finding["file"] == "nc.yml"
    assert finding["line"] > 0


def test_content_that_does_not_exist_is_exit_code_2(tmp_path: Path) -> None:
    done = tocsin("content", "check", tmp_path / "nowhere")
    assert done.returncode == 2
    assert "nowhere: no such file or directory" in one_line(done.stderr)


def test_content_is_built_the_same_each_time(rules: Path, tmp_path: Path) -> None:
    releases = [tmp_path / "one.release", tmp_path / "two.release"]
    for release in releases:
        assert tocsin("content", "build", rules, "-o", release).returncode == 0
    assert releases[0].read_bytes() == releases[1].read_bytes()


def test_content_that_is_wrong_builds_nothing(rules: Path, tmp_path: Path) -> None:
    (rules / "nc.yml").write_text("title: [\n")
    release = tmp_path / "one.release"
    done = tocsin("content", "build", rules, "-o", release)
    assert done.returncode == 1
    assert "nc.yml" in one_line(done.stderr)
    assert not release.exists()


def load(agent: SimulatedAgent, rules: Path, refusal: content.Refusal | None) -> subprocess.CompletedProcess[str]:
    """Loads while the monitor accepts or refuses."""
    answering = threading.Thread(
        target=lambda: agent.answer_load(agent.expect(Kind.LOAD), refusal, code=1 if refusal else 0)
    )
    answering.start()
    done = tocsin("content", "load", rules, "--socket", agent.config.socket_path)
    answering.join()
    return done  # type: ignore[no-any-return]


def test_content_is_loaded_into_the_agent(agent: SimulatedAgent, rules: Path) -> None:
    done = load(agent, rules, None)
    assert done.returncode == 0
    assert done.stdout.startswith("active: ")


def test_content_that_the_agent_refuses_is_exit_code_1_with_its_reason(agent: SimulatedAgent, rules: Path) -> None:
    refusal = content.Refusal(stage=content.STAGE_COMPILE, code="LIMIT", rule_id="r-1", message="too many")
    done = load(agent, rules, refusal)
    assert done.returncode == 1
    assert "refused at compile: LIMIT, rule r-1: too many" in one_line(done.stderr)


# --- doctor


def test_doctor_gives_a_verdict_for_each_check() -> None:
    done = tocsin("doctor", "--json")
    assert done.returncode in {0, 4}
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert set(findings) >= {"privileges", "BTF", "libbpf", "bpf()", "landlock", "seccomp", "sandbox", "hyperscan"}
    for finding in findings.values():
        assert finding["verdict"] in {"ok", "reduced", "missing"}
        assert finding["found"]
        assert finding["needed_for"]
    missing = any(finding["verdict"] == "missing" for finding in findings.values())
    assert done.returncode == (4 if missing else 0)


def test_doctor_tells_people_what_to_do() -> None:
    out = tocsin("doctor").stdout
    assert "hyperscan" in out
    assert out.count("needed for") == out.count("\nreduced") + out.count("\nmissing") + out.startswith(
        ("reduced", "missing")
    )
