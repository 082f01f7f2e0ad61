"""Events and detections for people and for programs.

JSON follows the protobuf messages: their field names, enum names, 64-bit
numbers as text. Bytes become text (what is not UTF-8 as \\xNN), argv a list,
addresses dotted or with colons, and a time stands next to each boot time.

What processes choose (names, paths, arguments) is hostile: on a terminal each
character that is not printable is shown escaped.
"""

import ipaddress
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from rich.text import Text

from tocsin.api.event.v1 import batch_pb2, event_pb2, options_pb2
from tocsin.records.field import ERROR_NAMES

if TYPE_CHECKING:
    from google._upb._message import FieldDescriptor as UpbFieldDescriptor

Json = dict[str, Any]
Field: TypeAlias = "FieldDescriptor | UpbFieldDescriptor"
_WIDE: Final = frozenset({FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64})
_FLAGS: Final = {
    "flags": event_pb2.EventFlag,
    "image_flags": event_pb2.ImageFlag,
    "exec_flags": event_pb2.ExecFlag,
    "path_flags": event_pb2.PathFlag,
}
_BOOT: Final = "boottime_ns"
LEVEL_STYLES: Final = {
    batch_pb2.LEVEL_INFORMATIONAL: "cyan",
    batch_pb2.LEVEL_LOW: "blue",
    batch_pb2.LEVEL_MEDIUM: "yellow",
    batch_pb2.LEVEL_HIGH: "bold red",
    batch_pb2.LEVEL_CRITICAL: "bold white on red",
}


def event_json(event: event_pb2.Event, offset_ns: int, users: Mapping[int, str]) -> Json:
    """An event; `offset_ns` is its batch's realtime_offset_ns, `users` maps uids to names."""
    shown = _message(event, offset_ns)
    for name in ("process", "parent", "target"):
        if event.HasField(name) and (user := users.get(getattr(event, name).euid)):
            shown[name]["user"] = user
    return shown


def detection_json(detection: batch_pb2.Detection) -> Json:
    """A detection with its event."""
    shown = _message(detection, detection.realtime_offset_ns)
    users = {detection.event.process.euid: detection.user_name} if detection.user_name else {}
    shown["release_digest"] = detection.release_digest.hex()
    shown["event"] = event_json(detection.event, detection.realtime_offset_ns, users)
    return shown


def loss_json(loss: event_pb2.Loss) -> Json:
    """A loss that stands beside the events."""
    return _message(loss, 0)


def executable_json(executable: batch_pb2.Executable) -> Json:
    """What is known of an executable; digests in hexadecimal."""
    digests = {name: getattr(executable, name).hex() for name in ("sha256", "sha1", "md5")}
    return {"executable": {**_message(executable, 0), **digests, "mtime": rfc3339(executable.mtime_ns)}}


def container_json(container: batch_pb2.Container) -> Json:
    """What is known of a container."""
    return {"container": _message(container, 0)}


def _message(message: Message, offset_ns: int) -> Json:
    shown: Json = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            shown[field.name] = [_value(field, item, offset_ns) for item in value]
        elif field.message_type is not None:
            if message.HasField(field.name):
                shown[field.name] = _message(value, offset_ns)
        elif value or field.cpp_type != FieldDescriptor.CPPTYPE_STRING:
            shown[field.name] = _value(field, value, offset_ns)
            if field.name.endswith(_BOOT) and value and offset_ns:
                shown[field.name.removesuffix(_BOOT) + "time"] = rfc3339(value + offset_ns)
    return shown


def _value(field: Field, value: Any, offset_ns: int) -> Any:
    presentation = field.GetOptions().Extensions[options_pb2.field].presentation
    if field.message_type is not None:
        return _message(value, offset_ns)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known else value
    if isinstance(value, bytes):
        return _bytes(value, presentation)
    return _number(field, value, presentation)


def _number(field: Field, value: Any, presentation: int) -> Any:
    if presentation == options_pb2.PRESENTATION_FLAGS and field.name in _FLAGS:
        return [name for name, bit in _FLAGS[field.name].items() if bit and value & bit]
    if presentation == options_pb2.PRESENTATION_HEX:
        return f"0x{value:x}"
    if presentation == options_pb2.PRESENTATION_ERRNO:
        return error_name(value)
    return str(value) if field.cpp_type in _WIDE else value


def _bytes(value: bytes, presentation: int) -> str | list[str]:
    if presentation == options_pb2.PRESENTATION_ARGV:
        return arguments(value)
    if presentation == options_pb2.PRESENTATION_IP:
        return address(value)
    if presentation == options_pb2.PRESENTATION_IPS:
        return addresses(value)
    return value.decode(errors="backslashreplace")


def arguments(argv: bytes) -> list[str]:
    """The arguments of a process, each ended by NUL on the wire."""
    return [part.decode(errors="backslashreplace") for part in argv.removesuffix(b"\0").split(b"\0")]


def address(ip: bytes) -> str:
    """An address of 4 or 16 bytes; anything else in hexadecimal."""
    try:
        return str(ipaddress.ip_address(ip))
    except ValueError:
        return ip.hex()


def addresses(ips: bytes) -> list[str]:
    """Addresses that each have their size in front; a rest that does not fit in hexadecimal."""
    found = []
    while ips:
        size = ips[0]
        found.append(address(ips[1 : 1 + size]))
        ips = ips[1 + size :]
    return found


def error_name(error: int) -> str:
    """EACCES for 13, success for 0."""
    return "success" if not error else (ERROR_NAMES[error] if error < len(ERROR_NAMES) else "") or str(error)


def rfc3339(realtime_ns: int) -> str:
    """UTC with nanoseconds."""
    seconds, rest_ns = divmod(realtime_ns, 10**9)
    moment = datetime.fromtimestamp(0, UTC) + timedelta(seconds=seconds)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{rest_ns:09d}Z"


def printable(text: str) -> str:
    """The text with everything that a terminal might obey, or that hides other text, escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def event_line(event: event_pb2.Event, offset_ns: int, users: Mapping[int, str]) -> Text:
    """An event on one line: local time, what happened, pid, user, program, and what it did."""
    name = event_pb2.EventType.Name(event.type).removeprefix("EVENT_TYPE_").lower() if event.type else "?"
    body = event.WhichOneof("body")
    counted = body in ("loss", "throttled")
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(_clock(event.boottime_ns + offset_ns), "dim")
    line.append(f" {name:<17} ", "bold yellow" if counted else "green")
    if counted:
        line.append(loss_words(getattr(event, str(body))), "yellow")
        return line
    _append_actor(line, event, users.get(event.process.euid, ""))
    line.append(_deed(event))
    return line


def detection_line(detection: batch_pb2.Detection) -> Text:
    """A detection on one line: local time, level, rule, tags, and who did what."""
    event = detection.event
    style = LEVEL_STYLES.get(detection.level, "bold")
    level = batch_pb2.Level.Name(detection.level).removeprefix("LEVEL_").lower() if detection.level else "?"
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(_clock(event.boottime_ns + detection.realtime_offset_ns), "dim")
    line.append(f" {level.upper():<11} ", style)
    line.append(f"{printable(detection.rule_title)} ", style)
    if detection.tags:
        line.append(f"[{printable(' '.join(detection.tags))}] ", "magenta")
    _append_actor(line, event, detection.user_name)
    line.append(_deed(event))
    return line


def loss_words(loss: event_pb2.Loss) -> str:
    """How many events were lost, and why."""
    reasons = event_pb2.LossReason.DESCRIPTOR.values_by_number
    reason = reasons[loss.reason].name.removeprefix("LOSS_REASON_").lower() if loss.reason in reasons else "?"
    return f"{loss.count} events lost: {reason.replace('_', ' ')} ({loss.total} in all)"


def _clock(realtime_ns: int) -> str:
    moment = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=realtime_ns // 1000)
    return f"{moment.astimezone():%H:%M:%S.%f}"[:-3]


def _append_actor(line: Text, event: event_pb2.Event, user: str) -> None:
    process = event.process
    line.append(f"{process.pid:>7} ", "cyan")
    line.append(f"{printable(user) or process.euid:<10} ")
    exe = process.exe or process.comm
    line.append(f"{printable(exe.decode(errors='backslashreplace'))} ", "bold")


def _deed(event: event_pb2.Event) -> str:
    """What it did: words for the bodies that need some, for the others the fields that say something."""
    name = event.WhichOneof("body")
    match name:
        case "exec" | None:
            return printable(" ".join(arguments(event.process.argv)))
        case "tcp_connect" | "tcp_accept" | "tcp_close" | "udp_flow":
            return _connection(getattr(event, name))
        case "exit":
            how = f"signal {event.exit.signal}" if event.exit.signal else f"status {event.exit.code}"
            return f"{how} after {event.exit.run_time_ns / 1e9:.3f} s"
        case "fork":
            return f"child {event.fork.child_pid}"
    words = [_fact(*fact) for fact in getattr(event, name).ListFields() if fact[0].name not in _UNTOLD]
    if event.HasField("target"):
        target = event.target.exe or event.target.comm
        words.insert(0, f"→ {event.target.pid} {target.decode(errors='backslashreplace')}")
    return printable(" ".join(word for word in words if word))


_UNTOLD: Final = frozenset({"inode", "dev", "path_flags", "message", "message_bytes", "socket_cookie", "id", "flags"})
"""Fields that a line has no room for."""


def _fact(field: Field, value: Any) -> str:
    """A field as it stands in a line: names by themselves, numbers with what they are."""
    shown = _value(field, value, 0)
    if isinstance(shown, list):
        shown = ",".join(shown)
    return str(shown) if field.cpp_type == FieldDescriptor.CPPTYPE_STRING else f"{field.name}={shown}"


def _connection(tcp: event_pb2.Connection) -> str:
    source, destination = (
        f"[{text}]:{port}" if ":" in text else f"{text}:{port}"
        for text, port in (
            (address(tcp.source_ip), tcp.source_port),
            (address(tcp.destination_ip), tcp.destination_port),
        )
    )
    outcome = event_pb2.ConnectOutcome.DESCRIPTOR.values_by_number.get(tcp.outcome)
    words = outcome.name.removeprefix("CONNECT_OUTCOME_").lower() if outcome else "?"
    volume = f", {tcp.sent_bytes} B out, {tcp.received_bytes} B in" if tcp.sent_bytes or tcp.received_bytes else ""
    return f"{source} → {destination} {words}{volume}"
