"""Builds tables from columns: each has a head and a function from a line to its cell."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence

from hpc_ewc.report.analysis.means import Mean
from hpc_ewc.report.study.columns import Column, language_name
from hpc_ewc.report.tables.contamination import MARK, contaminated
from hpc_ewc.report.tables.formats import SOFT_HYPHEN, TASK_HEADS, bits, number, percent
from hpc_ewc.report.tables.lines import Line, Lines
from hpc_ewc.report.tables.table import Cell, Head, Table, difference_cell, value_cell

ColumnOf = tuple[str, Callable[[Line], Cell]]
"""Head of a column, and its cell for a line."""


class Builder:
    """Builds the tables of a report from its lines."""

    def __init__(self, lines: Lines, gain: str = "auto") -> None:
        self.lines = lines
        self.gain = gain
        """Requested measure of the gain in the new language: auto, accuracy or text."""
        self.analysis = lines.analysis
        self.study = lines.study
        self.labels = lines.labels
        self.languages = self.study.languages()
        self.contaminated = contaminated(self.study)

    def table(self, key: str, title: str, columns: Sequence[ColumnOf], lines: Iterable[Line] | None = None) -> Table:
        """A table with the label columns and these, a row for each line, of all lines unless some are given."""
        heads = [Head(name, is_label=True) for name, _ in self.labels] + [Head(head) for head, _ in columns]
        rows = [
            [*self._label_cells(line), *(cell(line) for _, cell in columns)]
            for line in (self.lines.lines if lines is None else lines)
        ]
        return Table(key, title, heads, rows)

    def foot(self, name: str, cells: Sequence[Cell]) -> list[Cell]:
        """A row below the lines, such as chance."""
        return [Cell(name), *[Cell("")] * (len(self.labels) - 1), *cells]

    def values(
        self, what: Column | Mean, metric: str | None = None, *, bold: Container[Line] = ()
    ) -> Callable[[Line], Cell]:
        """The cells of a column or mean, in its primary metric or another."""
        text = text_of(what, metric)
        return lambda line: value_cell(self.lines.value(line, what, metric), text, bold=line in bold)

    def changes(self, what: Column | Mean, metric: str | None = None) -> Callable[[Line], Cell]:
        """The cells of its differences to the base."""
        text = text_of(what, metric)
        return lambda line: difference_cell(self.lines.difference(line, what, metric), text)

    def _label_cells(self, line: Line) -> list[Cell]:
        cells = [Cell(texts[line]) for _, texts in self.labels]
        cells[0] = Cell(cells[0].text, -1.0 if line.first.is_base else line.first.strength)
        return cells


def text_of(what: Column | Mean, metric: str | None = None) -> Callable[..., str]:
    """The function that formats values of a column or a mean."""
    if isinstance(what, Mean) or metric in ("repetition", "empty"):
        return percent
    if metric is None and what.kind == "share":
        return percent
    return bits if (metric or what.metric) == "bits_per_byte" else number


# ---------------------------------------------------------------------------------------------- names


def head(build: Builder, column: Column) -> str:
    """The head of a column: its name, with † if the Fisher has seen its documents."""
    return column_name(column) + (f" {MARK}" if column in build.contaminated else "")


def column_name(column: Column) -> str:
    """The task in its own spelling, with what distinguishes this column from others; may hold soft hyphens."""
    return column.label.replace(column.task, TASK_HEADS.get(column.task, column.task), 1)


def plain_name(column: Column) -> str:
    """`column_name` for a sentence."""
    return column_name(column).replace(SOFT_HYPHEN, "")


def short_name(mean: Mean) -> str:
    """The label of a mean in a table of one language."""
    return mean.label.replace(f"mean {language_name(mean.language)}", "mean")


def tasks_of(mean: Mean) -> str:
    """7 tasks; or, of a single one, exams_lt alone."""
    return f"{len(mean.columns)} tasks" if mean.single is None else f"{plain_name(mean.single)} alone"


def mean_name(mean: Mean | None) -> str:
    """Mean over tasks; or, of a single one, exams_lt alone."""
    return "mean over tasks" if mean is None or mean.single is None else tasks_of(mean)
