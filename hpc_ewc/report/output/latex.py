"""The tables as LaTeX (booktabs): a fragment to include, and a small document around it that compiles."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hpc_ewc.report.tables.document import Document, Figure
from hpc_ewc.report.tables.formats import SOFT_HYPHEN, clean
from hpc_ewc.report.tables.table import Cell, Table

ESCAPED = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    SOFT_HYPHEN: r"\-",
    "±": r"$\pm$",
    "−": r"$-$",
    "×": r"$\times$",
    "λ": r"$\lambda$",
    "Δ": r"$\Delta$",
    "θ": r"$\theta$",
    "Σ": r"$\Sigma$",
    "‖": r"$\|$",
    "√": r"$\surd$",
    "²": r"$^2$",
    "½": r"$\frac12$",
    "·": r"$\cdot$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "†": r"\dag{}",
    "●": r"$\bullet$",
    "–": "--",
    "…": r"\dots{}",
    "’": "'",
    "→": r"$\to$",
    "*": r"$^{*}$",
}
LETTERS = re.compile(r"[\x20-\x7e\xa0-\u017f]")
"""Characters that pdflatex sets with T1 fonts: Latin letters, Lithuanian among them."""
WIDE = 9
"""Tables with at least this many columns are scaled to the width of the line."""


def escape(text: str) -> str:
    """Text that LaTeX sets literally; a character without a letter becomes its code point."""
    return "".join(map(_letter, clean(text.replace("\n", " "))))


def _letter(letter: str) -> str:
    if letter in ESCAPED:
        return ESCAPED[letter]
    return letter if LETTERS.match(letter) else f"[U+{ord(letter):04X}]"


def render_tables(document: Document) -> str:
    """Every table, each in a `table` float with caption, label and notes."""
    head = "% Needs \\usepackage{booktabs,graphicx}, \\usepackage[T1]{fontenc} and \\usepackage[utf8]{inputenc}.\n"
    return head + "\n".join(render_table(table) for table in document.tables)


def render_table(table: Table) -> str:
    """One table as a float."""
    columns = "".join(
        "l" if head.is_label else "p{0.5\\linewidth}" if _is_long(table, i) else "r"
        for i, head in enumerate(table.heads)
    )
    lines = [
        r"\begin{table}[htbp]",
        r"\centering\small",
        rf"\caption{{{escape(table.title)}}}",
        rf"\label{{tab:{re.sub('[^a-z0-9]+', '-', table.key.lower())}}}",
    ]
    wide = len(table.heads) >= WIDE
    lines += [r"\resizebox{\linewidth}{!}{%"] if wide else []
    lines += [rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}", r"\toprule", _row([_stacked(h.text) for h in table.heads])]
    lines.append(r"\midrule")
    lines += [_row([_cell(cell) for cell in row]) for row in table.rows]
    if table.foot:
        lines.append(r"\midrule")
        lines += [_row([_cell(cell) for cell in row]) for row in table.foot]
    lines += [r"\bottomrule", r"\end{tabular}" + ("}" if wide else "")]
    if table.notes or table.legend:
        notes = " ".join(escape(note) for note in (*table.notes, *table.legend))
        lines.append(rf"\par\smallskip\begin{{minipage}}{{\linewidth}}\footnotesize {notes}\end{{minipage}}")
    return "\n".join([*lines, r"\end{table}", ""])


def render_latex_document(document: Document, figures: Sequence[Figure]) -> str:
    """A document that includes the tables and shows the figures; `pdflatex report.tex` in the folder of the report."""
    lines = [
        r"\documentclass[10pt,a4paper]{article}",
        r"\usepackage[T1]{fontenc}",
        r"\usepackage[utf8]{inputenc}",
        r"\usepackage{textcomp,lmodern,booktabs,graphicx}",
        r"\usepackage[margin=2cm]{geometry}",
        rf"\title{{{escape(document.title)}}}\date{{}}",
        r"\begin{document}",
        r"\maketitle",
        *(escape(line) + r"\par" for line in document.leads),
        r"\input{tables.tex}",
    ]
    for figure in figures:
        lines += [
            r"\begin{figure}[htbp]",
            r"\centering",
            rf"\includegraphics[width=\linewidth]{{figures/{figure.name}.pdf}}",
            rf"\caption{{{escape(figure.caption)}}}",
            r"\end{figure}",
        ]
    for title, entries in document.lists:
        lines += [rf"\section*{{{escape(title)}}}", r"\begin{itemize}"]
        lines += [rf"\item {escape(entry)}" for entry in entries] + [r"\end{itemize}"]
    return "\n".join([*lines, r"\end{document}", ""])


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _cell(cell: Cell) -> str:
    return rf"\textbf{{{escape(cell.text)}}}" if cell.bold else escape(cell.text)


def _stacked(head: str) -> str:
    """A head with one word per line."""
    words = head.replace(SOFT_HYPHEN, "").split(" ")
    if len(words) == 1:
        return escape(words[0])
    return r"\begin{tabular}[b]{@{}r@{}}" + r"\\".join(escape(word) for word in words) + r"\end{tabular}"


def _is_long(table: Table, place: int) -> bool:
    return any(len(row[place].text) > 40 for row in table.rows)
