"""The whole agent: real processes, and the real kernel where it is allowed."""

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulators.rules import RULE_ID, rule, write_rule  # type: ignore[import-not-found]
from simulators.running import COMMAND, eventually, tocsin  # type: ignore[import-not-found]
from simulators.running_agent import (  # type: ignore[import-not-found]
    Agent,
    Stream,
    can_load_ebpf,
    objects,
)
from tocsin.api.content.v1 import release_pb2
from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.api.event.v1 import batch_pb2, event_pb2
from tocsin.cli.agent import connected
from tocsin.content.check import build

SELF_TEST = "7c51c000-0000-4000-8000-000000000001"
FIRST, SECOND = RULE_ID, "22222222-2222-4222-8222-222222222222"
HAS_EBPF = can_load_ebpf()
kernel = [pytest.mark.kernel, pytest.mark.skipif(not HAS_EBPF, reason="needs root and eBPF")]
on_every_source = pytest.mark.parametrize("agent", [pytest.param("core", marks=kernel), "replay"], indirect=True)
on_the_kernel = pytest.mark.parametrize("agent", [pytest.param("core", marks=kernel)], indirect=True)


@pytest.fixture
def agent(request: pytest.FixtureRequest) -> Iterator[Agent]:
    """A running agent with the source of the test's parameter."""
    with Agent(request.param) as running:
        yield running


def marker_rule(directory: Path, marker: str) -> Path:
    """A directory with a rule that looks for a word in command lines."""
    return write_rule(directory, rule(f"CommandLine|contains: {marker}", rule_id=FIRST))  # type: ignore[no-any-return]


def healthy(agent: Agent) -> control.GetStatusResponse | None:
    """The state when nothing is wrong but the source."""
    status: control.GetStatusResponse | None = agent.settled()
    core = status is not None and status.source == batch_pb2.SOURCE_CORE
    return status if status and (not core or status.health == control.HEALTH_OK) else None


@pytest.mark.parametrize("source", [pytest.param("core", marks=kernel), "replay"])
def test_the_self_test_act_is_detected(source: str) -> None:
    with tempfile.TemporaryDirectory(prefix="tocsin-test-") as name:
        Path(name).chmod(0o755)
        directories = ["--runtime-dir", f"{name}/run", "--state-dir", f"{name}/state"]
        command = [*COMMAND, "run", "--for", "8s", "--json", "--source", source, *directories]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
        shown = objects(done.stdout)
        assert all(len(each) == 1 and set(each) <= {"event", "detection", "context", "loss"} for each in shown)
        assert SELF_TEST in {each["detection"]["rule_id"] for each in shown if "detection" in each}
        assert not Path(f"{name}/run/tocsin.sock").exists()


@on_every_source
@pytest.mark.parametrize("role", [control.ROLE_SENSOR, control.ROLE_EVALUATOR, control.ROLE_COURIER])
def test_a_killed_process_comes_back(agent: Agent, role: control.Role.ValueType) -> None:
    before = agent.status()
    monitor, victim = agent.pid(control.ROLE_MONITOR), agent.pid(role)
    os.kill(victim, signal.SIGKILL)

    def back() -> bool:
        status = healthy(agent)
        if status is None:
            return False
        rows = {p.role: p for p in status.processes}
        return rows[role].pid != victim and rows[role].restarts == 1

    eventually(back, "another process took its place")
    after = agent.status()
    assert agent.pid(control.ROLE_MONITOR) == monitor
    assert after.release_digest == before.release_digest
    others = {p.role: p.pid for p in before.processes if p.role != role}
    assert others == {p.role: p.pid for p in after.processes if p.role != role}
    seen = after.events_evaluated
    subprocess.run(["/bin/true"], check=True)
    eventually(lambda: agent.status().events_evaluated > seen, "events are evaluated again")


@on_the_kernel
def test_no_event_is_lost_when_the_sensor_is_killed(agent: Agent) -> None:
    with agent.subscribed() as stream:
        for number in range(200):
            subprocess.run(["/bin/true", f"kept-{number}-"], check=True)
            if number == 80:
                os.kill(agent.pid(control.ROLE_SENSOR), signal.SIGKILL)
        eventually(lambda: stream.execs(b"kept-199-"), "the last exec is seen")
        eventually(lambda: healthy(agent), "the agent is whole again")
    assert [len(stream.execs(f"kept-{n}-".encode())) for n in range(200)] == [1] * 200
    assert_continuous(stream)


@pytest.mark.kernel
@pytest.mark.skipif(not HAS_EBPF, reason="needs root and eBPF")
def test_events_that_found_the_ring_full_while_no_sensor_ran_are_told_once(tmp_path: Path) -> None:
    settings = tmp_path / "tocsin.toml"
    settings.write_text("[sensor]\nring_bytes = 65536\n")
    with Agent("core", "--config", str(settings)) as agent, agent.subscribed() as stream:
        eventually(lambda: stream.batches, "there is a batch to begin with")
        sensor = agent.pid(control.ROLE_SENSOR)
        os.kill(sensor, signal.SIGSTOP)
        for _ in range(200):
            subprocess.run(["/bin/true"], check=True)
        os.kill(sensor, signal.SIGKILL)
        eventually(lambda: ring_full_told(stream), "the loss is told")
        eventually(lambda: healthy(agent), "the agent is whole again")
        subprocess.run(["/bin/echo", "after-the-loss-"], check=True, stdout=subprocess.DEVNULL)
        eventually(lambda: stream.execs(b"after-the-loss-"), "events go on")
    first, last = (ring_full_counted(stream.batches[at].header) for at in (0, -1))
    assert ring_full_told(stream) == last - first > 0


def ring_full_told(stream: Stream) -> int:
    """Events that the first batch does not know of and that loss events tell of."""
    losses = [event.loss for batch in list(stream.batches)[1:] for event in batch.events if event.HasField("loss")]
    return sum(loss.count for loss in losses if loss.reason == event_pb2.LOSS_REASON_RING_FULL)


def ring_full_counted(header: batch_pb2.BatchHeader) -> int:
    """What the kernel counted up to a batch."""
    losses = [loss for counter in header.counters for loss in counter.lost]
    return sum(loss.count for loss in losses if loss.reason == event_pb2.LOSS_REASON_RING_FULL)


@on_the_kernel
def test_two_thousand_execs_are_each_seen_once(agent: Agent, tmp_path: Path) -> None:
    program = static_program(tmp_path)
    with agent.subscribed() as stream:
        for number in range(2000):
            pid = os.posix_spawn(program, [program, f"storm-{number}-"], {})
            os.waitpid(pid, 0)
        eventually(lambda: stream.execs(b"storm-1999-"), "the last exec is seen")
    found = Counter(event.process.argv for event in stream.execs(b"storm-"))
    assert len(found) == 2000
    assert set(found.values()) == {1}
    assert_continuous(stream)
    assert not stream.losses
    assert not any(counter.lost for counter in stream.batches[-1].header.counters)


def assert_continuous(stream: Stream) -> None:
    """Each batch follows the one before; what the kernel generated was received or is counted as lost."""
    headers = [batch.header for batch in stream.batches if batch.header.host_id]
    for before, after in itertools.pairwise(headers):
        assert after.start_position == before.end_position
        assert after.first_event_index == before.first_event_index + before.event_count
    assert len(stream.events) == sum(h.event_count for h in headers)
    # counters are read after the drain: an event that came between stands in the next batch
    delivered = headers[-1].first_event_index + headers[-1].event_count
    generated = sum(c.generated - sum(loss.count for loss in c.lost) for c in headers[-1].counters)
    assert delivered <= generated <= delivered + 50


def static_program(directory: Path) -> str:
    """A program that does nothing; /bin/true where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("clang") or shutil.which("gcc")
    source, program = directory / "nothing.c", directory / "nothing"
    source.write_text("int main(void) { return 0; }\n")
    if compiler and subprocess.run([compiler, "-static", "-o", program, source], check=False).returncode == 0:
        return str(program)
    return "/bin/true"


@on_the_kernel
def test_a_loaded_release_detects_and_the_former_one_does_not_any_more(agent: Agent, tmp_path: Path) -> None:
    before = agent.status().release_digest
    with agent.subscribed() as stream:
        done = tocsin("content", "load", marker_rule(tmp_path / "rules", "marker-one"), "--socket", agent.socket)
        assert done.returncode == 0, done.stderr
        eventually(lambda: agent.status().release_digest != before, "the digest changes")
        subprocess.run(["/bin/echo", "tocsin-self-test-act"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["/bin/echo", "marker-one"], check=True, stdout=subprocess.DEVNULL)
        eventually(lambda: [d for d in stream.detections if d.rule_id == FIRST], "the new rule fires")
    assert SELF_TEST not in {d.rule_id for d in stream.detections}
    assert len([d for d in stream.detections if d.rule_id == FIRST]) == 1


@on_every_source
def test_a_loaded_release_outlives_its_evaluator(agent: Agent, tmp_path: Path) -> None:
    done = tocsin("content", "load", marker_rule(tmp_path / "rules", "marker-one"), "--socket", agent.socket)
    assert done.returncode == 0, done.stderr
    digest, pid = agent.status().release_digest, agent.pid(control.ROLE_EVALUATOR)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: agent.pid(control.ROLE_EVALUATOR) not in (0, pid) and healthy(agent), "it is started again")
    assert agent.status().release_digest == digest
    stored = agent.dir / "state" / "content"
    assert (stored / "active").read_text().strip() == digest.hex()
    assert [path.stem for path in stored.glob("*.release")] == [digest.hex()]


@on_every_source
def test_content_with_a_broken_rule_is_named_and_not_loaded(agent: Agent, tmp_path: Path) -> None:
    rules = marker_rule(tmp_path / "rules", "marker-one")
    write_rule(rules, rule(rule_id=SECOND, title="Broken", condition="gone"), "broken.yml")
    before = agent.status().release_digest
    checked = tocsin("content", "check", rules)
    assert checked.returncode == 1
    assert "broken.yml:" in checked.stdout + checked.stderr
    assert "gone" in checked.stdout + checked.stderr
    assert tocsin("content", "load", rules, "--socket", agent.socket).returncode == 1
    assert agent.status().release_digest == before


@on_every_source
def test_a_release_whose_sample_fails_is_refused_by_the_host(agent: Agent, tmp_path: Path) -> None:
    release = release_pb2.CompiledRelease.FromString(build(marker_rule(tmp_path / "rules", "one"), "bad"))
    event = release_pb2.NamedEvent(log_source=release.rules[0].log_source)
    event.values.add(name="CommandLine", value=b"another")
    release.samples.add(rule_id=FIRST, must_match=True, event=event, origin="x.yml:3")
    before = agent.status().release_digest
    with connected(agent.socket) as peer:
        answer = peer.load(release.SerializeToString(deterministic=True))
    assert not answer.accepted
    assert answer.refusal.code == "SAMPLE_NOT_MATCHED"
    assert answer.active_digest == before
    assert agent.status().release_digest == before


@on_every_source
def test_bytes_that_are_no_release_are_refused(agent: Agent) -> None:
    before = agent.status().release_digest
    with connected(agent.socket) as peer:
        answer = peer.load(b"\xff" * 1000)
    assert not answer.accepted
    assert answer.refusal.code == "MALFORMED"
    assert agent.status().release_digest == before


@on_every_source
def test_every_process_has_the_privileges_that_it_needs_and_no_others(agent: Agent) -> None:
    rows = {p.role: p for p in agent.status().processes}
    for role in (control.ROLE_SENSOR, control.ROLE_EVALUATOR, control.ROLE_COURIER):
        facts = process_facts(rows[role].pid)
        assert facts["NoNewPrivs"] == "1"
        assert facts["Seccomp"] == "2"
        assert int(facts["Uid"].split()[1]) == rows[role].uid
        if role == control.ROLE_SENSOR:
            allowed = 1 << 39 | 1 << 38 | 1 << 24 | 1 << 19 | 1 << 2
            assert int(facts["CapEff"], 16) & ~allowed == 0
        else:
            assert int(facts["CapPrm"], 16) == 0
            assert rows[role].uid != 0 or os.geteuid() == 0
            assert os.geteuid() != 0 or int(facts["Uid"].split()[1]) != 0


def process_facts(pid: int) -> dict[str, str]:
    """/proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@on_every_source
def test_a_second_agent_is_told_of_the_first(agent: Agent) -> None:
    done = tocsin("run", "--for", "5s", "--json", "--source", "replay", *agent.directories)
    assert done.returncode == 4
    assert f"pid {agent.pid(control.ROLE_MONITOR)}" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("size_bytes", [0, 1000])
def test_a_release_that_cannot_be_used_at_the_start_gives_way_to_the_packaged_one(
    tmp_path: Path, size_bytes: int
) -> None:
    broken = tmp_path / "broken.release"
    broken.write_bytes(b"\xff" * size_bytes)
    with Agent("replay", "--release", str(broken)) as agent:
        status = agent.status()
        assert status.health == control.HEALTH_DEGRADED
        assert "broken.release" in status.health_reason
        assert status.release_rules > 1


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root can become another user")
def test_an_ordinary_user_sees_recorded_events_and_why() -> None:
    with tempfile.TemporaryDirectory(prefix="tocsin-test-") as name:
        os.chown(name, 65534, 65534)
        # the interpreter may lie below a directory that is closed to others
        user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        user += ["--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search"]
        command = [*user, *COMMAND, "run", "--for", "8s", "--json"]
        environment = {"PATH": os.environ["PATH"], "HOME": name, "XDG_RUNTIME_DIR": name}
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=environment)
        assert (Path(name) / ".local/state/tocsin/content").is_dir()
    assert done.returncode == 0, done.stderr
    assert "no privilege to load eBPF" in done.stderr
    assert SELF_TEST in {each["detection"]["rule_id"] for each in objects(done.stdout) if "detection" in each}


@on_every_source
def test_sigterm_ends_everything(agent: Agent) -> None:
    pids = [p.pid for p in agent.status().processes]
    agent.process.terminate()
    assert agent.process.wait(30) == 0
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert not agent.socket.exists()


@on_every_source
def test_a_stopped_evaluator_is_replaced_and_telemetry_goes_on(agent: Agent) -> None:
    pid = agent.pid(control.ROLE_EVALUATOR)
    os.kill(pid, signal.SIGSTOP)
    seen = agent.status().events_received

    def arrived() -> bool:
        subprocess.run(["/bin/true"], check=True)  # a quiet host has no events of its own
        return bool(agent.status().events_received > seen)

    eventually(arrived, "events arrive all the same")
    assert agent.pid(control.ROLE_EVALUATOR) == pid
    eventually(lambda: agent.pid(control.ROLE_EVALUATOR) not in (0, pid) and healthy(agent), "it is replaced")
