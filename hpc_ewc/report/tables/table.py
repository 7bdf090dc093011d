"""A table before it is rendered: heads, and cells with their text and the number by which they are sorted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hpc_ewc.report.analysis.estimates import Difference, Estimate
from hpc_ewc.report.tables.formats import NOTHING, p_text
from hpc_ewc.report.tables.lines import Spread


@dataclass(frozen=True)
class Cell:
    """The text of one place in a table."""

    text: str
    sort: float | None = None
    brief: str = ""
    """n and p, shown beside the value by media that have the room."""
    detail: str = ""
    """Interval, test and counts, in words."""
    bold: bool = False


@dataclass(frozen=True)
class Head:
    """A column of a table."""

    text: str
    is_label: bool = False
    """Its cells name the rows; it is repeated if a table is broken to fit."""


@dataclass
class Table:
    """A table with its explanation."""

    key: str
    title: str
    heads: list[Head]
    rows: list[list[Cell]]
    notes: list[str] = field(default_factory=list)
    """Facts about this table alone."""
    legend: list[str] = field(default_factory=list)
    """Explanation of a kind of table; media that are read from top to bottom print it once."""
    foot: list[list[Cell]] = field(default_factory=list)
    """Rows that are not runs, such as chance; they stay below when the table is sorted."""


def value_cell(pair: tuple[Estimate | None, Spread | None], text: Callable[..., str], *, bold: bool = False) -> Cell:
    """A value with its standard error; over seeds, with their spread in brackets."""
    estimate, spread = pair
    if estimate is None:
        return Cell(NOTHING)
    shown = text(estimate.value, estimate.stderr)
    if spread is not None:
        shown += f" ({text(spread.deviation)})"
    parts = [f"n={estimate.n}", *([f"{spread.seeds} seeds"] if spread else [])]
    if estimate.low is not None and estimate.high is not None:
        parts.append(f"95 % {text(estimate.low)} to {text(estimate.high)}")
    return Cell(shown, estimate.value, parts[0], "; ".join(parts), bold)


def difference_cell(difference: Difference | None, text: Callable[..., str]) -> Cell:
    """A difference with its standard error, starred if it is significant after Holm's correction."""
    if difference is None:
        return Cell(NOTHING)
    star = "*" if difference.is_significant else ""
    parts = [f"n={difference.n}", difference.method]
    if difference.lost is not None:
        parts.append(f"{difference.lost} lost, {difference.gained} gained")
    if difference.low is not None and difference.high is not None:
        parts.append(f"95 % {text(difference.low, sign=True)} to {text(difference.high, sign=True)}")
    if difference.p is not None:
        parts.append(f"p {p_text(difference.p)}, {p_text(difference.p_holm)} after Holm")
    brief = parts[0] + (f", p={p_text(difference.p_holm)}".replace("=<", "<") if difference.p_holm is not None else "")
    shown = text(difference.value, difference.stderr, sign=True) + star
    return Cell(shown, difference.value, brief, "; ".join(parts))


def optional_cell(value: float | None, text: Callable[[float], str]) -> Cell:
    """A number, or a dash if it is not known."""
    return Cell(NOTHING if value is None else text(value), value)


def explanations(table: Table, said: set[str]) -> list[str]:
    """The notes of a table with its legend, except what is in `said`, to which the new lines are added."""
    new = [line for line in table.legend if line not in said]
    said.update(new)
    return [*table.notes, *new]
