"""`tocsin status`: how the agent does."""

import argparse
import json
from collections.abc import Callable

from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.table import Table

from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.api.event.v1 import batch_pb2, event_pb2
from tocsin.cli import arguments as shared
from tocsin.cli.agent import connected
from tocsin.records.show import printable

STYLES = {control.HEALTH_OK: "green", control.HEALTH_DEGRADED: "yellow", control.HEALTH_FAILED: "bold red"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    shared.add_agent(parser)
    shared.add_json(parser, "a JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Shows the state; 1 when the agent is degraded or has failed."""
    with connected(shared.socket_path(arguments)) as agent:
        status = agent.status()
    if arguments.json:
        print(json.dumps(as_json(status)))
    else:
        Console(highlight=False).print(as_table(status))
    return 0 if status.health == control.HEALTH_OK else 1


def as_json(status: control.GetStatusResponse) -> dict[str, object]:
    """Protobuf JSON with digests in hexadecimal."""
    shown = MessageToDict(status, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return {
        **shown,
        "release_digest": status.release_digest.hex(),
        "schema_digest": status.schema_digest.hex(),
    }


def as_table(status: control.GetStatusResponse) -> Table:
    """For people."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    style = STYLES.get(status.health, "yellow")
    health = _word(control.Health.Name, status.health, "HEALTH_")
    reason = f": {printable(status.health_reason)}" if status.health_reason else ""
    table.add_row("health", f"[{style}]{health}[/]", _plain(reason.removeprefix(": ")))
    source = _word(batch_pb2.Source.Name, status.source, "SOURCE_")
    table.add_row("agent", status.version, f"up {_duration(status.uptime_s)}, source {source}, {status.kernel_release}")
    for process in status.processes:
        role = _word(control.Role.Name, process.role, "ROLE_")
        where = f"pid {process.pid}" if process.pid else "[yellow]being restarted[/]"
        table.add_row(role, where, f"uid {process.uid}, {process.restarts} restarts")
    inert = f", {status.release_rules_inert} of them inert here" if status.release_rules_inert else ""
    digest = status.release_digest.hex()[:16] or "none"
    table.add_row("release", _plain(printable(status.release_name)), f"{status.release_rules} rules{inert}, {digest}")
    table.add_row("events", str(status.events_received), f"{status.events_evaluated} evaluated")
    table.add_row("detections", str(status.detections), f"{status.subscribers} subscribers")
    if counted := [counter for counter in status.enrichment.counters if counter.count]:
        words = ", ".join(f"{counter.name} {counter.count}" for counter in counted)
        table.add_row("enrichment", "", _plain(printable(words)))
    _add_counters(table, status)
    return table


def _add_counters(table: Table, status: control.GetStatusResponse) -> None:
    types, reasons = event_pb2.EventType.Name, event_pb2.LossReason.Name
    for counter in status.counters:
        name = _word(types, counter.event_type, "EVENT_TYPE_")
        lost = ", ".join(
            f"{loss.count} {_word(reasons, loss.reason, 'LOSS_REASON_')}" for loss in counter.lost if loss.count
        )
        table.add_row(name, str(counter.generated), f"[bold yellow]lost: {lost}[/]" if lost else "")
    for loss in status.losses:
        reason = _word(reasons, loss.reason, "LOSS_REASON_")
        table.add_row("[bold yellow]lost[/]", str(loss.count), reason)


def _word(name_of: Callable[..., str], number: int, prefix: str) -> str:
    """An enum value as a word; the number where this version does not know it."""
    if not number:
        return "not known yet"
    try:
        return name_of(number).removeprefix(prefix).lower().replace("_", " ")
    except ValueError:
        return str(number)


def _plain(text: str) -> str:
    """So that brackets are not taken for markup."""
    return text.replace("[", r"\[")


def _duration(seconds: int) -> str:
    days, rest = divmod(seconds, 86400)
    hours, rest = divmod(rest, 3600)
    return (
        f"{days} d {hours} h" if days else f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
    )
