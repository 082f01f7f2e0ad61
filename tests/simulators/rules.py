"""Sigma rules as an author writes them."""

from pathlib import Path

RULE_ID = "11111111-1111-4111-8111-111111111111"
NETCAT = "Image|endswith: /nc"
RULE = """\
title: {title}
id: {id}
status: test
description: A test.
author: Test
date: 2026-01-01
logsource: {{category: process_creation, product: linux}}
detection:
  selection: {{{selection}}}
  condition: {condition}
level: high
"""


def rule(
    selection: str = NETCAT, *, rule_id: str = RULE_ID, title: str = "Netcat", condition: str = "selection"
) -> str:
    """A rule for process creations."""
    return RULE.format(title=title, id=rule_id, selection=selection, condition=condition)


def write_rule(directory: Path, text: str, name: str = "rule.yml") -> Path:
    """A directory with one more rule; the directory."""
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(text)
    return directory
