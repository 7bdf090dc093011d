"""The table of `hpc-ewc status`: a line a stage and run; columns that say nothing are left out."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from hpc_ewc.launch.show.view import COLOURS, Row, busiest, by_stage, columns, duration

BAR = 10
RUN, NOTE = 24, 10
"""Characters that a run's name keeps on a narrow terminal; how far a note below its line is set in."""


def progress_words(row: Row) -> str:
    """`120/180 step`."""
    progress = row.progress
    return f"{progress.done:.0f}/{progress.total:.0f} {progress.unit}" if progress and progress.total else ""


def _bar(row: Row) -> str:
    if row.progress is None or not row.progress.total:
        return ""
    filled = round(BAR * row.progress.share)
    return "█" * filled + "·" * (BAR - filled)


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
    "bar": _bar,
    "progress": progress_words,
    "tokens/s": _field("tokens_per_s", lambda value: f"{value:,.0f}"),
    "loss": _field("loss", lambda value: f"{value:.3f}"),
    "left": _field("eta_s", duration),
    "GPU-h": lambda row: f"{row.gpu_hours:.1f}" if row.gpu_hours >= 0.05 else "",
    "": _note,
}
ALWAYS = ("stage", "run", "state")
RIGHT = ("restarts", "tokens/s", "loss", "left", "GPU-h")
EXPENDABLE = ("bar", "node", "GPU-h", "restarts", "tokens/s", "loss", "left", "progress")
"""On a terminal that is too narrow for all, in this order."""


def said(rows: Sequence[Row]) -> dict[str, int]:
    """The columns in which something stands, each with its width."""
    widths = {name: max((len(cell(row)) for row in rows), default=0) for name, cell in COLUMNS.items()}
    return {name: max(len(name), width) for name, width in widths.items() if width or name in ALWAYS}


def fitting(widths: dict[str, int], width: int) -> dict[str, int]:
    """Of these columns, what a terminal of this width has room for: names of runs are cut, then columns go."""
    kept = {name: size for name, size in widths.items() if name}
    least = min(RUN, kept["run"])

    def needed(run: int) -> int:
        return sum(run if name == "run" else size for name, size in kept.items()) + 2 * (len(kept) - 1)

    for name in EXPENDABLE:
        if needed(least) <= width:
            break
        kept.pop(name, None)
    kept["run"] = max(least, min(kept["run"], width - needed(0)))
    return kept


def render_text(rows: Sequence[Row]) -> str:
    """Aligned lines for where there is no terminal: nothing is cut off or folded."""
    names = [name for name in said(rows) if name != "bar"]
    return columns([names, *([COLUMNS[name](row) for name in names] for row in rows)])


def render_table(rows: Sequence[Row], width: int, limit: int | None = None) -> RenderableType:
    """For a terminal. With a limit, first a line a stage, then the rows that are not simply done or waiting.

    A note stands at the end of its line, or below where it does not fit.
    """
    shown = list(rows) if limit is None else busiest(rows, limit)
    sizes = fitting(said(shown), width)
    lines = [Text("  ".join(_pad(name, "" if name == "bar" else name, size) for name, size in sizes.items()), "bold")]
    for row in shown:
        line = Text("  ").join(_styled(name, COLUMNS[name](row), size, row) for name, size in sizes.items())
        note = _note(row)
        fits = line.cell_len + 2 + len(note) <= width
        if note and fits:
            line.append(f"  {note}")
        lines.append(line)
        if note and not fits:
            lines += [Text(f"{'':<{NOTE}}{part}", "dim") for part in textwrap.wrap(note, max(20, width - NOTE))]
    if limit is not None and len(rows) > limit:
        lines.insert(0, Text(", ".join(f"{stage}: {line}" for stage, line in by_stage(rows))))
    return Group(*lines)


def _pad(name: str, cell: str, size: int) -> str:
    cut = cell if len(cell) <= size else cell[: size - 1] + "…"
    return cut.rjust(size) if name in RIGHT else cut.ljust(size)


def _styled(name: str, cell: str, size: int, row: Row) -> Text:
    return Text(_pad(name, cell, size), COLOURS.get(row.state, "dim") if name == "state" else "")
