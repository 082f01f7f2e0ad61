"""What a section measured, as a table for people and as JSON for programs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Figures:
    """One table."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float | int]] = ()
    notes: Sequence[str] = field(default_factory=tuple)
    """How it was measured, and what a reader must not conclude."""


class LeftOutError(Exception):
    """A section cannot be measured here; its words say why and what to do."""


def show(figures: Figures, console: Console) -> None:
    """A plain table, the notes below it."""
    table = Table(title=figures.title, title_justify="left", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for number, column in enumerate(figures.columns):
        table.add_column(column, justify="right" if number else "left")
    for row in figures.rows:
        table.add_row(*(readable(cell) for cell in row))
    console.print(table)
    for note in figures.notes:
        console.print(f"  {note}", style="dim", markup=False)
    console.print()


def readable(cell: str | float) -> str:
    """Three digits that count; thousands apart."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int) or abs(cell) >= 1000:
        return f"{cell:,.0f}".replace(",", " ")
    return f"{cell:.3g}" if abs(cell) < 100 else f"{cell:.0f}"


def as_json(section: str, figures: Figures) -> dict[str, object]:
    """For programs."""
    rows = [dict(zip(figures.columns, row, strict=True)) for row in figures.rows]
    return {"section": section, **asdict(figures), "rows": rows}
