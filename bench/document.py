"""Puts a section's table into docs/BENCH.md, between the marks of that section; the words around it stay."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from bench.figures import Figures, readable
from bench.host import described

DOCUMENT: Final = Path(__file__).resolve().parents[1] / "docs" / "BENCH.md"


def write(section: str, figures: Figures, *, quick: bool) -> None:
    """Replaces the section's last table. Raises ValueError when the document has no place for it."""
    begin, end = f"<!-- {section}: written by make bench -->\n", f"<!-- {section}: end -->"
    old = DOCUMENT.read_text()
    place = re.compile(f"(?<={re.escape(begin)}).*?(?={re.escape(end)})", re.DOTALL)
    if place.search(old) is None:
        raise ValueError(f"{DOCUMENT} has no {begin.strip()} … {end}")
    text = markdown(figures, quick=quick)
    DOCUMENT.write_text(place.sub(lambda _: text, old))


def markdown(figures: Figures, *, quick: bool) -> str:
    """When and where, the table, the notes as a list."""
    head = f"{datetime.now(UTC):%Y-%m-%d}, {described()}{', --quick' if quick else ''}."
    rows = [figures.columns, ["---"] * len(figures.columns), *([readable(c) for c in row] for row in figures.rows)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    notes = "\n".join(f"- {note}" for note in figures.notes)
    return f"{head}\n\n{table}\n\n{notes}\n"
