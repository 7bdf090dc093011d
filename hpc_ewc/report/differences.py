"""Each run against its base: paired by document, column by column and over tasks."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hpc_ewc.errors import ArtefactError
from hpc_ewc.report import statistics
from hpc_ewc.report.collect import Problem
from hpc_ewc.report.means import Mean, means
from hpc_ewc.report.samples import SampleReader, Scores
from hpc_ewc.report.statistics import Array, Moments
from hpc_ewc.report.study import Column, Run, Study

LN2 = math.log(2)


@dataclass(frozen=True)
class Estimate:
    """A value, its standard error and 95 % interval; the latter two are None where nothing gives them."""

    value: float
    stderr: float | None
    n: int
    low: float | None = None
    high: float | None = None
    df: float = math.inf


@dataclass(frozen=True)
class Difference:
    """A run minus its base."""

    value: float
    stderr: float
    n: int
    """Documents both were asked."""
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
    """Documents that the base alone, or the run alone, had right."""
    detectable: float | None = None
    """Smallest true difference that would have been found with probability 0.8."""
    log_ratio: float | None = None
    """Of perplexities: difference of mean −log p, in nats."""

    @property
    def is_significant(self) -> bool:
        """At 5 % after Holm's correction."""
        return self.p_holm is not None and self.p_holm < 0.05


@dataclass
class Analysis:
    """Every number of the tables. Keys are (run, column, metric) and (run, mean)."""

    study: Study
    means: list[Mean]
    values: dict[tuple[Run, Column, str], Estimate] = field(default_factory=dict)
    differences: dict[tuple[Run, Column, str], Difference] = field(default_factory=dict)
    mean_values: dict[tuple[Run, Mean], Estimate] = field(default_factory=dict)
    mean_differences: dict[tuple[Run, Mean], Difference] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    """Parts that are not here because a package is missing, or was not asked for."""
    clustered: dict[Column, int] = field(default_factory=dict)
    """Number of clusters, in columns whose documents share passages."""

    def mean(self, language: str) -> Mean | None:
        """The first mean of a language: the one that the summary shows."""
        return next((mean for mean in self.means if mean.language == language), None)


def analyse(study: Study, *, paired: bool = True, resamples: int = statistics.RESAMPLES, seed: int = 0) -> Analysis:
    """Values, differences and their uncertainty.

    Args:
        study: runs, columns, records.
        paired: read samples; else differences are unpaired and wider.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    analysis = Analysis(study, means(study))
    paired = paired and _packages(analysis)
    reader = SampleReader(study)
    replicates: dict[Mean, dict[Run, Array]] = defaultdict(dict)
    for column in study.columns:
        _Column(analysis, column, reader if paired else None, resamples, seed).fill(replicates)
    for mean in analysis.means:
        _fill_mean(analysis, mean, replicates[mean])
    _correct(analysis)
    return analysis


def _packages(analysis: Analysis) -> bool:
    from importlib.util import find_spec

    if find_spec("zstandard") is None:
        analysis.left_out.append(
            "differences are unpaired and have no intervals: samples cannot be read without zstandard (pip install it)"
        )
        return False
    if find_spec("scipy") is None:
        analysis.left_out.append("p-values are left out: scipy is not installed")
    return True


# ---------------------------------------------------------------------------------------------- one column


class _Column:
    """The values and differences of one column: its documents are read, resampled, and let go."""

    def __init__(
        self, analysis: Analysis, column: Column, reader: SampleReader | None, resamples: int, seed: int
    ) -> None:
        self.analysis, self.column, self.reader = analysis, column, reader
        self.study = analysis.study
        self.resamples = resamples
        self.seed = (seed, zlib.crc32(column.cell.encode()))
        self.runs = [run for run in self.study.runs if (run, column) in self.study.records]

    def fill(self, replicates: dict[Mean, dict[Run, Array]]) -> None:
        for run in self.runs:
            self._recorded(run)
        scores = self._scores()
        groups: dict[int, list[Run]] = defaultdict(list)
        for run, score in scores.items():
            groups[id(score.documents)].append(run)
        for members in groups.values():
            self._resample({run: scores[run] for run in members}, replicates)
        for run in self.runs:
            base = self.study.bases.get(run)
            if base is None or base not in self.runs:
                continue
            if run in scores and base in scores:
                self._pair(run, scores[run], scores[base])
            else:
                self._unpaired(run, base)

    def _recorded(self, run: Run) -> None:
        record = self.study.records[run, self.column]
        for result in record["results"]:
            if result.get("subset", "") == "" and self._is_shown(result):
                estimate = Estimate(result["value"], result.get("stderr"), result["n"])
                self.analysis.values.setdefault((run, self.column, result["metric"]), estimate)

    def _is_shown(self, result: dict[str, Any]) -> bool:
        """GSM8K gives exact_match by two filters; only the primary one is the column's value."""
        other = result["metric"] != self.column.metric
        return bool(other or result.get("filter", "none") == self.column.filter)

    def _scores(self) -> dict[Run, Scores]:
        scores: dict[Run, Scores] = {}
        for run in self.runs if self.reader else ():
            assert self.reader is not None
            try:
                read = self.reader.scores(run, self.column)
            except ArtefactError as error:
                record = self.study.records[run, self.column]
                where = record["where"].removesuffix(".json") + ".samples.jsonl.zst"
                self.study.problems.append(Problem(where, str(error).removeprefix(f"{record['samples_path']}: ")))
                continue
            if read is not None:
                scores[run] = read
                if read.documents.clusters is not None:
                    self.analysis.clustered[self.column] = int(read.documents.clusters.max()) + 1
        return scores

    # ------------------------------------------------------------------------------------------ bootstrap

    def _measures(self) -> dict[str, str | None]:
        """Metrics that samples give, with what they are divided by."""
        if self.column.kind == "perplexity":
            return {"bits_per_byte": "bytes", "perplexity": "tokens"}
        return {self.column.metric: None}

    def _resample(self, scores: dict[Run, Scores], replicates: dict[Mean, dict[Run, Array]]) -> None:
        """Intervals of values and differences, of runs that were asked the same documents."""
        runs = list(scores)
        first = scores[runs[0]]
        values = np.stack([scores[run].values for run in runs], axis=1)
        for metric, below in self._measures().items():
            denominator = getattr(first, below) if below else None
            drawn = statistics.resampled(
                values,
                self.seed,
                denominator=denominator,
                clusters=first.documents.clusters,
                resamples=self.resamples,
            )
            drawn = _in_units(drawn, metric)
            lows, highs = statistics.interval(drawn)
            for place, run in enumerate(runs):
                self._interval(run, metric, scores[run], float(lows[place]), float(highs[place]))
                base = self.study.bases.get(run)
                if base is not None and base in scores:
                    low, high = statistics.interval(drawn[:, [place]] - drawn[:, [runs.index(base)]])
                    self._keep(run, metric, low=float(low[0]), high=float(high[0]))
            for mean in self.analysis.means:
                if self.column in mean.columns and metric == self.column.metric:
                    for place, run in enumerate(runs):
                        share = drawn[:, place] / len(mean.columns)
                        known = replicates[mean].get(run)
                        replicates[mean][run] = share if known is None else known + share

    def _interval(self, run: Run, metric: str, scores: Scores, low: float, high: float) -> None:
        """The estimate's interval, and its standard error by cluster where documents share a passage."""
        key = (run, self.column, metric)
        estimate = self.analysis.values.get(key)
        if estimate is None:
            return
        estimate = dataclasses.replace(estimate, low=low, high=high)
        if scores.documents.clusters is not None and self.column.kind != "perplexity":
            moments = statistics.ratio(scores.values, None, scores.documents.clusters)
            estimate = dataclasses.replace(estimate, stderr=moments.stderr, df=moments.df)
        self.analysis.values[key] = estimate

    def _keep(self, run: Run, metric: str, **fields: Any) -> None:
        key = (run, self.column, metric)
        known = self.analysis.differences.get(key, Difference(math.nan, math.nan, 0, ""))
        self.analysis.differences[key] = dataclasses.replace(known, **fields)

    # ------------------------------------------------------------------------------------------ pairs

    def _pair(self, run: Run, mine: Scores, theirs: Scores) -> None:
        """Difference on the documents both have; normally all."""
        a, b = _matched(mine, theirs)
        if not len(a):
            self._unpaired(run, self.study.bases[run])
            return
        clusters = (
            None if mine.documents.clusters is None else np.unique(mine.documents.clusters[a], return_inverse=True)[1]
        )
        for metric, below in self._measures().items():
            if below is None:
                pair = _shares(mine.values[a], theirs.values[b], clusters)
            else:
                pair = _texts(mine.values[a], theirs.values[b], getattr(mine, below)[a], clusters, metric)
            self._keep(run, metric, n=len(a), **pair)

    def _unpaired(self, run: Run, base: Run) -> None:
        for metric in self._measures():
            mine = self.analysis.values.get((run, self.column, metric))
            theirs = self.analysis.values.get((base, self.column, metric))
            if mine is None or theirs is None:
                continue
            if mine.stderr is None or theirs.stderr is None:
                stderr = math.nan
            else:
                stderr = math.hypot(mine.stderr, theirs.stderr)
            moments = Moments(mine.value - theirs.value, stderr, math.inf)
            self._keep(
                run,
                metric,
                value=moments.value,
                stderr=stderr,
                n=min(mine.n, theirs.n),
                method="unpaired",
                p=_optional(statistics.student, moments),
                detectable=statistics.minimum_detectable(stderr, mine.n, binary=False),
                low=None,
                high=None,
            )


def _in_units(drawn: Array, metric: str) -> Array:
    """From nats by byte or token to the metric's own unit; a share is what it is."""
    if metric == "bits_per_byte":
        return drawn / LN2
    return np.exp(np.minimum(drawn, 700.0)) if metric == "perplexity" else drawn


def _shares(a: Array, b: Array, clusters: Any) -> dict[str, Any]:
    """Fields of the difference of two scores in [0, 1] on the same documents."""
    moments = statistics.ratio(a - b, None, clusters)
    binary = bool(np.isin(a, (0.0, 1.0)).all() and np.isin(b, (0.0, 1.0)).all())
    fields = _moments(moments) | {
        "method": "paired t" if clusters is None else "clustered t",
        "p": _optional(statistics.student, moments),
        "detectable": statistics.minimum_detectable(moments.stderr, len(a), binary=binary),
    }
    if binary:
        lost, gained = int(((a == 0) & (b == 1)).sum()), int(((a == 1) & (b == 0)).sum())
        fields |= {"lost": lost, "gained": gained}
        if clusters is None:
            fields |= {"method": "McNemar", "p": _optional(statistics.mcnemar, lost, gained)}
    return fields


def _texts(a: Array, b: Array, below: Array, clusters: Any, metric: str) -> dict[str, Any]:
    """Fields of the difference of two perplexities or bits per byte on the same texts; tested on −log p.

    Args:
        a: [n] nats of the run.
        b: [n] nats of its base.
        below: [n] tokens or bytes, the same for both.
        clusters: [n] codes, or None.
        metric: bits_per_byte or perplexity: the unit.
    """
    nats = statistics.ratio(a - b, below, clusters)
    if metric == "bits_per_byte":
        moments = Moments(nats.value / LN2, nats.stderr / LN2, nats.df)
    else:
        mine, theirs = (float(x.sum() / below.sum()) for x in (a, b))
        up, down = math.exp(min(mine, 700.0)), math.exp(min(theirs, 700.0))
        # delta method: d exp(R) = exp(R) dR, on the same documents
        change = statistics.ratio(up * (a - mine * below) - down * (b - theirs * below), below, clusters)
        moments = Moments(up - down, change.stderr, change.df)
    return _moments(moments) | {
        "method": "paired t" if clusters is None else "clustered t",
        "p": _optional(statistics.student, nats),
        "detectable": statistics.minimum_detectable(moments.stderr, len(a), binary=False),
        "log_ratio": nats.value,
    }


def _moments(moments: Moments) -> dict[str, Any]:
    return {"value": moments.value, "stderr": moments.stderr, "df": moments.df}


def _matched(mine: Scores, theirs: Scores) -> tuple[Any, Any]:
    """Positions of the documents that both have."""
    if mine.documents is theirs.documents:
        everything = np.arange(len(mine.values))
        return everything, everything
    place = {key: at for at, key in enumerate(theirs.documents.keys)}
    pairs = [(at, place[key]) for at, key in enumerate(mine.documents.keys) if key in place]
    return np.array([a for a, _ in pairs], dtype=np.int64), np.array([b for _, b in pairs], dtype=np.int64)


def _optional(test: Any, *arguments: Any) -> float | None:
    """A p-value, or None without scipy or without a standard error."""
    try:
        p: float = test(*arguments)
    except ModuleNotFoundError:
        return None
    return None if math.isnan(p) else p


# ---------------------------------------------------------------------------------------------- over tasks


def _fill_mean(analysis: Analysis, mean: Mean, replicates: dict[Run, Array]) -> None:
    study, count = analysis.study, len(mean.columns)
    whole = [run for run in study.runs if mean.is_whole(study, run)]
    for run in whole:
        parts = [analysis.values[run, column, column.metric] for column in mean.columns]
        stderrs = [part.stderr for part in parts if part.stderr is not None]
        stderr = math.sqrt(sum(s**2 for s in stderrs)) / count if len(stderrs) == count else None
        value = sum(part.value for part in parts) / count
        low, high = _quantiles(replicates, run, None, mean, analysis)
        analysis.mean_values[run, mean] = Estimate(value, stderr, sum(part.n for part in parts), low, high)
    for run in whole:
        base = study.bases.get(run)
        if base not in whole:
            continue
        each = [analysis.differences[run, column, column.metric] for column in mean.columns]
        moments = statistics.mean_of([Moments(d.value, d.stderr, d.df) for d in each])
        low, high = _quantiles(replicates, run, base, mean, analysis)
        analysis.mean_differences[run, mean] = Difference(
            value=moments.value,
            stderr=moments.stderr,
            n=sum(d.n for d in each),
            method="mean over tasks" if all(d.method != "unpaired" for d in each) else "unpaired",
            df=moments.df,
            low=low,
            high=high,
            p=_optional(statistics.student, moments),
            detectable=statistics.minimum_detectable(moments.stderr, 1, binary=False),
        )


def _quantiles(
    replicates: dict[Run, Array], run: Run, base: Run | None, mean: Mean, analysis: Analysis
) -> tuple[float | None, float | None]:
    """Of a mean, or of its difference, where every task of both was resampled on the same documents."""
    for column in mean.columns:
        for other in (run, base):
            estimate = analysis.values.get((other, column, column.metric)) if other else None
            if other is not None and (estimate is None or estimate.low is None):
                return None, None
        if base is not None and analysis.differences[run, column, column.metric].low is None:
            return None, None
    drawn = replicates[run] if base is None else replicates[run] - replicates[base]
    low, high = statistics.interval(drawn[:, None])
    return float(low[0]), float(high[0])


def _correct(analysis: Analysis) -> None:
    """Holm over the primary metric of each run × cell; over each run × language for the means."""
    first = [key for key in analysis.differences if key[2] == key[1].metric]
    _holm_into(analysis.differences, first)
    _holm_into(analysis.mean_differences, list(analysis.mean_differences))


def _holm_into(differences: dict[Any, Difference], keys: list[Any]) -> None:
    values = [differences[key].p for key in keys]
    adjusted = statistics.holm([math.nan if p is None else p for p in values])
    for key, p in zip(keys, adjusted, strict=True):
        if not math.isnan(p):
            differences[key] = dataclasses.replace(differences[key], p_holm=p)
