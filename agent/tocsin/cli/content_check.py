"""`tocsin content check`: everything that is wrong with detection content."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tocsin.cli import arguments as shared
from tocsin.cli.authoring import author_side


class Finding(Protocol):
    """What tocsin.content.check tells; that module is only imported where it is needed."""

    severity: str
    code: str
    file: str
    line: int
    rule_id: str
    message: str


def configure(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    shared.add_sources(parser)
    parser.add_argument("--strict", action="store_true", help="warnings and notes are findings too")
    shared.add_json(parser, "a JSON list")


def run(arguments: argparse.Namespace) -> int:
    """Prints file:line: reason for each finding; 1 when a release could not be built."""
    paths = shared.sources(arguments)
    findings = author_side().check(paths)
    if arguments.json:
        print(json.dumps([_as_json(finding) for finding in findings]))
    else:
        for finding in findings:
            print(line_of(paths, finding))
    severities = {str(finding.severity) for finding in findings}
    return 1 if severities and (arguments.strict or "error" in severities) else 0


def line_of(paths: Sequence[Path], finding: Finding) -> str:
    """As compilers print it: place, severity, words, code."""
    file = Path(finding.file)
    if len(paths) == 1:
        file = paths[0] / finding.file if paths[0].is_dir() else paths[0]
    place = f"{file}:{finding.line}" if finding.line else f"{file}"
    return f"{place}: {finding.severity}: {finding.message} [{finding.code}]"


def _as_json(finding: Finding) -> dict[str, object]:
    return {name: getattr(finding, name) for name in ("severity", "code", "file", "line", "rule_id", "message")}
