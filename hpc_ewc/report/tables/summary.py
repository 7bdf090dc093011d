"""The first tables: what was kept and learnt at which λ, and what was lost for what was gained."""

from __future__ import annotations

from functools import partial

from hpc_ewc.report.analysis.means import Mean
from hpc_ewc.report.study.columns import SOURCE_LANGUAGE, Column, language_name
from hpc_ewc.report.tables.builder import Builder, ColumnOf, mean_name, plain_name, tasks_of
from hpc_ewc.report.tables.formats import NOTHING, number, percent
from hpc_ewc.report.tables.lines import Line
from hpc_ewc.report.tables.measure import Gain, gain
from hpc_ewc.report.tables.table import Cell, Table, difference_cell
from hpc_ewc.report.tables.texts import BITS, bits_head, shown_texts


def summary(build: Builder) -> Table:
    """Means over tasks, their change, and bits per byte, of each language."""
    shown = [mean for language in build.languages if (mean := build.analysis.mean(language))]
    texts = shown_texts(build)
    table = build.table(
        "summary",
        "Kept and learnt",
        [
            *((_mean_head(mean), build.values(mean)) for mean in shown),
            *((f"Δ {language_name(mean.language)}", build.changes(mean)) for mean in shown),
            *((bits_head(column), build.values(column, BITS)) for column in texts),
        ],
    )
    if shown:
        over = "; ".join(f"{language_name(mean.language)}: {tasks_of(mean)}" for mean in shown)
        table.notes.append(
            f"Accuracy in per cent ± standard error, mean over tasks ({over}). Δ: points against the base."
        )
    if texts:
        names = ", ".join(f"{language_name(column.language)}: {plain_name(column)}" for column in texts)
        table.notes.append(f"Bits per byte, lower is better ({names}).")
    return table


def _mean_head(mean: Mean) -> str:
    """The label of a mean; of a single task, its name."""
    return mean.label if mean.single is None else f"{plain_name(mean.single)} {language_name(mean.language)}"


def front(build: Builder) -> set[Line]:
    """The lines that no other beats in one language without losing in the other: mean over tasks against the gain.

    By the values as measured; whether two of them differ significantly is in the difference tables.
    """
    old, new = build.analysis.mean(SOURCE_LANGUAGE), gain(build)
    if old is None or new is None:
        return set()
    points: dict[Line, tuple[float, float]] = {}
    for line in build.lines.lines:
        kept, learnt = build.lines.value(line, old)[0], new.value(build, line)
        if kept is not None and learnt is not None:
            points[line] = (kept.value, new.sign * learnt.value)
    return {
        line
        for line, (kept, learnt) in points.items()
        if not any(a >= kept and b >= learnt and (a, b) != (kept, learnt) for a, b in points.values())
    }


def tradeoff(build: Builder) -> Table | None:
    """Forgetting, the worst task, plasticity and bits per byte, with columns only for what was measured."""
    old, new = build.analysis.mean(SOURCE_LANGUAGE), build.analysis.mean(build.study.target)
    rows = [line for line in build.lines.lines if not line.first.is_base]
    if not rows or (old is None and new is None):
        return None
    best, texts, measured = front(build), shown_texts(build), gain(build)
    columns: list[ColumnOf] = []
    if old is not None:
        columns.append(("forgetting", build.changes(old)))
        if old.single is None:
            columns.append(("worst task", lambda line: _worst(build, line)[0]))
            columns.append(("by", lambda line: _worst(build, line)[1]))
    if new is not None:
        columns.append(("plasticity", build.changes(new)))
    columns += [(f"{bits_head(column)} %", partial(_relative, build, column)) for column in texts]
    if best:
        columns.append(("front", lambda line: Cell("●", 1.0) if line in best else Cell("", 0.0)))
    table = build.table("tradeoff", "Forgetting and plasticity", columns, rows)
    table.notes.append(" ".join(_notes(old, new, texts, measured if best else None)))
    return table


def _notes(old: Mean | None, new: Mean | None, texts: list[Column], measured: Gain | None) -> list[str]:
    """A sentence on each column that the table has."""
    found = []
    if old is not None:
        worst = "; worst task: the one that fell most (not corrected for having been picked)"
        found.append(
            f"Forgetting: {language_name(old.language)} accuracy, {mean_name(old)}, against the base, in points"
            f"{'' if old.single else worst}."
        )
    if new is not None:
        alike = old is not None and (old.single is None) == (new.single is None)
        found.append(f"Plasticity: {language_name(new.language)} accuracy, {'likewise' if alike else mean_name(new)}.")
    if texts:
        found.append("Bits per byte relative to the base, in per cent; below 0 is better.")
    if measured is not None:
        by = "" if isinstance(measured.what, Mean) else f"; {language_name(measured.what.language)} by {measured.unit}"
        found.append(f"●: no other row, the base included, is as good in both languages and better in one{by}.")
    return found


def _worst(build: Builder, line: Line) -> tuple[Cell, Cell]:
    """The task of the old language that fell most, and by how much."""
    columns = build.study.means(SOURCE_LANGUAGE)
    each = [(difference, column) for column in columns if (difference := build.lines.difference(line, column))]
    if not each:
        return Cell(NOTHING), Cell(NOTHING)
    difference, column = min(each, key=lambda item: item[0].value)
    if difference.value >= 0:
        return Cell("none fell"), Cell(NOTHING)
    return Cell(plain_name(column)), difference_cell(difference, percent)


def _relative(build: Builder, column: Column, line: Line) -> Cell:
    """Change of bits per byte, in per cent of the base's."""
    difference = build.lines.difference(line, column, BITS)
    if difference is None or difference.relative is None:
        return Cell(NOTHING)
    value, stderr = 100 * difference.relative, 100 * difference.relative_stderr
    return Cell(number(value, stderr, sign=True), value, brief=f"n={difference.n}")
