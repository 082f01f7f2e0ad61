"""A real courier process, in its sandbox, talked to over its public socket; the rest of the agent is simulated."""

import grp
import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from simulators.agent_around_courier import (  # type: ignore[import-not-found]
    SimulatedAgent,
    expect,
    make_batch,
    make_detections,
    make_event,
    send_batch,
    send_detections,
)
from tocsin.api.content.v1 import content_service_pb2 as content
from tocsin.api.content.v1 import content_service_pb2_grpc
from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.api.control.v1 import control_service_pb2_grpc
from tocsin.api.event.v1 import event_pb2
from tocsin.config import CourierConfig
from tocsin.processes.channel import Kind, Message
from tocsin.processes.state import AgentState, ProcessState

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
EVERYTHING = control.SubscribeRequest(events=True, detections=True)
STRANGER = 65493


@pytest.fixture
def agent() -> Iterator[SimulatedAgent]:
    """A courier with default settings."""
    with SimulatedAgent() as running:
        yield running


@pytest.fixture
def channel(agent: SimulatedAgent) -> Iterator[grpc.Channel]:
    """A caller's connection."""
    with grpc.insecure_channel(agent.target) as connected:
        yield connected


def subscribe(
    channel: grpc.Channel, request: control.SubscribeRequest = EVERYTHING
) -> Iterator[control.SubscribeResponse]:
    """A stream behind its start message: what is sent from now on arrives."""
    stream = iter(control_service_pb2_grpc.ControlServiceStub(channel).Subscribe(request, timeout=60))
    assert next(stream).HasField("start")
    return stream


def status_of(channel: grpc.Channel) -> control.GetStatusResponse:
    """GetStatus."""
    return control_service_pb2_grpc.ControlServiceStub(channel).GetStatus(control.GetStatusRequest(), timeout=20)


def load(channel: grpc.Channel, *chunks: bytes, timeout: float = 20) -> content.LoadReleaseResponse:
    """LoadRelease."""
    requests = (content.LoadReleaseRequest(chunk=chunk) for chunk in chunks)
    return content_service_pb2_grpc.ContentServiceStub(channel).LoadRelease(requests, timeout=timeout)


# --- the stream


def test_events_and_detections_arrive_in_order_and_batches_are_acknowledged(
    agent: SimulatedAgent, channel: grpc.Channel
) -> None:
    sensor, evaluator = agent.attach_sensor(), agent.attach_evaluator()
    stream = subscribe(channel)
    event = make_event(1)
    send_detections(evaluator, make_detections(100, [event]), evaluated=1)
    send_batch(sensor, make_batch(0, 100, [event]))
    assert next(stream).batch.events == [event]
    assert next(stream).detections.detections[0].event == event
    assert expect(sensor, Kind.ACK).b == 100
    assert status_of(channel).events_evaluated == 1


def test_a_batch_sent_again_after_a_restart_of_the_sensor_is_dropped_and_acknowledged(
    agent: SimulatedAgent, channel: grpc.Channel
) -> None:
    first = agent.attach_sensor()
    stream = subscribe(channel)
    send_batch(first, make_batch(0, 100, [make_event(1)]))
    assert expect(first, Kind.ACK).b == 100
    first.close()
    second = agent.attach_sensor()
    send_batch(second, make_batch(0, 100, [make_event(1)]))
    send_batch(second, make_batch(100, 200, [make_event(2)]))
    assert [next(stream).batch.header.end_position for _ in range(2)] == [100, 200]
    while expect(second, Kind.ACK).b != 200:
        pass
    assert status_of(channel).events_received == 2


def test_what_a_dead_evaluator_had_sent_is_not_lost(agent: SimulatedAgent, channel: grpc.Channel) -> None:
    sensor, first = agent.attach_sensor(), agent.attach_evaluator()
    stream = subscribe(channel)
    send_batch(sensor, make_batch(0, 100, [make_event(1)]))
    send_detections(first, make_detections(100, [make_event(1)]))
    first.close()
    second = agent.attach_evaluator()
    send_detections(second, make_detections(100, [make_event(1)]))
    send_batch(sensor, make_batch(100, 200, [make_event(2)]))
    send_detections(second, make_detections(200, [make_event(2)]))
    ends: list[int] = []
    while len(ends) < 2:
        part = next(stream)
        ends += [part.detections.end_position] if part.HasField("detections") else []
    assert ends == [100, 200]


def test_an_evaluator_that_sends_garbage_is_dropped_and_the_stream_goes_on(
    agent: SimulatedAgent, channel: grpc.Channel
) -> None:
    sensor, evaluator = agent.attach_sensor(), agent.attach_evaluator()
    stream = subscribe(channel)
    evaluator.send(Message(Kind.DETECTIONS, b=100, payload=b"\x0a\xff"))
    send_batch(sensor, make_batch(0, 100, [make_event(1)]))
    assert next(stream).HasField("batch")
    with pytest.raises(Exception, match=r"closed|Broken pipe"):
        expect(evaluator, Kind.ACK)


def test_an_evaluator_may_not_play_the_sensor(agent: SimulatedAgent, channel: grpc.Channel) -> None:
    evaluator = agent.attach_evaluator()
    send_batch(evaluator, make_batch(0, 100, [make_event(1)]))
    with pytest.raises(Exception, match=r"closed|Broken pipe"):
        expect(evaluator, Kind.ACK)
    assert status_of(channel).events_received == 0


def test_users_seen_last_come_with_the_start(agent: SimulatedAgent, channel: grpc.Channel) -> None:
    sensor = agent.attach_sensor()
    send_batch(sensor, make_batch(0, 100, [], {0: "root", 1000: "ann"}))
    expect(sensor, Kind.ACK)
    stream = control_service_pb2_grpc.ControlServiceStub(channel).Subscribe(EVERYTHING, timeout=20)
    start = next(iter(stream)).start
    assert (start.position, [user.name for user in start.users]) == (100, ["root", "ann"])


def test_a_filter_holds_on_the_wire(agent: SimulatedAgent, channel: grpc.Channel) -> None:
    sensor = agent.attach_sensor()
    request = control.SubscribeRequest(events=True, event_types=[event_pb2.EVENT_TYPE_EXIT])
    stream = subscribe(channel, request)
    exit_event = make_event(2, event_pb2.EVENT_TYPE_EXIT)
    send_batch(sensor, make_batch(0, 100, [make_event(1), exit_event]))
    assert next(stream).batch.events == [exit_event]


def test_a_wrong_subscription_is_an_invalid_argument(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        subscribe(channel, control.SubscribeRequest(events=True, event_types=[77]))  # type: ignore[list-item]
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "event_types: 77" in str(caught.value.details())


def test_a_subscriber_beyond_the_limit_is_refused_and_one_that_left_makes_room() -> None:
    with SimulatedAgent(CourierConfig(max_subscribers=1)) as agent, grpc.insecure_channel(agent.target) as channel:
        first = control_service_pb2_grpc.ControlServiceStub(channel).Subscribe(EVERYTHING, timeout=20)
        next(iter(first))
        with pytest.raises(grpc.RpcError) as caught:
            subscribe(channel)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        first.cancel()
        deadline = time.monotonic() + 10
        while status_of(channel).subscribers and time.monotonic() < deadline:
            time.sleep(0.05)
        subscribe(channel)


def test_a_slow_subscriber_gets_a_loss_and_the_courier_stays_small() -> None:
    limit = 2 << 20
    with SimulatedAgent(CourierConfig(subscriber_buffer_bytes=limit)) as agent:
        sensor = agent.attach_sensor()
        with grpc.insecure_channel(agent.target) as slow, grpc.insecure_channel(agent.target) as watching:
            stalled = subscribe(slow)
            before = resident_bytes(agent.process.pid)
            events = [make_event(number) for number in range(3000)]
            size = make_batch(0, 100, events).ByteSize()
            rounds = 100 * (1 << 20) // size
            for number in range(rounds):
                send_batch(sensor, make_batch(number * 100, number * 100 + 100, events))
                expect(sensor, Kind.ACK)
            assert resident_bytes(agent.process.pid) - before < 32 << 20
            (loss,) = status_of(watching).losses
            assert loss.reason == event_pb2.LOSS_REASON_SUBSCRIBER_BACKLOG
            told, seen = 0, 0
            while told + seen < rounds * len(events):
                part = next(stalled)
                told, seen = told + part.loss.count, seen + len(part.batch.events)
            assert told == loss.count > 0


def resident_bytes(pid: int) -> int:
    """Memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_many_batches_go_through_complete(agent: SimulatedAgent, channel: grpc.Channel) -> None:
    sensor = agent.attach_sensor()
    stream = subscribe(channel)
    events = [make_event(number) for number in range(500)]
    sender = threading.Thread(target=send_many, args=(sensor, events, 200))
    sender.start()
    for number in range(200):
        batch = next(stream).batch
        assert (batch.header.start_position, len(batch.events)) == (number * 10, 500)
    sender.join()


def send_many(sensor: object, events: list[event_pb2.Event], count: int) -> None:
    """Batches in lockstep with their acknowledgement."""
    for number in range(count):
        send_batch(sensor, make_batch(number * 10, number * 10 + 10, events))
        expect(sensor, Kind.ACK)


# --- status, reflection, health


def test_status_tells_what_the_monitor_told(agent: SimulatedAgent, channel: grpc.Channel) -> None:
    state = AgentState(
        health=control.HEALTH_DEGRADED,
        reason="sensor restarts",
        source=1,
        processes=(ProcessState(control.ROLE_SENSOR, 7, 3, 0),),
        release_digest=b"\x01" * 32,
        release_name=b"starter",
        rules=144,
        rules_inert=5,
        start_monotonic_ns=time.monotonic_ns() - 90 * 10**9,
        evaluator_progress=12,
    )
    agent.tell_state(state)
    status = wait_for_status(channel)
    assert (status.health, status.health_reason) == (control.HEALTH_DEGRADED, "sensor restarts")
    assert (status.release_digest, status.release_name) == (b"\x01" * 32, "starter")
    assert (status.release_rules, status.release_rules_inert, status.events_evaluated) == (144, 5, 12)
    assert (status.processes[0].pid, status.processes[0].restarts) == (7, 3)
    assert 90 <= status.uptime_s < 200
    assert len(status.schema_digest) == 32
    assert status.version
    assert status.kernel_release == os.uname().release


def test_an_enrichment_that_is_not_readable_does_not_spoil_the_status(
    agent: SimulatedAgent, channel: grpc.Channel
) -> None:
    agent.tell_state(AgentState(health=control.HEALTH_OK, enrichment=b"\xff"))
    status = wait_for_status(channel)
    assert status.health == control.HEALTH_OK
    assert not status.HasField("enrichment")


def wait_for_status(channel: grpc.Channel) -> control.GetStatusResponse:
    """The first status with the monitor's word in it."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        status = status_of(channel)
        if status.health:
            return status
        time.sleep(0.02)
    raise AssertionError("no state came")


def test_reflection_lists_the_services(channel: grpc.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=20)
    names = {service.name for service in answer.list_services_response.service}
    assert names >= {
        "tocsin.api.control.v1.ControlService",
        "tocsin.api.content.v1.ContentService",
        "grpc.health.v1.Health",
    }


def test_reflection_describes_the_events(channel: grpc.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol="tocsin.api.event.v1.Event")
    (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=20)
    assert answer.file_descriptor_response.file_descriptor_proto


def test_health_is_serving_until_the_agent_has_failed(agent: SimulatedAgent, channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="tocsin.api.control.v1.ControlService"), timeout=20)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    agent.tell_state(AgentState(health=control.HEALTH_FAILED))
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING


# --- loading content


def test_a_release_reaches_the_monitor_whole_and_sealed(agent: SimulatedAgent, channel: grpc.Channel) -> None:
    release = os.urandom(3 << 20)
    answers: list[content.LoadReleaseResponse] = []
    chunks = [release[at : at + (1 << 20)] for at in range(0, len(release), 1 << 20)]
    caller = threading.Thread(target=lambda: answers.append(load(channel, *chunks)))
    caller.start()
    request = agent.expect(Kind.LOAD)
    with pytest.raises(PermissionError):
        os.write(request.fds[0], b"x")
    assert agent.answer_load(request) == release
    caller.join()
    digest = hashlib.sha256(release).digest()
    assert (answers[0].accepted, answers[0].digest, answers[0].active_digest) == (True, digest, digest)


def test_a_refusal_is_passed_on_in_full(agent: SimulatedAgent, channel: grpc.Channel) -> None:
    answers: list[content.LoadReleaseResponse] = []
    caller = threading.Thread(target=lambda: answers.append(load(channel, b"bad")))
    caller.start()
    refusal = content.Refusal(stage=content.STAGE_SAMPLES, code="SAMPLE_NOT_MATCHED", rule_id="r", message="words")
    agent.answer_load(agent.expect(Kind.LOAD), refusal, code=1)
    caller.join()
    assert not answers[0].accepted
    assert answers[0].refusal == refusal


def test_a_second_load_while_one_is_under_way_is_aborted(agent: SimulatedAgent, channel: grpc.Channel) -> None:
    caller = threading.Thread(target=lambda: load(channel, b"first"))
    caller.start()
    request = agent.expect(Kind.LOAD)
    with pytest.raises(grpc.RpcError) as caught:
        load(channel, b"second")
    assert caught.value.code() is grpc.StatusCode.ABORTED
    agent.answer_load(request)
    caller.join()


def test_a_monitor_that_is_busy_is_an_abort(agent: SimulatedAgent, channel: grpc.Channel) -> None:
    errors: list[grpc.RpcError] = []

    def call() -> None:
        with pytest.raises(grpc.RpcError) as caught:
            load(channel, b"x")
        errors.append(caught.value)

    caller = threading.Thread(target=call)
    caller.start()
    agent.answer_load(agent.expect(Kind.LOAD), code=2)
    caller.join()
    assert errors[0].code() is grpc.StatusCode.ABORTED


def test_a_release_beyond_64_mib_is_refused(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        load(channel, *[bytes(1 << 20)] * 65, timeout=60)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_an_empty_release_is_refused_without_the_monitor(channel: grpc.Channel) -> None:
    answer = load(channel)
    assert (answer.accepted, answer.refusal.code) == (False, "EMPTY_RELEASE")


# --- who may do what

CALLER = """
import grp, os, sys
import grpc, grpc._utilities
from tocsin.api.content.v1 import content_service_pb2 as content, content_service_pb2_grpc
from tocsin.api.control.v1 import control_service_pb2 as control, control_service_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

target, uid, groups = sys.argv[1], int(sys.argv[2]), [int(g) for g in sys.argv[3].split(",") if g]
os.setgroups(groups)
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)

def outcome(call):
    try:
        call()
    except grpc.RpcError as error:
        return error.code().name + ": " + error.details()
    return "OK"

with grpc.insecure_channel(target) as channel:
    stub = control_service_pb2_grpc.ControlServiceStub(channel)
    loader = content_service_pb2_grpc.ContentServiceStub(channel)
    everything = control.SubscribeRequest(events=True)
    print(outcome(lambda: stub.GetStatus(control.GetStatusRequest(), timeout=20)))
    print(outcome(lambda: next(iter(stub.Subscribe(everything, timeout=20)))))
    print(outcome(lambda: loader.LoadRelease(iter([content.LoadReleaseRequest()]), timeout=20)))
    print(outcome(lambda: health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)))
"""


def call_as(agent: SimulatedAgent, uid: int, groups: str = "") -> list[str]:
    """What another user's process gets from GetStatus, Subscribe, LoadRelease and health."""
    command = [sys.executable, "-P", "-c", CALLER, agent.target, str(uid), groups]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()


@root_only
def test_a_stranger_is_denied_everything_in_clear_words(agent: SimulatedAgent) -> None:
    outcomes = call_as(agent, STRANGER)
    assert len(outcomes) == 4
    for outcome in outcomes:
        assert outcome.startswith("PERMISSION_DENIED: this user may not talk to the agent: be root or a member of")
    assert f"uid={STRANGER}" in agent.log
    assert "role=denied" in agent.log


@root_only
def test_a_member_of_the_reader_group_may_look_and_not_load() -> None:
    group = next(group for group in grp.getgrall() if group.gr_gid not in {0, STRANGER})
    with SimulatedAgent(CourierConfig(reader_group=group.gr_name)) as agent:
        status, subscription, loading, health = call_as(agent, STRANGER, str(group.gr_gid))
    assert (status, subscription, health) == ("OK", "OK", "OK")
    assert loading.startswith("PERMISSION_DENIED: LoadRelease is for operators")


@root_only
def test_the_inner_sockets_are_closed_to_others(agent: SimulatedAgent) -> None:
    code = f"""
import os, socket
os.setgroups([]); os.setresgid({STRANGER}, {STRANGER}, {STRANGER}); os.setresuid({STRANGER}, {STRANGER}, {STRANGER})
try:
    socket.socket(socket.AF_UNIX).connect({str(agent.dir / "courier" / "operator.sock")!r})
except PermissionError:
    print("denied")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "denied\n"


@root_only
def test_the_courier_has_its_own_user_and_no_capabilities(agent: SimulatedAgent) -> None:
    status = Path(f"/proc/{agent.process.pid}/status").read_text()
    assert "Uid:\t65491\t65491\t65491\t65491" in status
    assert "CapEff:\t0000000000000000" in status
    assert "CapBnd:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status


# --- life


def test_the_courier_ends_when_the_monitor_says_so(agent: SimulatedAgent) -> None:
    agent.control.send(Message(Kind.SHUTDOWN))
    assert agent.process.wait(10) == 0


def test_the_courier_ends_when_the_monitor_is_gone(agent: SimulatedAgent) -> None:
    agent.control.close()
    assert agent.process.wait(10) == 0


def test_the_courier_tells_that_it_is_alive(agent: SimulatedAgent) -> None:
    sensor = agent.attach_sensor()
    send_batch(sensor, make_batch(0, 100, [make_event(1)]))
    expect(sensor, Kind.ACK)
    while agent.expect(Kind.HEARTBEAT).a != 1:
        pass


def test_a_courier_takes_the_place_of_one_that_was_killed(agent: SimulatedAgent) -> None:
    agent.process.kill()
    agent.process.wait()
    assert agent.config.socket_path.exists()
    with SimulatedAgent(directory=agent.dir) as second, grpc.insecure_channel(second.target) as channel:
        assert status_of(channel).version


def test_bytes_that_are_no_http2_harm_nobody(agent: SimulatedAgent, channel: grpc.Channel) -> None:
    with socket.socket(socket.AF_UNIX) as rude:
        rude.connect(str(agent.config.socket_path))
        rude.sendall(os.urandom(4096))
        rude.shutdown(socket.SHUT_WR)
        rude.settimeout(20)
        while rude.recv(4096):
            pass
    assert status_of(channel).version


def test_one_user_cannot_take_every_connection(agent: SimulatedAgent) -> None:
    held = []
    for _ in range(140):
        one = socket.socket(socket.AF_UNIX)
        one.connect(str(agent.config.socket_path))
        held.append(one)
    held[-1].settimeout(20)
    assert held[-1].recv(1) == b""
    for one in held:
        one.close()
    with grpc.insecure_channel(agent.target) as channel:
        call = control_service_pb2_grpc.ControlServiceStub(channel).GetStatus
        assert call(control.GetStatusRequest(), timeout=20, wait_for_ready=True).version
