"""The report as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from hpc_ewc.report.tables.document import Document, Figure, interleaved
from hpc_ewc.report.tables.formats import SOFT_HYPHEN, clean
from hpc_ewc.report.tables.table import Cell, Table, explanations

SPECIAL = str.maketrans({c: f"\\{c}" for c in "\\`*_[]|#"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;", "\n": " "})


def escape(text: str) -> str:
    """Text that Markdown shows literally."""
    return clean(text.replace("\n", " ")).translate(SPECIAL)


def render_markdown(document: Document, figures: Sequence[Figure] = ()) -> str:
    """The whole report.

    Args:
        document: the report.
        figures: figures that are saved in figures/ beside it.
    """
    parts = [f"# {escape(document.title)}", *(escape(line) for line in document.leads)]
    said: set[str] = set()
    for part in interleaved(document.tables, figures):
        if isinstance(part, Table):
            parts += [f"## {escape(part.title)}", render_table(part), *map(escape, explanations(part, said))]
        else:
            caption = escape(part.caption)
            parts += [f"![{caption}](figures/{part.name}.svg)", caption]
    for title, lines in document.lists:
        parts += [f"## {escape(title)}", "\n".join(f"- {escape(line)}" for line in lines)]
    return "\n\n".join(parts) + "\n"


def render_table(table: Table) -> str:
    """A pipe table with numbers aligned right."""
    heads = [escape(head.text.replace(SOFT_HYPHEN, "")) for head in table.heads]
    rules = [":--" if head.is_label else "--:" for head in table.heads]
    rows = [[_cell(cell) for cell in row] for row in (*table.rows, *table.foot)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (heads, rules, *rows))


def _cell(cell: Cell) -> str:
    return f"**{escape(cell.text)}**" if cell.bold else escape(cell.text)
