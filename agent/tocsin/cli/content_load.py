"""`tocsin content load`: compiled content into the running agent."""

import argparse
import json
import sys

from tocsin.api.content.v1 import content_service_pb2 as content
from tocsin.cli import arguments as shared
from tocsin.cli.agent import connected
from tocsin.cli.authoring import release_of
from tocsin.records.show import printable


def configure(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    shared.add_sources(parser, "directory with Sigma rules, or a compiled release")
    parser.add_argument("--name", default="", help="name and version of the release; default: that of DIR")
    shared.add_agent(parser)
    shared.add_json(parser, "a JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Loads; 1 when the agent refused, which then goes on with what it had."""
    release = release_of(shared.sources(arguments), arguments.name)
    with connected(shared.socket_path(arguments)) as agent:
        answer = agent.load(release)
    if arguments.json:
        print(json.dumps(as_json(answer)))
    elif answer.accepted:
        print(f"active: {answer.digest.hex()}, {answer.active_rules} rules")
    else:
        print(f"tocsin: {words(answer)}", file=sys.stderr)
    return 0 if answer.accepted else 1


def words(answer: content.LoadReleaseResponse) -> str:
    """Why the agent refused, and what is active now."""
    refusal = answer.refusal
    rule = f", rule {printable(refusal.rule_id)}" if refusal.rule_id else ""
    active = answer.active_digest.hex()[:16] or "none"
    return (
        f"refused at {stage(refusal)}: {printable(refusal.code)}{rule}: {printable(refusal.message)}; active: {active}"
    )


def stage(refusal: content.Refusal) -> str:
    """The stage as a word."""
    value = content.Stage.DESCRIPTOR.values_by_number.get(refusal.stage)
    return value.name.removeprefix("STAGE_").lower() if value else str(refusal.stage)


def as_json(answer: content.LoadReleaseResponse) -> dict[str, object]:
    """For programs."""
    refusal = answer.refusal
    reason = {"stage": stage(refusal), "code": refusal.code, "rule_id": refusal.rule_id, "message": refusal.message}
    return {
        "accepted": answer.accepted,
        "digest": answer.digest.hex(),
        "active_digest": answer.active_digest.hex(),
        "active_rules": answer.active_rules,
        "refusal": None if answer.accepted else reason,
    }
