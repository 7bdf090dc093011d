"""The rows of the tables: one per checkpoint, or one per setting if it was repeated with several seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hpc_ewc.report.analysis import statistics
from hpc_ewc.report.analysis.differences import correct
from hpc_ewc.report.analysis.estimates import Analysis, Difference, Estimate
from hpc_ewc.report.analysis.means import Mean
from hpc_ewc.report.study.columns import Column
from hpc_ewc.report.study.runs import Run
from hpc_ewc.report.study.study import Study
from hpc_ewc.report.tables.formats import strength_text


@dataclass(frozen=True)
class Line:
    """Runs that differ only in their seeds; mostly one."""

    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        return self.runs[0]


@dataclass(frozen=True)
class Spread:
    """Standard deviation over seeds, and their number."""

    deviation: float
    seeds: int


class Lines:
    """Values and differences by line. With several seeds a value is their mean, as `mean_over_seeds` computes it."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.study = analysis.study
        groups: dict[object, list[Run]] = defaultdict(list)
        for run in self.study.runs:
            groups[run.setting].append(run)
        self.lines = [Line(tuple(runs)) for runs in groups.values()]
        self.bases = [line for line in self.lines if line.first.is_base]
        self.repeated = any(len(line.runs) > 1 for line in self.lines)
        self.labels = label_columns(self.study, self.lines)
        columns: list[Column | Mean] = [*self.study.columns, *analysis.means]
        self._differences = {
            (line, what): self._pooled_difference(line, what, None) for line in self.lines for what in columns
        }
        for family in (Column, Mean) if self.repeated else ():
            correct(self._differences, [k for k, d in self._differences.items() if d and isinstance(k[1], family)])

    def name(self, line: Line) -> str:
        """A line's name in a sentence: base, or λ = 1e6, step 90."""
        (_, who), *others = self.labels
        parts = [f"λ = {who[line]}" if line.first.strength is not None else who[line]]
        return ", ".join([*parts, *(f"{head} {texts[line]}" for head, texts in others if texts[line])])

    def setting(self, line: Line) -> str:
        """The settings that a line shares with those that differ only in λ: learning_rate 0.0002, seed 1."""
        _, *others = self.labels
        return ", ".join(f"{head} {texts[line]}" for head, texts in others if texts[line] and head != "step")

    def value(
        self, line: Line, what: Column | Mean, metric: str | None = None
    ) -> tuple[Estimate | None, Spread | None]:
        """The value in a column, by its primary metric or another, or the mean over tasks."""
        return pooled([self.analysis.value(run, what, metric) for run in line.runs])

    def difference(self, line: Line, what: Column | Mean, metric: str | None = None) -> Difference | None:
        """The difference to the base; one in a metric that is not the column's primary one is in no family."""
        if metric is None or isinstance(what, Mean) or metric == what.metric:
            return self._differences[line, what]
        return self._pooled_difference(line, what, metric)

    def _pooled_difference(self, line: Line, what: Column | Mean, metric: str | None) -> Difference | None:
        """Over several seeds: tested by Student's t with Satterthwaite's degrees of freedom."""
        each = [self.analysis.difference(run, what, metric) for run in line.runs]
        known = [difference for difference in each if difference is not None]
        if len(known) < len(each) or len(known) < 2:
            return known[0] if len(each) == len(known) == 1 else None
        moments = statistics.mean_over_seeds([d.value for d in known], [d.stderr for d in known])
        ratios = [d.relative for d in known if d.relative is not None]
        relative = None
        if len(ratios) == len(known):
            relative = statistics.mean_over_seeds(ratios, [d.relative_stderr for d in known])
        return Difference(
            value=moments.value,
            stderr=moments.stderr,
            n=known[0].n,
            method=f"{known[0].method}, {len(known)} seeds",
            relative=None if relative is None else relative.value,
            relative_stderr=np.nan if relative is None else relative.stderr,
            df=moments.df,
            p=statistics.p_value(statistics.student, moments),
            detectable=statistics.minimum_detectable(moments.stderr, known[0].n, binary=False),
        )


def pooled(each: list[Estimate | None]) -> tuple[Estimate | None, Spread | None]:
    """The mean of one estimate per seed, with their spread; None if one is missing."""
    known = [estimate for estimate in each if estimate is not None]
    if len(known) < len(each) or not known:
        return None, None
    if len(known) == 1:
        return known[0], None
    values = [estimate.value for estimate in known]
    stderrs = [estimate.stderr for estimate in known if estimate.stderr is not None]
    with np.errstate(over="ignore", invalid="ignore"):
        spread = Spread(float(np.std(values, ddof=1)), len(values))
    if len(stderrs) < len(known):
        return Estimate(sum(values) / len(values), None, known[0].n), spread
    moments = statistics.mean_over_seeds(values, stderrs)
    return Estimate(moments.value, moments.stderr, known[0].n), spread


# ---------------------------------------------------------------------------------------------- names of lines


def label_columns(study: Study, lines: list[Line]) -> list[tuple[str, dict[Line, str]]]:
    """Heads and texts of the label columns: λ first, then whatever else varies.

    If there are several base models, each has its hash, and whatever the runs trained from it have in common.
    """
    trained = [line for line in lines if not line.first.is_base]
    several = len(lines) - len(trained) > 1
    columns = [("λ", {line: _name(line.first, with_hash=several) for line in lines})]

    def texts(describe: Callable[[Run], str]) -> dict[Line, str]:
        found: dict[Run, set[str]] = defaultdict(set)
        for run, base in study.bases.items() if several else ():
            found[base].add(describe(run))
        shared = {base: each.pop() if len(each) == 1 else "" for base, each in found.items()}
        return {line: shared.get(line.first, "") if line.first.is_base else describe(line.first) for line in lines}

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


def _name(run: Run, *, with_hash: bool) -> str:
    if run.is_base:
        return f"base {run.model_hash[:6]}" if with_hash else "base"
    return run.name if run.strength is None else strength_text(run.strength)


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_short, value))
    return f"{value:g}".replace("e-0", "e-").replace("e+0", "e") if isinstance(value, float) else str(value)
