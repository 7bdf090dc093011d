"""Forgetting against plasticity: what each run lost of the old language and gained of the new one."""

from __future__ import annotations

from hpc_ewc.report.analysis.means import Mean
from hpc_ewc.report.study.columns import SOURCE_LANGUAGE, Column, language_name
from hpc_ewc.report.tables.builder import Builder, Cell, Head, Table, difference_cell, plain_name
from hpc_ewc.report.tables.formats import NOTHING, number, percent
from hpc_ewc.report.tables.lines import Line
from hpc_ewc.report.tables.measure import Gain, gain, over
from hpc_ewc.report.tables.texts import bits_head, shown_texts


def front(build: Builder) -> set[Line]:
    """The lines that no other beats in one language without losing in the other: mean over tasks against the gain.

    By the values as they were measured: whether two of them can be told apart is in the difference tables.
    """
    old, new = build.analysis.mean(SOURCE_LANGUAGE), gain(build)
    if old is None or new is None:
        return set()
    points: dict[Line, tuple[float, float]] = {}
    for line in build.lines.lines:
        kept, learnt = build.lines.mean_value(line, old)[0], new.value(build, line)
        if kept is not None and learnt is not None:
            points[line] = (kept.value, new.sign * learnt.value)
    return {
        line
        for line, (kept, learnt) in points.items()
        if not any(a >= kept and b >= learnt and (a, b) != (kept, learnt) for a, b in points.values())
    }


def tradeoff(build: Builder) -> Table | None:
    """Forgetting, the worst task, plasticity, bits per byte; columns only of what was measured."""
    lines, target = build.lines, build.study.target
    old, new, measured = build.analysis.mean(SOURCE_LANGUAGE), build.analysis.mean(target), gain(build)
    rows = [line for line in lines.lines if not line.first.is_base]
    if not rows or (old is None and new is None):
        return None
    best = front(build)
    table = build.table("tradeoff", "Forgetting and plasticity")
    table.heads += [] if old is None else [Head(name) for name in _forgetting_heads(old)]
    table.heads += [] if new is None else [Head("plasticity")]
    texts = shown_texts(build)
    table.heads += [Head(f"{bits_head(column)} %") for column in texts]
    table.heads += [Head("front")] if best else []
    for line in rows:
        row = build.labelled(line)
        if old is not None:
            row.append(difference_cell(lines.mean_difference(line, old), percent))
            row += [] if old.single else _worst(build, line)
        row += [] if new is None else [difference_cell(lines.mean_difference(line, new), percent)]
        row += [_relative(build, line, column) for column in texts]
        row += [Cell("●" if line in best else "", 1.0 if line in best else 0.0)] if best else []
        table.rows.append(row)
    table.notes.append(" ".join(_notes(old, new, texts, measured if best else None)))
    return table


def _forgetting_heads(old: Mean) -> list[str]:
    return ["forgetting"] if old.single else ["forgetting", "worst task", "by"]


def _notes(old: Mean | None, new: Mean | None, texts: list[Column], measured: Gain | None) -> list[str]:
    """What each column says; nothing of what is not there."""
    found = []
    if old is not None:
        what = "mean over tasks" if old.single is None else f"{over(old)} alone"
        found.append(f"Forgetting: {language_name(old.language)} accuracy, {what}, against the base, in points")
        found[0] += "." if old.single else "; worst task: where it fell most (not corrected for having been picked)."
    if new is not None:
        same = old is not None and (old.single is None) == (new.single is None)
        what = "likewise" if same else "mean over tasks" if new.single is None else f"{over(new)} alone"
        found.append(f"Plasticity: {language_name(new.language)} accuracy, {what}.")
    if texts:
        found.append("Bits per byte relative to the base, in per cent; below 0 is better.")
    if measured is not None:
        found.append(
            "●: no other row, the base included, is as good in both languages and better in one"
            + (
                "."
                if isinstance(measured.what, Mean)
                else f"; of {language_name(measured.what.language)}, by {measured.unit}."
            )
        )
    return found


def _worst(build: Builder, line: Line) -> list[Cell]:
    """The task of the old language that fell most, and by how much."""
    each = [
        (difference.value, column, difference)
        for column in build.study.means(SOURCE_LANGUAGE)
        if (difference := build.lines.difference(line, column)) is not None
    ]
    if not each:
        return [Cell(NOTHING), Cell(NOTHING)]
    lowest, column, difference = min(each, key=lambda item: item[0])
    if lowest >= 0:
        return [Cell("none fell"), Cell(NOTHING)]
    return [Cell(plain_name(column)), difference_cell(difference, percent)]


def _relative(build: Builder, line: Line, column: Column) -> Cell:
    """Bits per byte against the base, in per cent of it."""
    difference = build.lines.other_difference(line, column, "bits_per_byte")
    if difference is None or difference.relative is None:
        return Cell(NOTHING)
    value, stderr = 100 * difference.relative, 100 * difference.relative_stderr
    return Cell(number(value, stderr, sign=True), value, brief=f"n={difference.n}")
