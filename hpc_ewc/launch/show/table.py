"""The status table: one line per row, for a terminal of any width or as plain text; empty columns are left out."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence

from rich.text import Text

from hpc_ewc.launch.show.rows import Progress, Row, count_by_stage, duration, most_urgent

BAR_WIDTH = 10
MIN_RUN_WIDTH = 24
"""Run names are cut to this before columns are dropped."""
NOTE_INDENT = 10
COLOURS = {"done": "green", "running": "cyan", "failed": "red", "stopped": "yellow", "blocked": "red"}
REQUIRED = ("stage", "run", "state")
RIGHT_ALIGNED = ("restarts", "tokens/s", "loss", "left", "GPU-h")
DROP_ORDER = ("bar", "node", "GPU-h", "restarts", "tokens/s", "loss", "left", "progress")
"""Columns that a narrow terminal loses, in this order."""


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Aligned lines of text; rich's own table takes a second for a thousand lines."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def render_table(rows: Sequence[Row], width: int | None = None, limit: int | None = None) -> Text:
    """The table as rich text.

    Args:
        rows: of the table.
        width: of the terminal; None: plain text, in which nothing is cut or wrapped.
        limit: most rows to show; above it, counts by stage come first, then the most urgent rows.
    """
    shown = list(rows) if limit is None else most_urgent(rows, limit)
    cells = [_cells(row) for row in shown]
    widths = _column_widths(cells, width)
    table = Text()
    if len(shown) < len(rows):
        table.append(f"{count_by_stage(rows)}\n")
    table.append(_line({name: name for name in widths} | {"bar": ""}, widths), "bold")
    for row, cell in zip(shown, cells, strict=True):
        line, note = _line(cell, widths), cell["note"]
        start = len(table) + 1 + widths["stage"] + 2 + widths["run"] + 2
        table.append(f"\n{line}").stylize(COLOURS.get(row.state, "dim"), start, start + len(row.state))
        if note and (width is None or len(line) + 2 + len(note) <= width):
            table.append(f"  {note}")
        elif note and width is not None:
            for part in textwrap.wrap(note, max(20, width - NOTE_INDENT)):
                table.append(f"\n{'':<{NOTE_INDENT}}{part}", "dim")
    return table


def _cells(row: Row) -> dict[str, str]:
    """The text of each column; "" if it has none."""
    running = row.state == "running"
    progress = row.progress or Progress(0, 0)
    fields = progress.fields if running else {}

    def number(name: str, render: Callable[[float], str]) -> str:
        value = fields.get(name)
        return render(float(value)) if isinstance(value, (int, float)) else ""

    filled = round(BAR_WIDTH * progress.share)
    return {
        "stage": row.stage,
        "run": row.run,
        "state": row.state,
        "restarts": str(row.restarts or ""),
        "node": row.nodes if running else "",
        "bar": "█" * filled + "·" * (BAR_WIDTH - filled) if progress.total else "",
        "progress": progress.amount,
        "tokens/s": number("tokens_per_s", "{:,.0f}".format),
        "loss": number("loss", "{:.3f}".format),
        "left": number("eta_s", duration),
        "GPU-h": f"{row.gpu_hours:.1f}" if row.gpu_hours >= 0.05 else "",
        "note": " ".join((row.note or str(fields.get("cell") or "")).split("\n")),
    }


def _column_widths(cells: Sequence[Mapping[str, str]], width: int | None) -> dict[str, int]:
    """Widths of the columns that fit: run names are cut first, then columns are dropped."""
    names = [name for name in cells[0] if name != "note"] if cells else REQUIRED
    sizes = {name: max((len(cell[name]) for cell in cells), default=0) for name in names}
    widths = {name: max(len(name), size) for name, size in sizes.items() if size or name in REQUIRED}
    if width is None:
        widths.pop("bar", None)
        return widths
    least = min(MIN_RUN_WIDTH, widths["run"])

    def left_for_run() -> int:
        return width - sum(size + 2 for name, size in widths.items() if name != "run")

    for name in DROP_ORDER:
        if left_for_run() >= least:
            break
        widths.pop(name, None)
    widths["run"] = max(least, min(widths["run"], left_for_run()))
    return widths


def _line(cells: Mapping[str, str], widths: Mapping[str, int]) -> str:
    def fit(name: str, size: int) -> str:
        text = cells[name] if len(cells[name]) <= size else cells[name][: size - 1] + "…"
        return text.rjust(size) if name in RIGHT_ALIGNED else text.ljust(size)

    return "  ".join(fit(name, size) for name, size in widths.items()).rstrip()
