"""Compares two runs on the documents that both answered: by task and overall, with a verdict in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from hpc_ewc.errors import ConfigError, InputError
from hpc_ewc.report.analysis.differences import analyse
from hpc_ewc.report.analysis.estimates import Analysis, Difference, Estimate
from hpc_ewc.report.analysis.means import Mean
from hpc_ewc.report.output.terminal import print_table
from hpc_ewc.report.study.collect import Collection, Source, collect, flatten
from hpc_ewc.report.study.columns import Column, language_name
from hpc_ewc.report.study.runs import Run
from hpc_ewc.report.study.stages import Stages
from hpc_ewc.report.study.study import build_study
from hpc_ewc.report.tables.builder import mean_name, plain_name, text_of
from hpc_ewc.report.tables.formats import clean, p_text, percent
from hpc_ewc.report.tables.table import Cell, Head, Table, difference_cell, optional_cell, value_cell
from hpc_ewc.rundir import RunDir


@dataclass(frozen=True)
class Judgement:
    """The comparison in one cell, or over the tasks of a language."""

    what: Column | Mean
    difference: Difference
    a: Estimate
    b: Estimate

    @property
    def name(self) -> str:
        """The task; of a mean, what it is over."""
        return mean_name(self.what) if isinstance(self.what, Mean) else plain_name(self.what)

    @property
    def language(self) -> str:
        return self.what.language

    @property
    def better(self) -> str:
        """A or B; empty if the difference is not significant."""
        if not self.difference.is_significant:
            return ""
        higher_is_better = isinstance(self.what, Mean) or self.what.higher_is_better
        return "B" if (self.difference.value > 0) == higher_is_better else "A"


@dataclass(frozen=True)
class Comparison:
    """B minus A, by task and over the tasks of each language."""

    a: str
    b: str
    tasks: list[Judgement]
    means: list[Judgement]
    table: Table
    only_one: list[str]
    """Cells that only one of the two has, or that they have under different settings."""
    left_out: list[str]

    @property
    def verdict(self) -> str:
        """The result in words, for each language and then by task."""
        parts = [_overall(mean) for mean in self.means]
        for better, other in (("A", "B"), ("B", "A")):
            names = [f"{j.name} ({language_name(j.language)})" for j in self.tasks if j.better == better]
            if names:
                parts.append(f"{better} is better than {other} on {', '.join(names)}.")
        same = sum(judgement.better == "" for judgement in self.tasks)
        if same:
            parts.append(f"On {same} of {len(self.tasks)} cells they do not differ significantly.")
        return " ".join(parts) if parts else "The two runs share no cell, so they cannot be compared."


def compare(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> Comparison:
    """Compare two runs, each given as rows of `load_records` at one checkpoint.

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
    """Compare two runs, given by their folders or by unique prefixes of their names under `paths`.

    Raises:
        ConfigError: no run, or more than one, has a name with this prefix.
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
            several = f"{len(matching)} runs begin with it: {', '.join(matching)}"
            what = several if matching else f"runs: {', '.join(names)}"
            raise ConfigError(f"compare: no single run '{name}'; {what}")
        found = [record for record in every if record["run"] == matching[0]]
    last = max((record["step"] for record in found), default=0)
    return [row for record in found if record["step"] == last for row in flatten(record)]


def _unflattened(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Records, rebuilt from their flat results."""
    records: dict[str, dict[str, Any]] = {}
    own = ("metric", "filter", "subset", "value", "stderr", "n", "higher_is_better", "primary")
    for row in rows:
        shared = {key: value for key, value in row.items() if key not in own}
        record = records.setdefault(row["where"], {**shared, "results": []})
        record["results"].append({key: row.get(key) for key in own})
    return list(records.values())


def _compared(records: list[dict[str, Any]], sources: list[Source]) -> Comparison:
    names = [next(record["run"] for record in records if record["side"] == side) for side in "AB"]
    for record in records:  # A becomes the base of B; both may be the same run
        side = record["side"]
        record |= {"run": side, "model_hash": side, "base_hash": "A", "where": f"{side}: {record['where']}"}
    study = build_study(Collection(sources=sources, records=records), Stages())
    sides = {run.model_hash: run for run in study.runs}
    if set(sides) != {"A", "B"}:
        raise InputError("compare: one of the two has no cell with a value")
    analysis = analyse(study)
    tasks = _judgements(analysis, sides, study.columns)
    means = _judgements(analysis, sides, analysis.means)
    complete = {column for column in study.columns if all((run, column) in study.records for run in sides.values())}
    only = [f"{column.label} ({column.language})" for column in study.columns if column not in complete]
    left_out = [*analysis.left_out, *(f"{problem.where}: {problem.what}" for problem in study.problems)]
    return Comparison(names[0], names[1], tasks, means, _table([*tasks, *means]), only, left_out)


def _judgements(analysis: Analysis, sides: Mapping[str, Run], columns: Sequence[Column | Mean]) -> list[Judgement]:
    found = []
    for what in columns:
        difference, a, b = analysis.difference(sides["B"], what), *(analysis.value(sides[side], what) for side in "AB")
        if difference is not None and a is not None and b is not None:
            found.append(Judgement(what, difference, a, b))
    return found


def _table(judgements: Sequence[Judgement]) -> Table:
    heads = [Head("cell", is_label=True), *map(Head, ("A", "B", "B − A", "p Holm", "detectable"))]
    table = Table("compare", "B against A", heads, [])
    for judgement in judgements:
        what, difference = judgement.what, judgement.difference
        if isinstance(what, Mean) and what.single is not None:
            continue
        text = text_of(what)
        name = what.label if isinstance(what, Mean) else f"{plain_name(what)} ({what.language})"
        values = [value_cell((value, None), text) for value in (judgement.a, judgement.b)]
        p = optional_cell(difference.p_holm, p_text)
        detectable = optional_cell(difference.detectable, text)
        table.rows.append([Cell(name), *values, difference_cell(difference, text), p, detectable])
    table.notes.append(
        "± standard error, paired by document. p after Holm's correction over the cells, and over the means. "
        "Detectable: minimum detectable effect (80 % power, before correction)."
    )
    return table


def _overall(mean: Judgement) -> str:
    difference = mean.difference
    words = f"{language_name(mean.language)}, {mean.name}: B changes A's {percent(mean.a.value)} by "
    words += percent(difference.value, difference.stderr, sign=True)
    if difference.low is not None and difference.high is not None:
        words += f" (95 %: {percent(difference.low, sign=True)} to {percent(difference.high, sign=True)})"
    if mean.better:
        return f"{words} points: {mean.better} is better."
    missed = f"; minimum detectable effect {percent(difference.detectable)}" if difference.detectable else ""
    return f"{words} points: no significant difference{missed}."


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the verdict, the table, and the cells that could not be compared."""
    console.print(Text(clean(f"A: {comparison.a}")))
    console.print(Text(clean(f"B: {comparison.b}")))
    console.print(Text(clean(comparison.verdict), style="bold"))
    console.print()
    if comparison.table.rows:
        print_table(comparison.table, console)
    console.print(Text("Single seed each: the conclusions apply to these two checkpoints only.", style="dim"))
    for cell in comparison.only_one:
        console.print(Text(clean(f"- not compared: {cell}: only one of the two has it under these settings")))
    for line in comparison.left_out:
        console.print(Text(clean(f"- {line}")))
