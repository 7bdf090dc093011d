"""The report as one HTML page: opens from a file, needs no network, sorts, prints, and can be used without a mouse."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

from hpc_ewc.report.tables.document import Document, Figure, interleaved
from hpc_ewc.report.tables.formats import SOFT_HYPHEN, clean
from hpc_ewc.report.tables.table import Cell, Table

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
"""The page may load nothing from anywhere."""


def render_page(document: Document, figures: Sequence[Figure], manifest: Mapping[str, Any]) -> str:
    """The HTML of the whole page."""
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{text(document.title)}</title>",
        f"<style>\n{_file('page.css')}</style>",
        "</head>",
        "<body>",
        '<a class="skip" href="#tables">Skip to the tables</a>',
        "<header>",
        f"<h1>{text(document.title)}</h1>",
        *(f'<p class="notice">{text(line)}</p>' for line in document.leads),
        "</header>",
        _contents(document),
        '<p class="options"><label><input type="checkbox" id="beside" checked> n and p beside each value</label></p>',
        '<main id="tables">',
        *(render_table(p) if isinstance(p, Table) else render_figure(p) for p in interleaved(document.tables, figures)),
        *_lists(document.lists),
        "</main>",
        _footer(manifest),
        f"<script>\n{_file('page.js')}</script>",
        "</body>",
        "</html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def render_table(table: Table) -> str:
    """A section with one table, whose heads are buttons that sort it."""
    key = anchor(table.key)
    heads = "".join(_head(head.text, is_label=head.is_label) for head in table.heads)
    body = "\n".join(_row(table, row) for row in table.rows)
    foot = "\n".join(_row(table, row) for row in table.foot)
    notes = "".join(f"<p>{text(note)}</p>" for note in (*table.notes, *table.legend))
    return (
        f'<section aria-labelledby="{key}">\n<h2 id="{key}">{text(table.title)}</h2>\n'
        f'<div class="scroll" tabindex="0" role="region" aria-labelledby="{key}">\n<table>\n'
        f"<caption>{text(table.title)}</caption>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>\n"
        + (f"<tfoot>\n{foot}\n</tfoot>\n" if foot else "")
        + f'</table>\n</div>\n<div class="notes">{notes}</div>\n</section>'
    )


def _head(name: str, *, is_label: bool) -> str:
    kind = ' class="label"' if is_label else ""
    return f'<th scope="col" aria-sort="none"{kind}><button type="button">{text(name)}</button></th>'


def _row(table: Table, row: Sequence[Cell]) -> str:
    cells = [_cell(cell, is_label=head.is_label) for head, cell in zip(table.heads, row, strict=True)]
    return f"<tr>{''.join(cells)}</tr>"


def _cell(cell: Cell, *, is_label: bool) -> str:
    sort = "" if cell.sort is None else f' data-sort="{cell.sort:.10g}"'
    shown = f"<strong>{text(cell.text)}</strong>" if cell.bold else text(cell.text)
    if is_label:
        return f'<th scope="row"{sort}>{shown}</th>'
    kind = ' class="text"' if len(cell.text) > 40 else ""
    title = f' title="{text(cell.detail)}"' if cell.detail else ""
    brief = f"<small>{text(cell.brief)}</small>" if cell.brief else ""
    return f"<td{kind}{sort}{title}>{shown}{brief}</td>"


def _contents(document: Document) -> str:
    items = [(anchor(table.key), table.title) for table in document.tables]
    items += [(anchor(title), title) for title, _ in document.lists]
    links = "".join(f'<li><a href="#{key}">{text(title)}</a></li>' for key, title in items)
    return f'<nav aria-label="Contents"><ol>{links}</ol></nav>' if links else ""


def render_figure(figure: Figure) -> str:
    """The figure embedded as an image, in which no script can run."""
    data = base64.b64encode(figure.files["svg"]).decode()
    alt = f"{figure.caption} The numbers are in the table above."
    image = f'<img alt="{text(alt)}" src="data:image/svg+xml;base64,{data}">'
    return f'<figure id="figure-{figure.name}">{image}<figcaption>{text(figure.caption)}</figcaption></figure>'


def _lists(lists: Sequence[tuple[str, list[str]]]) -> list[str]:
    parts = []
    for title, lines in lists:
        items = "".join(f"<li>{text(line)}</li>" for line in lines)
        parts.append(f'<section aria-labelledby="{anchor(title)}"><h2 id="{anchor(title)}">{text(title)}</h2>')
        parts.append(f"<ul>{items}</ul></section>")
    return parts


def _footer(manifest: Mapping[str, Any]) -> str:
    facts = json.dumps({k: v for k, v in manifest.items() if k != "files"}, ensure_ascii=False, indent=1)
    return f"<footer><h2>Manifest</h2>\n<pre>{text(facts)}</pre></footer>"


def text(value: str) -> str:
    """A string escaped for the text of an element or for a quoted attribute."""
    lines = "\n".join(clean(line) for line in value.split("\n"))
    return escape(lines.replace(SOFT_HYPHEN, ""), quote=True)


def anchor(name: str) -> str:
    """A name that is valid in `id` and after `#`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "part"


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")
