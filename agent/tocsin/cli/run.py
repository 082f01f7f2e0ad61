"""`tocsin run`: the agent in the foreground, with its events and detections on the terminal.

The monitor is a child process; this one only asks over gRPC like any other
client. It performs one harmless act that the packaged content detects, so that
the whole way is seen to work.
"""

import argparse
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from tocsin import config as configuration
from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.api.event.v1.batch_pb2 import SOURCE_REPLAY
from tocsin.cli import arguments as shared
from tocsin.cli.agent import RunningAgent, connected
from tocsin.cli.tail import Lines, Screen
from tocsin.errors import KernelError, PeerError

ACT: Final = ("/bin/echo", "tocsin-self-test-act")
START_TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.1
END_TIMEOUT_S: Final = 15.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings (TOML); default: built in")
    parser.add_argument("--for", dest="seconds", type=duration, metavar="SECONDS", help="end after so long")
    shared.add_json(parser, 'one JSON object a line: {"event": …}, {"detection": …}, {"context": …} or {"loss": …}')
    parser.add_argument("--source", choices=configuration.SOURCES, help="where events come from; default: auto")
    parser.add_argument("--runtime-dir", metavar="DIR", help="for the socket and the lock")
    parser.add_argument("--state-dir", metavar="DIR", help="for the active release")
    parser.add_argument("--release", type=Path, metavar="FILE", help="a compiled release to start with")
    parser.add_argument("--quiet", action="store_true", help="of the processes' logs only warnings")
    parser.add_argument("--no-act", action="store_true", help="do not perform the harmless act that is detected")


def duration(text: str) -> float:
    """Seconds, with or without an s."""
    return shared.seconds(text.removesuffix("s"))


def settings(arguments: argparse.Namespace) -> configuration.Config:
    """The settings, with what the arguments say in place of what the file says."""
    config = shared.read_config(arguments)
    changed: dict[str, str] = {}
    for name in ("runtime_dir", "state_dir"):
        if value := getattr(arguments, name):
            changed[name] = str(Path(value).absolute())
    if arguments.release:
        changed["release"] = str(shared.existing(arguments.release, "release").absolute())
    sensor = dataclasses.replace(config.sensor, source=arguments.source or config.sensor.source)
    return dataclasses.replace(config, sensor=sensor, **changed)  # type: ignore[arg-type]


def run(arguments: argparse.Namespace) -> int:
    """Runs the agent until Ctrl-C, SIGTERM or the end of the time."""
    config = settings(arguments)
    signal.signal(signal.SIGTERM, _interrupted)
    level = "WARNING" if arguments.quiet else os.environ.get("TOCSIN_LOG_LEVEL", "INFO")
    command = [sys.executable, "-P", "-m", "tocsin.processes.monitor"]
    command += ["--config", config.to_json(), "--parent", str(os.getpid())]
    environment = {**os.environ, "TOCSIN_LOG_LEVEL": level}
    monitor = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2, env=environment, process_group=0)
    try:
        wait_until_ready(config.socket_path, monitor)
        watch(config.socket_path, arguments, monitor)
    except KeyboardInterrupt:
        pass
    finally:
        end(monitor)
    return 0


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def end(monitor: "subprocess.Popen[bytes]") -> None:
    """Lets the agent end in order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    monitor.terminate()
    try:
        monitor.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        monitor.kill()
        monitor.wait()


def wait_until_ready(socket_path: Path, monitor: "subprocess.Popen[bytes]") -> control.GetStatusResponse:
    """Until every process runs. Raises PeerError, KernelError when it does not come to that."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    words = "no process answered"
    while time.monotonic() < deadline_s:
        if monitor.poll() is not None:
            raise KernelError("the agent did not start: its reason stands above")
        try:
            with connected(socket_path) as agent:
                while time.monotonic() < deadline_s and monitor.poll() is None:
                    status = agent.status()
                    if monitor.pid not in (process.pid for process in status.processes):
                        words = f"another agent listens on {socket_path}"
                        time.sleep(POLL_S)
                        continue
                    if status.health == control.HEALTH_FAILED:
                        raise KernelError(f"the agent did not start: {status.health_reason}")
                    if status.source and status.release_digest and "being started" not in status.health_reason:
                        return status
                    words = status.health_reason
                    time.sleep(POLL_S)
        except PeerError:
            time.sleep(POLL_S)
    raise PeerError(f"the agent was not ready in {START_TIMEOUT_S:.0f} s: {words}")


def watch(socket_path: Path, arguments: argparse.Namespace, monitor: "subprocess.Popen[bytes]") -> None:
    """Shows the stream; subscribes again when the courier was restarted."""
    show = Lines() if arguments.json else Screen()
    deadline_s = time.monotonic() + arguments.seconds if arguments.seconds else None
    acts = not arguments.no_act
    while monitor.poll() is None and (deadline_s is None or time.monotonic() < deadline_s):
        left_s = None if deadline_s is None else max(0.1, deadline_s - time.monotonic())
        try:
            with connected(socket_path) as agent:
                if acts:
                    tell_source(agent)
                acts = show_stream(agent, show, left_s, acts=acts)
        except PeerError as error:
            print(f"tocsin: {error}", file=sys.stderr)
            time.sleep(POLL_S)
    if monitor.poll():
        raise KernelError("the agent ended: its reason stands above")


def tell_source(agent: RunningAgent) -> None:
    """What is shown, when it is not what happens on this host."""
    status = agent.status()
    if status.health_reason:
        print(f"tocsin: {status.health_reason}", file=sys.stderr)
    if status.source == SOURCE_REPLAY:
        print("tocsin: the source is a recording (see `tocsin doctor`)", file=sys.stderr)


def show_stream(agent: RunningAgent, show: Lines | Screen, seconds: float | None, *, acts: bool) -> bool:
    """Prints the stream; whether the act is still to be performed."""
    for serialised in agent.subscribe(control.SubscribeRequest(events=True, detections=True), seconds):
        part = control.SubscribeResponse.FromString(serialised)
        show(part)
        if acts and part.HasField("start"):
            acts = False
            act()
    return acts


def act() -> None:
    """The harmless act."""
    subprocess.run(ACT, stdout=subprocess.DEVNULL, check=False)
