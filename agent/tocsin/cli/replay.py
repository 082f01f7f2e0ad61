"""`tocsin replay`: recorded events through the evaluator that hosts run, in its sandbox."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from google.protobuf.message import DecodeError

import tocsin
from tocsin.api.content.v1 import release_pb2 as pb
from tocsin.api.event.v1 import batch_pb2, event_pb2
from tocsin.cli import arguments as shared
from tocsin.cli import json_lines
from tocsin.cli.authoring import release_of
from tocsin.errors import WireError
from tocsin.processes.replay import MAX_PAYLOAD_BYTES, ReplayEvaluator
from tocsin.records import framing, recording
from tocsin.records.show import printable

STARTER: Final = Path(tocsin.__file__).with_name("starter.release")
EVENTS_AT_ONCE: Final = 500
BYTES_AT_ONCE: Final = 256 << 10
MAX_LINE_BYTES: Final = 512 << 10


@dataclass(frozen=True, slots=True)
class Match:
    """A rule matched an event of the file."""

    line: int
    """Its line; in a recording its place among the events, from 1."""
    rule_id: str
    title: str


Print = Callable[[Match], None]


def configure(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a recording (`tocsin record`), or JSON lines")
    parser.add_argument(
        "--content",
        type=Path,
        nargs="+",
        default=[STARTER],
        metavar="DIR|RELEASE",
        help="Sigma rules, or a compiled release; default: the packaged starter release",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings (TOML); default: built in")
    shared.add_json(parser, 'one JSON object a match: {"line": N, "rule_id": …, "title": …}')


def run(arguments: argparse.Namespace) -> int:
    """Prints each match; 1 when a line or a batch could not be read, the rest is replayed all the same."""
    path: Path = shared.existing(arguments.file, "file")
    release = release_of(arguments.content)
    show = print_json if arguments.json else print_words
    with path.open("rb") as file, ReplayEvaluator(shared.read_config(arguments), release) as evaluator:
        head = file.read(len(recording.MAGIC))
        file.seek(0)
        if recording.is_recording(head):
            return replay_recording(file, path, evaluator, show)
        return replay_lines(file, path, evaluator, show)


def print_json(match: Match) -> None:
    """For programs."""
    print(json.dumps({"line": match.line, "rule_id": match.rule_id, "title": match.title}))


def print_words(match: Match) -> None:
    """For people."""
    print(f"{match.line}: {printable(match.title)} [{printable(match.rule_id)}]")


def replay_lines(file: BinaryIO, path: Path, evaluator: ReplayEvaluator, show: Print) -> int:
    """JSON lines; a line that is none is told and passed over."""
    bad = 0
    waiting: list[pb.NamedEvent] = []
    size_bytes = 0
    for number, line in lines_of(file):
        try:
            event = json_lines.parse(line, number)
        except WireError as error:
            print(f"tocsin: {path}:{number}: {error}", file=sys.stderr)
            bad = 1
            continue
        waiting.append(event)
        size_bytes += event.ByteSize()
        if len(waiting) >= EVENTS_AT_ONCE or size_bytes >= BYTES_AT_ONCE:
            _show_named(evaluator.match_named(waiting), show)
            waiting, size_bytes = [], 0
    if waiting:
        _show_named(evaluator.match_named(waiting), show)
    return bad


def lines_of(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Lines that hold something, with their numbers; one that is too long is cut, and then no JSON."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES):
        number += 1
        while not line.endswith(b"\n") and (rest := file.readline(MAX_LINE_BYTES)):
            line = b"\0" + rest[-1:]  # what follows the limit is not kept
        if line.strip():
            yield number, line


def _show_named(matches: list[pb.NamedMatch], show: Print) -> None:
    for match in matches:
        show(Match(match.line, match.rule_id, match.rule_title))


def replay_recording(file: BinaryIO, path: Path, evaluator: ReplayEvaluator, show: Print) -> int:
    """Batches; raises SpoolError where the file is damaged, after what stands before."""
    before = bad = 0
    for serialised in recording.batches(file, str(path)):
        try:
            index, header = _read_batch(serialised)
        except (WireError, DecodeError) as error:
            print(f"tocsin: {path}: after event {before}: {error}", file=sys.stderr)
            bad = 1
            continue
        found = evaluator.match_batch(serialised, header.end_position)
        for place, detection in placed(index, found):
            show(Match(before + place + 1, detection.rule_id, detection.rule_title))
        before += len(index)
    return bad


def _read_batch(serialised: bytes) -> tuple[framing.Index, batch_pb2.BatchHeader]:
    if len(serialised) > MAX_PAYLOAD_BYTES:
        raise WireError(f"a batch of {len(serialised)} bytes, expected at most {MAX_PAYLOAD_BYTES}")
    index = framing.index(serialised)
    return index, batch_pb2.BatchHeader.FromString(index.header)


def placed(index: framing.Index, found: list[batch_pb2.Detection]) -> Iterator[tuple[int, batch_pb2.Detection]]:
    """Each detection with the place of its event in the batch: both have the same order."""
    at = 0
    for detection in found:
        while at < len(index) and event_pb2.Event.FromString(index.event(at)) != detection.event:
            at += 1
        if at == len(index):
            raise WireError(f"a detection of rule {detection.rule_id} with an event that is not in its batch")
        yield at, detection
