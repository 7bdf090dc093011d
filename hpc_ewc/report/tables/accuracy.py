"""Tables of the tasks of a language: accuracy, and the differences to the base."""

from __future__ import annotations

import math

from hpc_ewc.report.analysis.estimates import Difference
from hpc_ewc.report.analysis.means import Mean
from hpc_ewc.report.study.columns import Column, language_name
from hpc_ewc.report.tables.builder import Builder, head, plain_name, short_name, text_of
from hpc_ewc.report.tables.contamination import MARK
from hpc_ewc.report.tables.formats import percent
from hpc_ewc.report.tables.lines import Line, Lines
from hpc_ewc.report.tables.table import Cell, Table, optional_cell


def accuracy(build: Builder, language: str) -> Table | None:
    """Accuracy of each task of a language."""
    columns, shown = _columns(build, language)
    if not columns:
        return None
    every: list[Column | Mean] = [*columns, *shown]
    best = {what: frozenset(best_lines(build.lines, what)) for what in every}
    table = build.table(
        f"accuracy.{language}",
        f"{language_name(language)}: accuracy in per cent",
        [(_head(build, what), build.values(what, bold=best[what])) for what in every],
    )
    known = build.analysis.chances
    if any(column in known for column in columns):
        chances = [optional_cell(known.get(column), percent) for column in columns]
        table.foot.append(build.foot("chance", [*chances, *[Cell("")] * len(shown)]))
    table.notes += [*settings_notes(build, columns), *_mean_notes(build, language, shown)]
    if any(best.values()):
        table.legend.append(
            "Bold: the best, with all that are not significantly different from it (95 %, before correction)."
        )
    return table


def differences(build: Builder, language: str) -> Table | None:
    """Accuracy against the base, task by task."""
    columns, shown = _columns(build, language)
    rows = [line for line in build.lines.lines if any(build.lines.difference(line, c) for c in columns)]
    if not rows:
        return None
    every: list[Column | Mean] = [*columns, *shown]
    table = build.table(
        f"difference.{language}",
        f"{language_name(language)}: points against the base",
        [(_head(build, what), build.changes(what)) for what in every],
        rows,
    )
    detectable = [
        optional_cell(_largest([build.lines.difference(line, what) for line in rows]), text_of(what)) for what in every
    ]
    table.foot.append(build.foot("detectable", detectable))
    table.legend.append(
        f"± standard error of the difference, {_tests(build, rows, columns)}. *: p < .05 after Holm's correction "
        "over every run × primary metric (tasks), or every run × language (means). Detectable: minimum detectable "
        "effect (80 % power, before correction; the largest of the column)."
    )
    return table


def _columns(build: Builder, language: str) -> tuple[list[Column], list[Mean]]:
    columns = [c for c in build.study.columns if c.language == language and c.kind in ("share", "number")]
    return columns, [mean for mean in build.analysis.means if mean.language == language and mean.single is None]


def _head(build: Builder, what: Column | Mean) -> str:
    return short_name(what) if isinstance(what, Mean) else head(build, what)


def best_lines(lines: Lines, what: Column | Mean) -> list[Line]:
    """The best line, with all that do not differ from it on the same documents; none if that is every line.

    Over seeds the documents are not paired: the errors of both are added.
    """
    known = [(line, e) for line in lines.lines if (e := lines.value(line, what)[0]) is not None]
    if len(known) < 2 or any(e.stderr is None for _, e in known):
        return []
    if not lines.repeated and what in lines.analysis.tied:
        best = lines.analysis.tied[what]
        tied = [line for line, _ in known if line.first in best]
    else:
        sign = 1 if isinstance(what, Mean) or what.higher_is_better else -1
        top = max((e for _, e in known), key=lambda e: sign * e.value)
        tied = [
            line
            for line, e in known
            if abs(e.value - top.value) <= 1.96 * math.hypot(e.stderr or 0.0, top.stderr or 0.0)
        ]
    return tied if len(tied) < len(known) else []


def _largest(each: list[Difference | None]) -> float | None:
    return max((d.detectable for d in each if d is not None and d.detectable is not None), default=None)


# ---------------------------------------------------------------------------------------------- notes


def _tests(build: Builder, rows: list[Line], columns: list[Column]) -> str:
    """The tests behind the differences of a table, in words."""
    each = [build.lines.difference(line, column) for line in rows for column in columns]
    methods = {d.method.split(",")[0] for d in each if d is not None}
    words = {
        "McNemar": "McNemar's exact test (right or wrong)",
        "paired t": "Student's t (scores)",
        "clustered t": "Student's t by passage (documents that share one)",
    }
    tests = ", ".join(text for method, text in words.items() if method in methods)
    parts = [f"paired by document; p by {tests}"] if tests else []
    return "; ".join([*parts, *(["unpaired where samples are missing"] if "unpaired" in methods else [])])


def settings_notes(build: Builder, columns: list[Column]) -> list[str]:
    """Number of documents, shots and limits of these columns, and which of them the Fisher has seen."""
    parts = []
    for column in columns:
        counts = sorted({r["n"] for run in build.study.runs if (r := build.study.result(run, column))})
        facts = [f"n={' or '.join(f'{n:,}' for n in counts)}"]
        if column.kind != "perplexity":
            shots = column.setting("shots")
            facts.append("shots not recorded" if shots is None else f"{shots} shots" if shots != 1 else "1 shot")
            facts += [column.metric] if column.metric != "acc" else []
        if column.setting("limit") is not None:
            facts.append(f"only the first {column.setting('limit')}")
        if column in build.analysis.clustered:
            facts.append(f"{build.analysis.clustered[column]:,} passages")
        if column.setting("cloze"):
            facts.append("cloze")
        facts += _side_conditions(build, column)
        parts.append(f"{plain_name(column)} ({', '.join(facts)})")
    seen = [f"{MARK} {plain_name(c)}: {why}." for c in columns if (why := build.contaminated.get(c))]
    return ["; ".join(parts) + ".", *seen]


def _side_conditions(build: Builder, column: Column) -> list[str]:
    """Conditions that may have changed a score: truncated prompts, different batch sizes and attention kernels."""
    records = build.study.records_by_column[column]
    cut = max((record.get("truncated") or 0 for record in records), default=0)
    sizes = sorted({record["batch_size"] for record in records if isinstance(record.get("batch_size"), int)})
    kernels = sorted({str(record["attention"]) for record in records if record.get("attention")})
    facts = [f"up to {cut} prompts cut to fit"] if cut else []
    facts += [f"batch sizes {', '.join(map(str, sizes))}"] if len(sizes) > 1 else []
    return [*facts, *([f"attention {', '.join(kernels)}"] if len(kernels) > 1 else [])]


def _mean_notes(build: Builder, language: str, shown: list[Mean]) -> list[str]:
    columns = build.study.means(language)
    if columns and build.analysis.mean(language) is None:
        return ["No mean: no run has every task under the same limit, backend, precision and seed."]
    if len(shown) > 1:
        return [f"{short_name(mean)}: {', '.join(c.label for c in mean.columns)}." for mean in shown]
    incomplete = [line for line in build.lines.lines if shown and build.lines.value(line, shown[0])[0] is None]
    return ["A run without every task has no mean."] if incomplete else []
