"""The rows of the tables: a checkpoint each, or a setting each where it was repeated with several seeds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from hpc_ewc.report.analysis import statistics
from hpc_ewc.report.analysis.estimates import Analysis, Difference, Estimate
from hpc_ewc.report.analysis.means import Mean
from hpc_ewc.report.analysis.statistics import Moments
from hpc_ewc.report.study.columns import Column
from hpc_ewc.report.study.runs import Run
from hpc_ewc.report.study.study import Study
from hpc_ewc.report.tables.formats import strength_text

Key = TypeVar("Key")


@dataclass(frozen=True)
class Line:
    """Runs that differ in their seeds alone; mostly one."""

    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        return self.runs[0]


@dataclass(frozen=True)
class Spread:
    """Standard deviation over seeds, and how many there are."""

    deviation: float
    seeds: int


class Lines:
    """Values and differences by line. With several seeds a value is their mean, and its standard error holds both the
    documents' (as if those of all seeds were one, which they nearly are) and the seeds': √(SE² + SD²/k).
    """

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.study = analysis.study
        groups: dict[object, list[Run]] = defaultdict(list)
        for run in self.study.runs:
            groups[run.setting].append(run)
        self.lines = [Line(tuple(runs)) for runs in groups.values()]
        self.bases = [line for line in self.lines if line.first.is_base]
        self.repeated = any(len(line.runs) > 1 for line in self.lines)
        self._differences = {
            (line, column): self._difference(
                [analysis.differences.get((run, column, column.metric)) for run in line.runs]
            )
            for line in self.lines
            for column in self.study.columns
        }
        self._means = {
            (line, mean): self._difference([analysis.mean_differences.get((run, mean)) for run in line.runs])
            for line in self.lines
            for mean in analysis.means
        }
        if self.repeated:
            _correct(self._differences)
            _correct(self._means)

    def name(self, line: Line) -> str:
        """Of a line in a sentence: base, or λ = 1e6, step 90."""
        (_, who), *others = label_columns(self.study, self.lines)
        parts = [f"λ = {who[line]}" if line.first.strength is not None else who[line]]
        return ", ".join([*parts, *(f"{head} {texts[line]}" for head, texts in others if texts[line])])

    def setting(self, line: Line) -> str:
        """What a line shares with those that differ from it in λ alone: learning_rate 0.0002, seed 1."""
        _, *others = label_columns(self.study, self.lines)
        return ", ".join(f"{head} {texts[line]}" for head, texts in others if texts[line] and head != "step")

    def value(self, line: Line, column: Column, metric: str | None = None) -> tuple[Estimate | None, Spread | None]:
        """Of a column's primary metric, or of another."""
        metric = metric or column.metric
        return pooled([self.analysis.values.get((run, column, metric)) for run in line.runs])

    def mean_value(self, line: Line, mean: Mean) -> tuple[Estimate | None, Spread | None]:
        """Over the tasks of a language."""
        return pooled([self.analysis.mean_values.get((run, mean)) for run in line.runs])

    def difference(self, line: Line, column: Column) -> Difference | None:
        """To the base, in a column's primary metric."""
        return self._differences[line, column]

    def mean_difference(self, line: Line, mean: Mean) -> Difference | None:
        """To the base, over the tasks of a language."""
        return self._means[line, mean]

    def other_difference(self, line: Line, column: Column, metric: str) -> Difference | None:
        """To the base, in a metric that is not the column's primary one; it is in no family."""
        return self._difference([self.analysis.differences.get((run, column, metric)) for run in line.runs])

    def _difference(self, each: list[Difference | None]) -> Difference | None:
        """Over seeds: tested by Student's t with Satterthwaite's degrees of freedom."""
        known = [difference for difference in each if difference is not None]
        if len(known) < len(each) or not known:
            return None
        if len(known) == 1:
            return known[0]
        moments = _over_seeds([d.value for d in known], [d.stderr for d in known])
        try:
            p = statistics.student(moments)
        except ModuleNotFoundError:
            p = math.nan
        shares = [d.relative for d in known if d.relative is not None]
        relative = _over_seeds(shares, [d.relative_stderr for d in known]) if len(shares) == len(known) else None
        return Difference(
            value=moments.value,
            stderr=moments.stderr,
            n=known[0].n,
            method=f"{known[0].method}, {len(known)} seeds",
            relative=None if relative is None else relative.value,
            relative_stderr=math.nan if relative is None else relative.stderr,
            df=moments.df,
            p=None if math.isnan(p) else p,
            detectable=statistics.minimum_detectable(moments.stderr, known[0].n, binary=False),
        )


def pooled(each: list[Estimate | None]) -> tuple[Estimate | None, Spread | None]:
    known = [estimate for estimate in each if estimate is not None]
    if len(known) < len(each) or not known:
        return None, None
    if len(known) == 1:
        return known[0], None
    values = [estimate.value for estimate in known]
    spread = Spread(float(np.std(values, ddof=1)), len(values))
    stderrs = [estimate.stderr for estimate in known]
    if any(stderr is None for stderr in stderrs):
        return Estimate(sum(values) / len(values), None, known[0].n), spread
    moments = _over_seeds(values, [float(stderr or 0.0) for stderr in stderrs])
    return Estimate(moments.value, moments.stderr, known[0].n), spread


def _over_seeds(values: list[float], stderrs: list[float]) -> Moments:
    seeds = len(values)
    variances = [float(np.mean(stderrs)) ** 2, float(np.var(values, ddof=1)) / seeds]
    df = statistics.satterthwaite(variances, [math.inf, seeds - 1]) if sum(variances) > 0 else seeds - 1
    return Moments(sum(values) / seeds, math.sqrt(sum(variances)), df)


def _correct(differences: dict[tuple[Line, Key], Difference | None]) -> None:
    known = [(key, difference) for key, difference in differences.items() if difference is not None]
    adjusted = statistics.holm([math.nan if d.p is None else d.p for _, d in known])
    for (key, difference), p in zip(known, adjusted, strict=True):
        differences[key] = replace(difference, p_holm=None if math.isnan(p) else p)


# ---------------------------------------------------------------------------------------------- names of lines


def label_columns(study: Study, lines: list[Line]) -> list[tuple[str, dict[Line, str]]]:
    """Heads and texts of the columns that say which line this is: λ first, then whatever else varies.

    Of several base models each has its hash, and what the runs that it is the base of have in common.
    """
    trained = [line for line in lines if not line.first.is_base]
    several = len(lines) - len(trained) > 1
    columns = [("λ", {line: _who(line.first, several=several) for line in lines})]

    def texts(of: Callable[[Run], str]) -> dict[Line, str]:
        found: dict[Run, set[str]] = defaultdict(set)
        for run, base in study.bases.items() if several else ():
            found[base].add(of(run))
        shared = {base: each.pop() if len(each) == 1 else "" for base, each in found.items()}
        return {line: shared.get(line.first, "") if line.first.is_base else of(line.first) for line in lines}

    if len({line.first.source for line in trained}) > 1:
        columns.append(("experiment", texts(lambda run: run.source)))
    for name in dict.fromkeys(key for line in trained for key, _ in line.first.others):
        values = texts(lambda run, name=name: _short(dict(run.others).get(name, "")))  # type: ignore[misc]
        if len({values[line] for line in trained}) > 1:
            columns.append((name.split(".")[-1], values))
    if len({line.first.fraction for line in trained if line.first.strength is not None}) > 1:
        columns.append(("step", {line: "" if line.first.is_base else str(line.first.step) for line in lines}))
    if any(len(line.runs) == 1 and line.first.seeds for line in lines):
        for name in dict.fromkeys(key for line in trained for key, _ in line.first.seeds):
            values = {line: str(dict(line.first.seeds).get(name, "")) if len(line.runs) == 1 else "" for line in lines}
            if len({values[line] for line in trained}) > 1:
                columns.append((name.split(".")[-1] if name == "train.seed" else name, values))
    return columns


def _who(run: Run, *, several: bool) -> str:
    """base; with some of its hash where there are several."""
    if run.is_base:
        return f"base {run.model_hash[:6]}" if several else "base"
    return run.name if run.strength is None else strength_text(run.strength)


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_short, value))
    return f"{value:g}".replace("e-0", "e-").replace("e+0", "e") if isinstance(value, float) else str(value)
