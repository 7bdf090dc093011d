"""Forgetting against plasticity: what each run lost of the old language and gained of the new one."""

from __future__ import annotations

from hpc_ewc.report.formats import NOTHING, number, percent
from hpc_ewc.report.lines import Line
from hpc_ewc.report.study import SOURCE_LANGUAGE, Column, language_name
from hpc_ewc.report.tables import Builder, Cell, Head, Table, bits_column, difference_cell, plain_name


def front(build: Builder) -> set[Line]:
    """The lines that no other beats in one language without losing in the other, by means over tasks.

    By the means as they were measured: whether two of them can be told apart is in the difference tables.
    """
    old, new = build.analysis.mean(SOURCE_LANGUAGE), build.analysis.mean(build.study.target)
    if old is None or new is None:
        return set()
    points: dict[Line, tuple[float, float]] = {}
    for line in build.lines.lines:
        kept, learnt = build.lines.mean_value(line, old)[0], build.lines.mean_value(line, new)[0]
        if kept is not None and learnt is not None:
            points[line] = (kept.value, learnt.value)
    return {
        line
        for line, (kept, learnt) in points.items()
        if not any(a >= kept and b >= learnt and (a, b) != (kept, learnt) for a, b in points.values())
    }


def tradeoff(build: Builder) -> Table | None:
    """Forgetting, the worst task, plasticity, and what became of the bits per byte."""
    lines, target = build.lines, build.study.target
    old, new = build.analysis.mean(SOURCE_LANGUAGE), build.analysis.mean(target)
    rows = [line for line in lines.lines if not line.first.is_base]
    if not rows or (old is None and new is None):
        return None
    best = front(build)
    table = build.table("tradeoff", "Forgetting and plasticity")
    table.heads += [Head("forgetting"), Head("worst task"), Head("by"), Head("plasticity")]
    texts = [c for language in (SOURCE_LANGUAGE, target) if (c := bits_column(build, language)) is not None]
    table.heads += [Head(f"bits/byte {language_name(column.language)} %") for column in texts]
    table.heads.append(Head("front"))
    for line in rows:
        row = build.labelled(line)
        row.append(difference_cell(None if old is None else lines.mean_difference(line, old), percent))
        row += _worst(build, line)
        row.append(difference_cell(None if new is None else lines.mean_difference(line, new), percent))
        row += [_relative(build, line, column) for column in texts]
        row.append(Cell("●" if line in best else "", 1.0 if line in best else 0.0))
        table.rows.append(row)
    source, learnt = language_name(SOURCE_LANGUAGE), language_name(target)
    table.notes.append(
        f"Forgetting: {source} accuracy, mean over tasks, against the base, in points; worst task: where it fell most "
        f"(not corrected for having been picked). Plasticity: {learnt} accuracy, likewise. Bits per byte relative to "
        "the base, in per cent; below 0 is better. ●: no other row, the base included, is as good in both languages "
        "and better in one."
    )
    return table


def _worst(build: Builder, line: Line) -> list[Cell]:
    """The task of the old language that fell most, and by how much."""
    each = [
        (difference.value, column, difference)
        for column in build.study.means(SOURCE_LANGUAGE)
        if (difference := build.lines.difference(line, column)) is not None
    ]
    if not each:
        return [Cell(NOTHING), Cell(NOTHING)]
    _, column, difference = min(each, key=lambda item: item[0])
    return [Cell(plain_name(column)), difference_cell(difference, percent)]


def _relative(build: Builder, line: Line, column: Column) -> Cell:
    """Bits per byte against the base, in per cent: of the same texts, so the error is that of the difference."""
    difference = build.lines.other_difference(line, column, "bits_per_byte")
    base = _base_bits(build, column)
    if difference is None or base is None:
        return Cell(NOTHING)
    value, stderr = 100 * difference.value / base, 100 * difference.stderr / base
    return Cell(number(value, stderr, sign=True), value, brief=f"n={difference.n}")


def _base_bits(build: Builder, column: Column) -> float | None:
    base = next((line for line in build.lines.lines if line.first.is_base), None)
    estimate = None if base is None else build.lines.value(base, column, "bits_per_byte")[0]
    return None if estimate is None else estimate.value
