"""Two runs against each other, on the documents both were asked: by task and overall, with a verdict in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from hpc_ewc.errors import ConfigError, InputError
from hpc_ewc.report.analysis.differences import analyse
from hpc_ewc.report.analysis.estimates import Analysis, Difference
from hpc_ewc.report.analysis.means import Mean
from hpc_ewc.report.output.terminal import print_table
from hpc_ewc.report.study.collect import Collection, Source, collect, flatten
from hpc_ewc.report.study.columns import Column, language_name
from hpc_ewc.report.study.runs import Run
from hpc_ewc.report.study.stages import Stages
from hpc_ewc.report.study.study import build_study
from hpc_ewc.report.tables.builder import Cell, Head, Table, difference_cell, plain_name, text_of, value_cell
from hpc_ewc.report.tables.formats import clean, p_text, percent
from hpc_ewc.rundir import RunDir


@dataclass(frozen=True)
class Judgement:
    """One line of a comparison."""

    name: str
    language: str
    difference: Difference
    higher_is_better: bool
    a: float
    b: float

    @property
    def better(self) -> str:
        """A, B, or nothing where they cannot be told apart."""
        if not self.difference.is_significant:
            return ""
        return "B" if (self.difference.value > 0) == self.higher_is_better else "A"


@dataclass(frozen=True)
class Comparison:
    """B minus A, by task and over the tasks of each language."""

    a: str
    b: str
    tasks: list[Judgement]
    means: list[Judgement]
    table: Table
    only_one: list[str]
    """Cells that only one of the two has, or that they have under other settings."""
    left_out: list[str]

    @property
    def verdict(self) -> str:
        """In words, for each language and then task by task."""
        parts = [_overall(self, mean) for mean in self.means]
        for better, other in (("A", "B"), ("B", "A")):
            names = [f"{j.name} ({language_name(j.language)})" for j in self.tasks if j.better == better]
            if names:
                parts.append(f"{better} is better than {other} on {', '.join(names)}.")
        same = sum(j.better == "" for j in self.tasks)
        if same:
            parts.append(f"On {same} of {len(self.tasks)} cells they cannot be told apart.")
        return " ".join(parts) if parts else "They share no cell: nothing can be said."


def compare(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> Comparison:
    """Two runs, each as records from `load_records`, at one checkpoint each.

    Raises:
        InputError: one of them is empty, or holds more than one run or checkpoint.
    """
    records = []
    for label, rows in (("A", a), ("B", b)):
        found = {(row["source"], row["run"], row["step"]) for row in rows}
        if len(found) != 1:
            names = ", ".join(sorted(f"{run} at step {step}" for _, run, step in found)) or "nothing"
            raise InputError(f"compare: {label} must be one run at one checkpoint; it holds {names}")
        records += [{**record, "side": label} for record in _unflattened(rows)]
    labels = dict.fromkeys(record["source"] for record in records)
    sources = [Source(label, RunDir(Path(label))) for label in labels]
    return _compared(records, sources)


def compare_paths(a: str, b: str, paths: Sequence[Path]) -> Comparison:
    """Two runs by their folders, or by unique prefixes of their names under `paths`.

    Raises:
        ConfigError: a name that no run, or more than one, begins with.
        InputError: a folder that holds no run.
    """
    return compare(_rows(a, paths), _rows(b, paths))


def _rows(name: str, paths: Sequence[Path]) -> list[dict[str, Any]]:
    if Path(name).exists():
        found = collect([name]).records
    elif not paths:
        raise ConfigError(f"compare: {name}: no such folder; give runs/NAME/evaluate/RUN, or runs/NAME after A and B")
    else:
        every = collect(list(paths)).records
        names = sorted({record["run"] for record in every})
        matching = [name] if name in names else [run for run in names if run.startswith(name)]
        if len(matching) != 1:
            what = f"{len(matching)} runs begin so: {', '.join(matching)}" if matching else f"runs: {', '.join(names)}"
            raise ConfigError(f"compare: no single run '{name}'; {what}")
        found = [record for record in every if record["run"] == matching[0]]
    last = max((record["step"] for record in found), default=0)
    return [row for record in found if record["step"] == last for row in flatten(record)]


def _unflattened(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Records again, from their flat results."""
    records: dict[str, dict[str, Any]] = {}
    own = ("metric", "filter", "subset", "value", "stderr", "n", "higher_is_better", "primary")
    for row in rows:
        shared = {key: value for key, value in row.items() if key not in own}
        record = records.setdefault(row["where"], {**shared, "results": []})
        record["results"].append({key: row.get(key) for key in own})
    return list(records.values())


def _compared(records: list[dict[str, Any]], sources: list[Source]) -> Comparison:
    names = [next(record["run"] for record in records if record["side"] == side) for side in "AB"]
    for record in records:  # A is made the base of B; both may be the same run
        side = record["side"]
        record |= {"run": side, "model_hash": side, "base_hash": "A", "where": f"{side}: {record['where']}"}
    study = build_study(Collection(sources=sources, records=records), Stages())
    sides = {run.model_hash: run for run in study.runs}
    if set(sides) != {"A", "B"}:
        raise InputError("compare: one of the two has no cell with a value")
    one, other = sides["A"], sides["B"]
    analysis = analyse(study)
    tasks = [
        Judgement(
            plain_name(column),
            column.language,
            analysis.differences[other, column, column.metric],
            column.higher_is_better,
            analysis.values[one, column, column.metric].value,
            analysis.values[other, column, column.metric].value,
        )
        for column in study.columns
        if (other, column, column.metric) in analysis.differences
    ]
    means = [
        Judgement(
            "mean over tasks" if mean.single is None else f"{plain_name(mean.single)} alone",
            mean.language,
            analysis.mean_differences[other, mean],
            True,
            analysis.mean_values[one, mean].value,
            analysis.mean_values[other, mean].value,
        )
        for mean in analysis.means
        if (other, mean) in analysis.mean_differences
    ]
    shared = {column for _, column in study.records if all((run, column) in study.records for run in (one, other))}
    only = [f"{column.label} ({column.language})" for column in study.columns if column not in shared]
    left_out = [*analysis.left_out, *(f"{p.where}: {p.what}" for p in study.problems)]
    return Comparison(names[0], names[1], tasks, means, _table(analysis, one, other), only, left_out)


def _table(analysis: Analysis, one: Run, other: Run) -> Table:
    heads = [Head("cell", is_label=True), Head("A"), Head("B"), Head("B − A"), Head("p Holm"), Head("seen from")]
    table = Table("compare", "B against A", heads, [])
    for column in analysis.study.columns:
        difference = analysis.differences.get((other, column, column.metric))
        if difference is not None:
            table.rows.append(_row(analysis, (one, other), column, difference))
    for mean in analysis.means:
        difference = analysis.mean_differences.get((other, mean))
        if difference is not None and mean.single is None:
            table.rows.append(_row(analysis, (one, other), mean, difference))
    table.notes.append(
        "± standard error, paired by document. p after Holm's correction over the cells, and over the means. "
        "Seen from: a true difference smaller than this may well have gone unseen (80 % power, before correction)."
    )
    return table


def _row(analysis: Analysis, runs: tuple[Run, Run], what: Column | Mean, difference: Difference) -> list[Cell]:
    if isinstance(what, Mean):
        values = [analysis.mean_values[run, what] for run in runs]
        name, text = what.label, percent
    else:
        values = [analysis.values[run, what, what.metric] for run in runs]
        name, text = f"{plain_name(what)} ({what.language})", text_of(what)
    cells = [Cell(name), *(value_cell((value, None), text) for value in values), difference_cell(difference, text)]
    seen = difference.detectable
    return [*cells, Cell(p_text(difference.p_holm), difference.p_holm), Cell("–" if seen is None else text(seen), seen)]


def _overall(comparison: Comparison, mean: Judgement) -> str:
    difference = mean.difference
    words = f"{language_name(mean.language)}, {mean.name}: B changes A's {percent(mean.a)} by "
    words += percent(difference.value, difference.stderr, sign=True)
    if difference.low is not None and difference.high is not None:
        words += f" (95 %: {percent(difference.low, sign=True)} to {percent(difference.high, sign=True)})"
    if mean.better:
        return f"{words} points: {mean.better} is better."
    seen = "" if not difference.detectable else f"; less than {percent(difference.detectable)} would often go unseen"
    return f"{words} points: they cannot be told apart{seen}."


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Verdict, table, and what could not be compared."""
    console.print(Text(clean(f"A: {comparison.a}")))
    console.print(Text(clean(f"B: {comparison.b}")))
    console.print(Text(clean(comparison.verdict), style="bold"))
    console.print()
    if comparison.table.rows:
        print_table(comparison.table, console)
    console.print(Text("With one seed each this is about these two checkpoints.", style="dim"))
    for cell in comparison.only_one:
        console.print(Text(clean(f"- not compared: {cell}: only one of the two has it under these settings")))
    for line in comparison.left_out:
        console.print(Text(clean(f"- {line}")))
