"""`tocsin tail`: the agent's stream on the terminal, or as JSON lines."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.text import Text

from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.api.event.v1 import batch_pb2
from tocsin.cli import arguments as shared
from tocsin.cli.agent import connected
from tocsin.records import show


def configure(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    shared.add_agent(parser)
    shared.add_json(parser, 'one JSON object a line: {"event": …}, {"detection": …}, {"context": …} or {"loss": …}')
    parser.add_argument("--events", action="store_true", help="only events (default: events and detections)")
    parser.add_argument("--detections", action="store_true", help="only detections")
    shared.add_event_filter(parser)
    parser.add_argument("--level", choices=list(shared.LEVELS), help="only detections of this level or a higher one")
    parser.add_argument("--rule", action="append", default=[], metavar="ID", help="only of this rule; may be repeated")


def request_of(arguments: argparse.Namespace) -> control.SubscribeRequest:
    """What the arguments ask for; neither --events nor --detections means both."""
    both = arguments.events == arguments.detections
    return control.SubscribeRequest(
        events=both or arguments.events,
        detections=both or arguments.detections,
        event_types=[shared.EVENT_TYPES[name] for name in arguments.type],
        min_level=shared.LEVELS.get(arguments.level, 0),  # type: ignore[arg-type]
        rule_ids=arguments.rule,
        uids=arguments.uid,
    )


def run(arguments: argparse.Namespace) -> int:
    """Shows the stream until it ends."""
    show_part = Lines() if arguments.json else Screen()
    try:
        with connected(shared.socket_path(arguments)) as agent:
            for serialised in agent.subscribe(request_of(arguments), arguments.seconds):
                show_part(control.SubscribeResponse.FromString(serialised))
    except KeyboardInterrupt:
        pass
    return 0


class Users:
    """The names of the host's users, as the stream told them last."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}

    def note(self, users: "list[batch_pb2.User]") -> None:
        """Takes a newer list; none: the former stays."""
        if users:
            self.names = {user.uid: user.name for user in users}

    def of(self, part: control.SubscribeResponse) -> dict[int, str]:
        """The names that hold for a part of the stream."""
        self.note(list(part.start.users) or list(part.batch.header.users))
        return self.names


class Screen:
    """For people."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._users = Users()

    def __call__(self, part: control.SubscribeResponse) -> None:
        """Prints a part of the stream."""
        for line in self._lines(part):
            self._console.print(line)

    def _lines(self, part: control.SubscribeResponse) -> Iterator[Text]:
        users = self._users.of(part)
        offset_ns = part.batch.header.realtime_offset_ns
        yield from (show.event_line(event, offset_ns, users) for event in part.batch.events)
        yield from (show.detection_line(detection) for detection in part.detections.detections)
        losses = [*part.detections.losses, *([part.loss] if part.HasField("loss") else [])]
        yield from (Text(show.loss_words(loss), "bold yellow") for loss in losses)


class Lines:
    """For programs."""

    def __init__(self, write: Callable[[str], object] = sys.stdout.write) -> None:
        self._write = write
        self._users = Users()

    def __call__(self, part: control.SubscribeResponse) -> None:
        """Prints a part of the stream."""
        for shown in self._objects(part):
            self._write(json.dumps(shown) + "\n")
        sys.stdout.flush()

    def _objects(self, part: control.SubscribeResponse) -> Iterator[show.Json]:
        users = self._users.of(part)
        offset_ns = part.batch.header.realtime_offset_ns
        yield from ({"event": show.event_json(event, offset_ns, users)} for event in part.batch.events)
        yield from ({"context": show.executable_json(each)} for each in part.batch.header.executables)
        yield from ({"context": show.container_json(each)} for each in part.batch.header.containers)
        yield from ({"detection": show.detection_json(detection)} for detection in part.detections.detections)
        losses = [*part.detections.losses, *([part.loss] if part.HasField("loss") else [])]
        yield from ({"loss": show.loss_json(loss)} for loss in losses)
