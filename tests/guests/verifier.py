"""How many instructions the verifier goes through, by kernel and program: a program that grows comes near its limit.

The limit of the kernel is a million. `verifier.json` is what was accepted; a growth of over 10 % has to be.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

BASELINE: Final = Path(__file__).with_name("verifier.json")
GROWTH: Final = 0.10

Counts = dict[str, int]
"""Instructions by program."""


def accepted() -> dict[str, Counts]:
    """Counts by kernel series and program."""
    found: dict[str, Counts] = json.loads(BASELINE.read_text())
    return found


def accept(counts: Mapping[str, Counts]) -> None:
    """Makes these the accepted ones; series that are not among them keep theirs."""
    BASELINE.write_text(json.dumps(accepted() | dict(counts), indent=2, sort_keys=True) + "\n")


def growth(before: Counts, now: Counts) -> list[str]:
    """What grew too much, a line each. A program that was not there before has nothing to grow from."""
    return [
        f"{program}: the verifier goes through {instructions:,} instructions, {before[program]:,} before"
        for program, instructions in sorted(now.items())
        if program in before and instructions > before[program] * (1 + GROWTH)
    ]
