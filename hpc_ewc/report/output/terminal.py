"""Tables on a terminal: coloured, plain if output is piped, never wider than the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from hpc_ewc.report.tables.document import Document
from hpc_ewc.report.tables.formats import SOFT_HYPHEN, clean
from hpc_ewc.report.tables.table import Cell, Table, explanations


def print_document(document: Document, console: Console) -> None:
    """Print the whole report."""
    console.print(Text(clean(document.title), style="bold"))
    for line in document.leads:
        console.print(Text(clean(line)))
    said: set[str] = set()
    for table in document.tables:
        console.print()
        print_table(table, console, said)
    for title, lines in document.lists:
        console.print()
        console.print(Text(clean(title), style="bold"))
        for line in lines:
            console.print(Text(f"- {clean(line)}"))


def print_table(table: Table, console: Console, said: set[str] | None = None) -> None:
    """Print one table; if it is too wide, in blocks of columns, each with the labels of the rows.

    Args:
        table: the table.
        console: the output, which sets the width.
        said: legends that were printed before and are not repeated.
    """
    console.print(Text(clean(table.title), style="bold"))
    for columns in blocks(table, console.width):
        _print_block(table, columns, console)
    for note in explanations(table, set() if said is None else said):
        console.print(Text(clean(note), style="dim"))


def blocks(table: Table, width: int) -> list[list[int]]:
    """Positions of the columns in each block: all label columns, then as many others as fit."""
    sizes = [_width(table, place) for place in range(len(table.heads))]
    labels = [place for place, head in enumerate(table.heads) if head.is_label]
    room = width - sum(sizes[place] + 1 for place in labels) + 1
    found: list[list[int]] = []
    used = room + 1
    for place in range(len(table.heads)):
        if place in labels:
            continue
        if used + sizes[place] + 1 > room:
            found.append(list(labels))
            used = 0
        found[-1].append(place)
        used += sizes[place] + 1
    return found or [labels]


def _width(table: Table, place: int) -> int:
    """Width of a column: its longest cell, or the longest word of its head."""
    words = _breakable(table.heads[place].text).split()
    cells = [row[place].text for row in (*table.rows, *table.foot)]
    return max([1, *map(len, words), *map(len, cells)])


def _breakable(head: str) -> str:
    return head.replace(SOFT_HYPHEN, "- ")


def _print_block(table: Table, columns: list[int], console: Console) -> None:
    """Print heads by rich, which folds them, and rows as plain lines, since no cell is wider than its column.

    Rich needs seconds for ten thousand cells, joining them takes a tenth of a second. A block wider than the console is
    printed by rich alone, which can shrink it.
    """
    widths = [_width(table, place) for place in columns]
    heads = RichTable(box=None, padding=(0, 1, 0, 0), header_style="", pad_edge=False, collapse_padding=True)
    for place, width in zip(columns, widths, strict=True):
        head = table.heads[place]
        heads.add_column(
            Text(clean(_breakable(head.text)), style="bold cyan"),
            justify="left" if head.is_label else "right",
            width=width,
            vertical="bottom",
            no_wrap=head.is_label,
        )
    rows = [([row[place] for place in columns], "") for row in table.rows]
    rows += [([row[place] for place in columns], "dim") for row in table.foot]
    if sum(widths) + len(widths) - 1 > console.width:
        for cells, style in rows:
            heads.add_row(*_styled(cells, style))
        console.print(heads)
        return
    console.print(heads)
    out = Text()
    for number, (cells, style) in enumerate(rows):
        for place, (text, width) in enumerate(zip(_styled(cells, style), widths, strict=True)):
            space = " " * (width - text.cell_len)
            left = table.heads[columns[place]].is_label
            out.append("\n" if number and not place else " " if place else "")
            out.append(text.plain + space if left else space + text.plain, style=text.style)
    console.print(out, no_wrap=True, overflow="ignore", crop=False)


def _styled(cells: Iterable[Cell], style: str = "") -> list[Text]:
    return [Text(clean(cell.text), style="bold" if cell.bold else style) for cell in cells]
