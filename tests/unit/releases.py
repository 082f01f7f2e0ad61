"""Compiled releases made by hand, for the tests of the evaluator."""

from collections.abc import Iterable, Sequence

from tocsin.api.content.v1 import release_pb2 as pb
from tocsin.api.event.v1 import batch_pb2, event_pb2
from tocsin.evaluate.release import Release, decode
from tocsin.records.field_table import SCHEMA_DIGEST

LINUX_PROCESS = pb.LogSource(category="process_creation", product="linux")


def rule_id(number: int) -> str:
    """A UUID that sorts as its number."""
    return f"00000000-0000-4000-8000-{number:012x}"


def rule(number: int, condition: pb.Expression, log_source: pb.LogSource = LINUX_PROCESS) -> pb.Rule:
    """A rule with a condition."""
    return pb.Rule(
        id=rule_id(number),
        title=f"Rule {number}",
        level=batch_pb2.LEVEL_HIGH,
        log_source=log_source,
        condition=condition,
        file=f"{number}.yml",
    )


def compare(field: int, operator: int, text: bytes = b"", **rest: object) -> pb.Expression:
    """A comparison as a condition."""
    return pb.Expression(predicate=pb.Predicate(field=field, operator=operator, text=text, **rest))  # type: ignore[arg-type]


def compiled(fields: Sequence[str], rules: Iterable[pb.Rule], samples: Iterable[pb.Sample] = ()) -> pb.CompiledRelease:
    """A release."""
    return pb.CompiledRelease(
        format=1, schema_digest=SCHEMA_DIGEST, fields=fields, rules=rules, samples=samples, name="test 1", complete=True
    )


def raw(release: pb.CompiledRelease) -> bytes:
    """Its canonical bytes."""
    return release.SerializeToString(deterministic=True)


def decoded(release: pb.CompiledRelease) -> Release:
    """The checked release."""
    return decode(raw(release), SCHEMA_DIGEST)


def exec_event(exe: bytes = b"", argv: bytes = b"", euid: int = 0, parent_exe: bytes | None = None) -> event_pb2.Event:
    """An exec."""
    parent = None if parent_exe is None else event_pb2.Process(exe=parent_exe)
    process = event_pb2.Process(pid=100, euid=euid, exe=exe, argv=argv)
    return event_pb2.Event(type=event_pb2.EVENT_TYPE_EXEC, process=process, parent=parent, exec=event_pb2.Exec(argc=1))


def batch(*events: event_pb2.Event, header: batch_pb2.BatchHeader | None = None) -> bytes:
    """A serialised batch."""
    return batch_pb2.Batch(events=events, header=header or batch_pb2.BatchHeader()).SerializeToString()
