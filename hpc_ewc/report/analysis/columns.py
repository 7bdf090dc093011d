"""The analysis of one column: its documents are read, every run is resampled and paired with its base."""

from __future__ import annotations

import zlib
from collections import defaultdict

import numpy as np

from hpc_ewc.errors import ArtefactError
from hpc_ewc.report.analysis import statistics
from hpc_ewc.report.analysis.estimates import Analysis, Difference, Estimate, Half
from hpc_ewc.report.analysis.means import Mean
from hpc_ewc.report.analysis.pairs import (
    LN2,
    MAX_EXPONENT,
    difference_of_shares,
    difference_of_texts,
    matched,
    unpaired_difference,
)
from hpc_ewc.report.analysis.statistics import Array, Index
from hpc_ewc.report.study.collect import Problem
from hpc_ewc.report.study.columns import Column
from hpc_ewc.report.study.runs import Run
from hpc_ewc.report.study.samples import SampleReader, Scores

Z = 1.959964
"""Two-sided 95 % quantile of the normal distribution."""
Replicates = dict[Mean, dict[Run, Array]]
"""[resamples] of each mean and run, summed up column by column."""


class ColumnAnalysis:
    """Fills in the values and differences of one column; its documents are released afterwards."""

    def __init__(
        self, analysis: Analysis, column: Column, reader: SampleReader | None, resamples: int, seed: int
    ) -> None:
        self.analysis, self.column, self.reader = analysis, column, reader
        self.study = analysis.study
        self.resamples = resamples
        self.seed = (seed, zlib.crc32(column.cell.encode()))
        self.runs = [run for run in self.study.runs if (run, column) in self.study.records]
        self.means = [mean for mean in analysis.means if column in mean.columns]
        self.denominators: dict[str, str | None] = {column.metric: None}
        """Metrics that samples give, with what their sums are divided by; None: by the number of documents."""
        if column.kind == "perplexity":
            self.denominators = {"bits_per_byte": "bytes", "perplexity": "tokens"}
        self.bounds: dict[tuple[Run, str], tuple[float, float, float]] = {}
        """Bootstrap interval and standard error of the differences to the base, by run and metric."""

    def fill(self, replicates: Replicates) -> None:
        """Add this column to the analysis, and its part in the resampled means to `replicates`."""
        for run in self.runs:
            for result in self.study.records[run, self.column]["results"]:
                if self.column.shows(result):
                    estimate = Estimate(result["value"], result.get("stderr"), result["n"])
                    self.analysis.values.setdefault((run, self.column, result["metric"]), estimate)
        scores = self._scores()
        groups: dict[int, list[Run]] = defaultdict(list)
        for run, score in scores.items():
            groups[id(score.documents)].append(run)
        for members in groups.values():
            self._resample({run: scores[run] for run in members}, replicates)
        for run in self.runs:
            base = self.study.bases.get(run)
            if base in self.runs:
                self._compare(run, base, scores.get(run), scores.get(base))

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
                if read.documents.guess is not None and self.column.kind == "share" and read.is_binary:
                    self.analysis.chances.setdefault(self.column, read.documents.guess)
                if read.documents.clusters is not None:
                    self.analysis.clustered[self.column] = int(read.documents.clusters.max()) + 1
        return scores

    # ------------------------------------------------------------------------------------------ bootstrap

    def _resample(self, scores: dict[Run, Scores], replicates: Replicates) -> None:
        """Intervals of values and differences, of runs that answered the same documents."""
        runs = list(scores)
        first = scores[runs[0]]
        values = np.stack([scores[run].values for run in runs], axis=1)
        for metric, below in self.denominators.items():
            denominator = _denominator([getattr(scores[run], below) for run in runs]) if below else None
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
                self._add_interval(run, metric, scores[run], float(lows[place]), float(highs[place]))
            self._bound_differences(runs, metric, drawn)
            if metric == self.column.metric:
                self._add_to_means(runs, drawn, replicates)
        if self.column.kind == "share" or (
            self.column.kind == "perplexity" and self.column.language == self.study.target
        ):
            self._halve(runs, values, first)

    def _add_interval(self, run: Run, metric: str, scores: Scores, low: float, high: float) -> None:
        """Give an estimate its interval, and a standard error by cluster if documents share passages."""
        key = (run, self.column, metric)
        estimate = self.analysis.values.get(key)
        if estimate is None:
            return
        stderr = estimate.stderr
        if scores.documents.clusters is not None and self.column.kind != "perplexity":
            stderr = statistics.ratio(scores.values, None, scores.documents.clusters).stderr
        self.analysis.values[key] = Estimate(estimate.value, stderr, estimate.n, low, high)

    def _bound_differences(self, runs: list[Run], metric: str, drawn: Array) -> None:
        """Intervals of the differences to the base, all at once: one call per run takes longer than the quantiles."""
        places = {run: place for place, run in enumerate(runs)}
        bases = {run: places[base] for run in runs if (base := self.study.bases.get(run)) in places}
        for place in dict.fromkeys(bases.values()):
            members = [run for run, its in bases.items() if its == place]
            changes = np.take(drawn, [places[run] for run in members], axis=1) - drawn[:, [place]]
            lows, highs = statistics.interval(changes)
            errors = changes.std(axis=0, ddof=1)
            for run, low, high, error in zip(members, lows, highs, errors, strict=True):
                self.bounds[run, metric] = float(low), float(high), float(error)

    def _add_to_means(self, runs: list[Run], drawn: Array, replicates: Replicates) -> None:
        """Find the best runs of this column, and add its part to the resampled means."""
        if len(runs) == len(self.runs):
            values = [self.analysis.values[run, self.column, self.column.metric].value for run in runs]
            sign = 1 if self.column.higher_is_better else -1
            self.analysis.tied[self.column] = tied_with_best(runs, [sign * value for value in values], drawn)
        for mean in self.means:
            for place, run in enumerate(runs):
                part = drawn[:, place] / len(mean.columns)
                known = replicates[mean].get(run)
                replicates[mean][run] = part if known is None else known + part

    def _halve(self, runs: list[Run], values: Array, first: Scores) -> None:
        """Bits per byte of this text, or this task's part in the means, on either half of the documents."""
        is_text = self.column.kind == "perplexity"
        for choosing in (True, False):
            chosen = np.flatnonzero(first.documents.half == choosing)
            if not len(chosen):
                continue
            below = np.ones(len(chosen)) if not is_text or first.bytes is None else first.bytes[chosen]
            drawn = statistics.resampled(
                values[chosen],
                (*self.seed, int(choosing)),
                denominator=below,
                clusters=_codes(first.documents.clusters, chosen),
                resamples=self.resamples,
            )
            point = (values[chosen].sum(axis=0) / below.sum())[None]
            if is_text:
                drawn, point = drawn / LN2, point / LN2
            for what in [self.column] if is_text else self.means:
                count = len(what.columns) if isinstance(what, Mean) else 1
                for place, run in enumerate(runs):
                    empty = Half(0.0, np.zeros(len(drawn)), 0)
                    half = self.analysis.halves.setdefault((choosing, run, what), empty)
                    half.value += float(point[0, place]) / count
                    half.replicates = half.replicates + drawn[:, place] / count
                    half.documents += len(chosen)
                    half.tasks += 1

    # ------------------------------------------------------------------------------------------ pairs

    def _compare(self, run: Run, base: Run, mine: Scores | None, theirs: Scores | None) -> None:
        """The difference on the documents that both answered, normally all; unpaired if they share none."""
        if mine is not None and theirs is not None:
            a, b = matched(mine, theirs)
            if len(a):
                self._pair(run, mine, theirs, a, b)
                return
        for metric in self.denominators:
            values = [self.analysis.value(each, self.column, metric) for each in (run, base)]
            if values[0] is not None and values[1] is not None:
                difference = unpaired_difference(values[0], values[1], is_bits=metric == "bits_per_byte")
                self.analysis.differences[run, self.column, metric] = difference

    def _pair(self, run: Run, mine: Scores, theirs: Scores, a: Index, b: Index) -> None:
        clusters = _codes(mine.documents.clusters, a)
        for metric, below in self.denominators.items():
            if below is None:
                pair = difference_of_shares(mine.values[a], theirs.values[b], clusters)
            elif (getattr(mine, below)[a] != getattr(theirs, below)[b]).any():
                self._note_other_tokens()
                continue
            else:
                units = getattr(mine, below)[a]
                pair = difference_of_texts(mine.values[a], theirs.values[b], units, clusters, metric)
            low, high, error = self.bounds.get((run, metric), (None, None, None))
            self.analysis.differences[run, self.column, metric] = Difference(
                low=low, high=high, resampled_stderr=error, **pair
            )

    def _note_other_tokens(self) -> None:
        note = (
            f"differences in perplexity of {self.column.cell}: tokenizers cut its texts into different tokens, compare "
            "bits per byte"
        )
        if note not in self.analysis.left_out:
            self.analysis.left_out.append(note)


def tied_with_best(runs: list[Run], goodness: list[float], drawn: Array) -> set[Run]:
    """The best run, with all whose distance to it is within 1.96 of that distance's standard error.

    Args:
        runs: the runs of a column.
        goodness: value of each run, larger is better.
        drawn: [resamples, runs] the values under the same resamples of documents, so distances are paired.
    """
    best = int(np.argmax(goodness))
    errors = (drawn - drawn[:, [best]]).std(axis=0)
    return {run for run, good, error in zip(runs, goodness, errors, strict=True) if goodness[best] - good <= Z * error}


def _codes(clusters: Index | None, chosen: Index) -> Index | None:
    """Cluster codes 0…G−1 of some documents."""
    return None if clusters is None else np.unique(clusters[chosen], return_inverse=True)[1]


def _denominator(each: list[Array]) -> Array:
    """[n] what every run's sums are divided by; [n, R] if it differs, as tokens of different tokenizers do."""
    return each[0] if all(np.array_equal(one, each[0]) for one in each[1:]) else np.stack(each, axis=1)


def _in_units(drawn: Array, metric: str) -> Array:
    """Nats per byte or token in the metric's own unit; shares unchanged."""
    if metric == "bits_per_byte":
        return drawn / LN2
    return np.exp(np.minimum(drawn, MAX_EXPONENT)) if metric == "perplexity" else drawn
