"""The numbers of an analysis: values and differences with their uncertainty."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from hpc_ewc.report.analysis.means import Mean
from hpc_ewc.report.analysis.statistics import Array
from hpc_ewc.report.study.columns import Column
from hpc_ewc.report.study.runs import Run
from hpc_ewc.report.study.study import Study


@dataclass(frozen=True)
class Estimate:
    """A value, its standard error and 95 % interval; an error or interval that is not known is None."""

    value: float
    stderr: float | None
    n: int
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Difference:
    """A run minus its base."""

    value: float
    stderr: float
    n: int
    """Documents that both answered."""
    method: str
    """McNemar | paired t | clustered t | unpaired | mean over tasks."""
    df: float = math.inf
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    """Over its family: primary metrics of run × cell, or means of run × language."""
    lost: int | None = None
    gained: int | None = None
    """Documents that only the base (lost) or only the run (gained) had right."""
    detectable: float | None = None
    """Minimum detectable effect at 80 % power; None if there is no standard error."""
    resampled_stderr: float | None = None
    """By the bootstrap of the pairs."""
    relative: float | None = None
    """For bits per byte: the run's over the base's, less 1."""
    relative_stderr: float = math.nan
    """Linearised error of that ratio: both values are measured on the same texts, neither is exact."""

    @property
    def is_significant(self) -> bool:
        """Whether p < 0.05 after Holm's correction."""
        return self.p_holm is not None and self.p_holm < 0.05

    @property
    def bootstrapped(self) -> Difference:
        """The same with the bootstrap's standard error, if documents were resampled."""
        return self if self.resampled_stderr is None else replace(self, stderr=self.resampled_stderr)


@dataclass
class Half:
    """A mean over tasks, or bits per byte of a text, on half of the documents."""

    value: float
    replicates: Array
    """[resamples] the same under resampling; runs share their resamples."""
    documents: int
    tasks: int = 0
    """Tasks of the mean that are in it; the others could not be paired by document."""


@dataclass
class Analysis:
    """Every number of the tables. Keys are (run, column, metric) and (run, mean)."""

    study: Study
    means: list[Mean]
    values: dict[tuple[Run, Column, str], Estimate] = field(default_factory=dict)
    differences: dict[tuple[Run, Column, str], Difference] = field(default_factory=dict)
    mean_values: dict[tuple[Run, Mean], Estimate] = field(default_factory=dict)
    mean_differences: dict[tuple[Run, Mean], Difference] = field(default_factory=dict)
    chances: dict[Column, float] = field(default_factory=dict)
    """Score of guessing: from the catalogue, else from the number of answers that each document offers."""
    left_out: list[str] = field(default_factory=list)
    """Parts that are left out because a package is missing or values cannot be compared."""
    clustered: dict[Column, int] = field(default_factory=dict)
    """Number of clusters, in columns whose documents share passages."""
    tied: dict[Column | Mean, set[Run]] = field(default_factory=dict)
    """The best run of a column, with all that do not differ from it on the same documents (95 %)."""
    halves: dict[tuple[bool, Run, Mean | Column], Half] = field(default_factory=dict)
    """Means, and bits per byte of the new language: on the half of the documents on which a λ is chosen (True), and on
    the other."""

    def mean(self, language: str) -> Mean | None:
        """The first mean of a language: the one that the summary shows."""
        return next((mean for mean in self.means if mean.language == language), None)

    def value(self, run: Run, what: Column | Mean, metric: str | None = None) -> Estimate | None:
        """The value of a run in a column, by its primary metric or another, or its mean over tasks."""
        if isinstance(what, Mean):
            return self.mean_values.get((run, what))
        return self.values.get((run, what, metric or what.metric))

    def difference(self, run: Run, what: Column | Mean, metric: str | None = None) -> Difference | None:
        """As `value`, the difference to the base."""
        if isinstance(what, Mean):
            return self.mean_differences.get((run, what))
        return self.differences.get((run, what, metric or what.metric))
