"""`tocsin record`: the batches of the agent, as they come, in a file for `tocsin replay`."""

import argparse
import sys
from pathlib import Path
from typing import BinaryIO

from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.api.event.v1 import batch_pb2, event_pb2
from tocsin.cli import arguments as shared
from tocsin.cli.agent import RunningAgent, connected
from tocsin.errors import ConfigError
from tocsin.records import recording
from tocsin.stream import wire


def configure(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a new file")
    shared.add_agent(parser)
    shared.add_event_filter(parser)


def run(arguments: argparse.Namespace) -> int:
    """Records until the time is over or it is interrupted."""
    request = control.SubscribeRequest(
        events=True,
        event_types=[shared.EVENT_TYPES[name] for name in arguments.type],
        uids=arguments.uid,
    )
    with connected(shared.socket_path(arguments)) as agent:
        try:
            file = arguments.file.open("xb")
        except FileExistsError:
            raise ConfigError(f"{arguments.file}: exists already; name a new file") from None
        with file:
            count = _record(agent, request, arguments.seconds, file)
    print(f"{count} batches in {arguments.file}", file=sys.stderr)
    return 0


def _record(agent: RunningAgent, request: control.SubscribeRequest, seconds: float | None, file: BinaryIO) -> int:
    count = 0
    recording.begin(file)
    try:
        for serialised in agent.subscribe(request, seconds):
            number, part = wire.part(serialised)
            if number == control.SubscribeResponse.BATCH_FIELD_NUMBER:
                recording.append(file, part)
                count += 1
            else:
                recording.append(file, _as_batch(control.SubscribeResponse.FromString(serialised)))
            file.flush()
    except KeyboardInterrupt:
        pass
    return count


def _as_batch(part: control.SubscribeResponse) -> bytes:
    """The users that were known at the start, and losses on the way, as batches of their own."""
    batch = batch_pb2.Batch(header=batch_pb2.BatchHeader(users=part.start.users))
    batch.header.start_position = batch.header.end_position = part.start.position
    if part.HasField("loss"):
        batch.events.append(event_pb2.Event(type=event_pb2.EVENT_TYPE_LOSS, loss=part.loss))
    return batch.SerializeToString()
