"""All numbers laid out once, for every medium: tables of cells, each with its text and what it sorts by."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hpc_ewc.report.analysis.estimates import Difference, Estimate
from hpc_ewc.report.analysis.means import Mean
from hpc_ewc.report.study.columns import Column, language_name
from hpc_ewc.report.tables import formats
from hpc_ewc.report.tables.contamination import MARK, contaminated
from hpc_ewc.report.tables.formats import NOTHING, bits, number, p_text, percent
from hpc_ewc.report.tables.lines import Line, Lines, Spread, label_columns


@dataclass(frozen=True)
class Cell:
    """What stands in one place of a table."""

    text: str
    sort: float | None = None
    brief: str = ""
    """n and p, to stand beside the value where there is room."""
    detail: str = ""
    """Interval, test and counts, in words."""
    bold: bool = False


@dataclass(frozen=True)
class Head:
    """A column of a table."""

    text: str
    is_label: bool = False
    """Says which row this is; repeated where a table is broken to fit."""


@dataclass
class Table:
    """A table with its explanation."""

    key: str
    title: str
    heads: list[Head]
    rows: list[list[Cell]]
    notes: list[str] = field(default_factory=list)
    """What holds for this table alone."""
    legend: list[str] = field(default_factory=list)
    """How to read a table of this kind; media read from top to bottom say it once."""
    foot: list[list[Cell]] = field(default_factory=list)
    """Rows that are not runs, such as chance; they stay below when the table is sorted."""


class Builder:
    """Builds every table of a report."""

    def __init__(self, lines: Lines, gain: str = "auto") -> None:
        self.lines = lines
        self.gain = gain
        """How the gain in the new language is to be measured: auto, accuracy or text."""
        self.analysis = lines.analysis
        self.study = lines.study
        self.labels = label_columns(self.study, lines.lines)
        self.languages = self.study.languages()
        self.contaminated = contaminated(self.study)

    def table(self, key: str, title: str) -> Table:
        return Table(key, title, [Head(name, is_label=True) for name, _ in self.labels], [])

    def labelled(self, line: Line) -> list[Cell]:
        """The first cells of a row."""
        cells = [Cell(texts[line]) for _, texts in self.labels]
        strength = line.first.strength
        cells[0] = Cell(cells[0].text, -1.0 if line.first.is_base else strength)
        return cells

    def foot(self, name: str, cells: Sequence[Cell]) -> list[Cell]:
        return [Cell(name), *[Cell("")] * (len(self.labels) - 1), *cells]


def value_cell(pair: tuple[Estimate | None, Spread | None], text: Callable[..., str], *, bold: bool = False) -> Cell:
    """A value with its standard error; over seeds, with their spread in brackets."""
    estimate, spread = pair
    if estimate is None:
        return Cell(NOTHING)
    shown = text(estimate.value, estimate.stderr)
    if spread is not None:
        shown += f" ({text(spread.deviation)})"
    parts = [f"n={estimate.n}", *([f"{spread.seeds} seeds"] if spread else [])]
    if estimate.low is not None and estimate.high is not None:
        parts.append(f"95 % {text(estimate.low)} to {text(estimate.high)}")
    return Cell(shown, estimate.value, parts[0], "; ".join(parts), bold)


def difference_cell(difference: Difference | None, text: Callable[..., str]) -> Cell:
    """A difference with its standard error, starred where it is significant after Holm's correction."""
    if difference is None:
        return Cell(NOTHING)
    star = "*" if difference.is_significant else ""
    parts = [f"n={difference.n}", difference.method]
    if difference.lost is not None:
        parts.append(f"{difference.lost} lost, {difference.gained} gained")
    if difference.low is not None and difference.high is not None:
        parts.append(f"95 % {text(difference.low, sign=True)} to {text(difference.high, sign=True)}")
    if difference.p is not None:
        parts.append(f"p {p_text(difference.p)}, {p_text(difference.p_holm)} after Holm")
    brief = parts[0] + (f", p={p_text(difference.p_holm)}".replace("=<", "<") if difference.p_holm is not None else "")
    shown = text(difference.value, difference.stderr, sign=True) + star
    return Cell(shown, difference.value, brief, "; ".join(parts))


def text_of(column: Column) -> Callable[..., str]:
    """How values of a column are written."""
    if column.kind == "share":
        return percent
    return bits if column.metric == "bits_per_byte" else number


# ---------------------------------------------------------------------------------------------- the tables


def knowledge(build: Builder, language: str) -> Table | None:
    """Accuracy of each task of a language."""
    columns = [c for c in build.study.columns if c.language == language and c.kind in ("share", "number")]
    if not columns:
        return None
    shown = [mean for mean in build.analysis.means if mean.language == language and mean.single is None]
    table = build.table(f"accuracy.{language}", f"{language_name(language)}: accuracy in per cent")
    table.heads += [Head(head(build, column)) for column in columns] + [Head(short(mean)) for mean in shown]
    every: list[Column | Mean] = [*columns, *shown]
    best = {column: frozenset(best_lines(build.lines, column)) for column in every}
    for line in build.lines.lines:
        row = build.labelled(line)
        row += [value_cell(build.lines.value(line, c), text_of(c), bold=line in best[c]) for c in columns]
        row += [value_cell(build.lines.mean_value(line, mean), percent, bold=line in best[mean]) for mean in shown]
        table.rows.append(row)
    known = build.analysis.chances
    if any(column in known for column in columns):
        chances = [Cell(percent(known[c]), known[c]) if c in known else Cell(NOTHING) for c in columns]
        table.foot.append(build.foot("chance", [*chances, *[Cell("")] * len(shown)]))
    table.notes += [*settings_notes(build, columns), *mean_notes(build, language, shown)]
    if any(best.values()):
        table.legend.append("Bold: the best, with all that cannot be told from it (95 %, before correction).")
    return table


def differences(build: Builder, language: str) -> Table | None:
    """Accuracy against the base, task by task."""
    columns = [c for c in build.study.columns if c.language == language and c.kind in ("share", "number")]
    rows = [line for line in build.lines.lines if any(build.lines.difference(line, c) for c in columns)]
    if not rows:
        return None
    shown = [mean for mean in build.analysis.means if mean.language == language and mean.single is None]
    table = build.table(f"difference.{language}", f"{language_name(language)}: points against the base")
    table.heads += [Head(head(build, column)) for column in columns] + [Head(short(mean)) for mean in shown]
    for line in rows:
        row = build.labelled(line)
        row += [difference_cell(build.lines.difference(line, c), text_of(c)) for c in columns]
        row += [difference_cell(build.lines.mean_difference(line, mean), percent) for mean in shown]
        table.rows.append(row)
    detectable = [_largest([build.lines.difference(line, c) for line in rows]) for c in columns]
    detectable += [_largest([build.lines.mean_difference(line, m) for line in rows]) for m in shown]
    written = [*map(text_of, columns), *[percent] * len(shown)]
    cells = [Cell(NOTHING if d is None else text(d), d) for d, text in zip(detectable, written, strict=True)]
    table.foot.append(build.foot("seen from", cells))
    table.legend.append(
        f"± standard error of the difference, {how_paired(build, rows, columns)}. *: p < .05 after Holm's correction "
        "over every run × primary metric (tasks), or every run × language (means). Seen from: a true difference "
        "smaller than this may well have gone unseen (80 % power, before correction; the widest of the column)."
    )
    return table


# ---------------------------------------------------------------------------------------------- parts


def head(build: Builder, column: Column) -> str:
    """The task, with what tells this column from others of it; † where the Fisher has seen its documents."""
    return column_name(column) + (f" {MARK}" if column in build.contaminated else "")


def column_name(column: Column) -> str:
    """The task in its own spelling, with what tells this column from others of it; may hold soft hyphens."""
    return column.label.replace(column.task, formats.TASK_HEADS.get(column.task, column.task), 1)


def plain_name(column: Column) -> str:
    """`column_name` for a sentence."""
    return column_name(column).replace(formats.SOFT_HYPHEN, "")


def short(mean: Mean) -> str:
    return mean.label.replace(f"mean {language_name(mean.language)}", "mean")


def best_lines(lines: Lines, column: Column | Mean) -> list[Line]:
    """The best of a column, with all that cannot be told from it on the same documents; nobody where that is everybody.

    Over seeds the documents are not paired: the errors of both are added.
    """
    if isinstance(column, Mean):
        known = [(line, e) for line in lines.lines if (e := lines.mean_value(line, column)[0]) is not None]
    else:
        known = [(line, e) for line in lines.lines if (e := lines.value(line, column)[0]) is not None]
    if len(known) < 2 or any(e.stderr is None for _, e in known):
        return []
    if not lines.repeated and column in lines.analysis.tied:
        best = lines.analysis.tied[column]
        tied = [line for line, _ in known if line.first in best]
    else:
        sign = 1 if isinstance(column, Mean) or column.higher_is_better else -1
        top = max((e for _, e in known), key=lambda e: sign * e.value)
        tied = [
            line
            for line, e in known
            if abs(e.value - top.value) <= 1.96 * math.hypot(e.stderr or 0.0, top.stderr or 0.0)
        ]
    return tied if len(tied) < len(known) else []


def how_paired(build: Builder, rows: list[Line], columns: list[Column]) -> str:
    """The methods behind the differences of a table, in words."""
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
    """Shots, documents, limits: what the numbers of these columns rest on."""
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
        facts += _circumstances(build, column)
        parts.append(f"{plain_name(column)} ({', '.join(facts)})")
    seen = [f"{MARK} {plain_name(c)}: {why}." for c in columns if (why := build.contaminated.get(c))]
    return ["; ".join(parts) + ".", *seen]


def _circumstances(build: Builder, column: Column) -> list[str]:
    """What may have changed a score without being asked for: prompts that were cut, batches and kernels of several
    kinds.
    """
    records = build.study.records_by_column[column]
    cut = max((record.get("truncated") or 0 for record in records), default=0)
    sizes = sorted({record["batch_size"] for record in records if isinstance(record.get("batch_size"), int)})
    kernels = sorted({str(record["attention"]) for record in records if record.get("attention")})
    facts = [f"up to {cut} prompts cut to fit"] if cut else []
    facts += [f"batch sizes {', '.join(map(str, sizes))}"] if len(sizes) > 1 else []
    return [*facts, *([f"attention {', '.join(kernels)}"] if len(kernels) > 1 else [])]


def mean_notes(build: Builder, language: str, shown: list[Mean]) -> list[str]:
    columns = build.study.means(language)
    if columns and build.analysis.mean(language) is None:
        return ["No mean: no run has every task under the same limit, backend, precision and seed."]
    if len(shown) > 1:
        return [f"{short(mean)}: {', '.join(c.label for c in mean.columns)}." for mean in shown]
    incomplete = [line for line in build.lines.lines if shown and build.lines.mean_value(line, shown[0])[0] is None]
    return ["A run without every task has no mean."] if incomplete else []


def _largest(each: list[Difference | None]) -> float | None:
    known = [d.detectable for d in each if d is not None and d.detectable is not None]
    return max(known) if known else None


def explanations(table: Table, said: set[str]) -> list[str]:
    """Notes of a table with its legend, without what was said before; `said` grows by what is said now."""
    new = [line for line in table.legend if line not in said]
    said.update(new)
    return [*table.notes, *new]
