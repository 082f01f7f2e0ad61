"""`tocsin doctor`: what this host offers, what it lacks, and what to do."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tocsin.cli import arguments as shared
from tocsin.cli.examination import Finding, Verdict, examine
from tocsin.cli.main import Exit

STYLES = {Verdict.OK: "green", Verdict.REDUCED: "yellow", Verdict.MISSING: "bold red"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings (TOML); default: built in")
    shared.add_json(parser, "a JSON list")


def run(arguments: argparse.Namespace) -> int:
    """Examines the host; 4 when something is missing."""
    findings = examine(shared.read_config(arguments))
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        console = Console(highlight=False, soft_wrap=True)
        for finding in findings:
            console.print(lines_of(finding))
    return Exit.PRIVILEGE if any(f.verdict is Verdict.MISSING for f in findings) else Exit.OK


def lines_of(finding: Finding) -> Text:
    """For people: what was found; where it is not in order, what needs it and what to do."""
    text = Text(f"{finding.verdict.value:<9}", STYLES[finding.verdict])
    text.append(f"{finding.name:<18}{finding.found}", "default")
    if finding.verdict is not Verdict.OK:
        text.append(f"\n{'':27}needed for {finding.needed_for}", "dim")
        if finding.advice:
            text.append(f"; do: {finding.advice}", "dim")
    return text
