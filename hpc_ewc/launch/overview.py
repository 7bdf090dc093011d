"""The table of `hpc-ewc status`: a line a stage and run; columns that say nothing are left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hpc_ewc.launch.view import COLOURS, Row, busiest, by_stage, columns, duration

BAR = 10


def progress_words(row: Row) -> str:
    """`120/180 step`."""
    progress = row.progress
    return f"{progress.done:.0f}/{progress.total:.0f} {progress.unit}" if progress and progress.total else ""


def _bar(row: Row) -> str:
    """The same with a bar before it, for a terminal."""
    if row.progress is None or not row.progress.total:
        return ""
    filled = round(BAR * row.progress.share)
    return "█" * filled + "·" * (BAR - filled) + " " + progress_words(row)


def _field(name: str, form: Callable[[float], str]) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        value = (row.progress.fields or {}).get(name) if row.progress and row.state == "running" else None
        return form(float(value)) if isinstance(value, (int, float)) else ""

    return cell


def _note(row: Row) -> str:
    if row.note:
        return " ".join(row.note.split("\n"))
    cell = (row.progress.fields or {}).get("cell") if row.progress and row.state == "running" else None
    return str(cell or "")


COLUMNS: dict[str, Callable[[Row], str]] = {
    "stage": lambda row: row.stage,
    "run": lambda row: row.run,
    "state": lambda row: row.state,
    "restarts": lambda row: str(row.restarts) if row.restarts else "",
    "node": lambda row: row.nodes if row.state == "running" else "",
    "progress": progress_words,
    "tokens/s": _field("tokens_per_s", lambda value: f"{value:,.0f}"),
    "loss": _field("loss", lambda value: f"{value:.3f}"),
    "left": _field("eta_s", duration),
    "GPU-h": lambda row: f"{row.gpu_hours:.1f}" if row.gpu_hours >= 0.05 else "",
    "": _note,
}
ALWAYS = ("stage", "run", "state")
RIGHT = ("restarts", "tokens/s", "loss", "left", "GPU-h")


def _said(rows: Sequence[Row]) -> list[str]:
    """The columns in which something stands."""
    return [name for name, cell in COLUMNS.items() if name in ALWAYS or any(map(cell, rows))]


def render_text(rows: Sequence[Row]) -> str:
    """Aligned lines for where there is no terminal: nothing is cut off or folded."""
    names = _said(rows)
    return columns([names, *([COLUMNS[name](row) for name in names] for row in rows)])


def render_table(rows: Sequence[Row], limit: int | None = None) -> RenderableType:
    """For a terminal. With a limit, first a line a stage, then the rows that are not simply done or waiting."""
    shown = list(rows) if limit is None else busiest(rows, limit)
    table = Table(box=None, pad_edge=False, header_style="bold")
    names = _said(shown)
    for name in names:
        right = "right" if name in RIGHT else "left"
        table.add_column(name, no_wrap=name != "", overflow="ellipsis" if name else "fold", justify=right)  # type: ignore[arg-type]
    for row in shown:
        cells = [_bar(row) if name == "progress" else COLUMNS[name](row) for name in names]
        styled: list[RenderableType] = [
            Text(cell, style=COLOURS.get(row.state, "dim")) if name == "state" else Text(cell)
            for name, cell in zip(names, cells, strict=True)
        ]
        table.add_row(*styled)
    if limit is None or len(rows) <= limit:
        return table
    return Group(Text(", ".join(f"{stage}: {line}" for stage, line in by_stage(rows))), table)
