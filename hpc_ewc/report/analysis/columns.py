"""One column: its documents are read, every run is resampled on them and paired with its base, and they are let go."""

from __future__ import annotations

import zlib
from collections import defaultdict
from typing import Any

import numpy as np

from hpc_ewc.errors import ArtefactError
from hpc_ewc.report.analysis import statistics
from hpc_ewc.report.analysis.estimates import Analysis, Difference, Estimate, Half
from hpc_ewc.report.analysis.means import Mean
from hpc_ewc.report.analysis.pairs import LN2, matched, shares, texts, unpaired
from hpc_ewc.report.analysis.statistics import Array
from hpc_ewc.report.study.collect import Problem
from hpc_ewc.report.study.columns import Column
from hpc_ewc.report.study.runs import Run
from hpc_ewc.report.study.samples import SampleReader, Scores

Z = 1.959964
"""95 %, two-sided."""


class ColumnAnalysis:
    """The values and differences of one column: its documents are read, resampled, and let go."""

    def __init__(
        self, analysis: Analysis, column: Column, reader: SampleReader | None, resamples: int, seed: int
    ) -> None:
        self.analysis, self.column, self.reader = analysis, column, reader
        self.study = analysis.study
        self.resamples = resamples
        self.seed = (seed, zlib.crc32(column.cell.encode()))
        self.runs = [run for run in self.study.runs if (run, column) in self.study.records]
        self.bounds: dict[tuple[Run, str], tuple[float, float, float]] = {}
        """Of differences to the base, by run and metric: 95 %, and the standard error, by the bootstrap."""

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
                if read.documents.guess is not None and self.column.kind == "share" and read.is_binary:
                    self.analysis.chances.setdefault(self.column, read.documents.guess)
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
                self._interval(run, metric, scores[run], float(lows[place]), float(highs[place]))
            self._difference_intervals(runs, metric, drawn)
            if metric == self.column.metric:
                self._primary(runs, drawn, replicates)
        if self.column.kind == "share":
            self._halve(runs, values, first)
        elif self.column.kind == "perplexity" and self.column.language == self.study.target:
            self._halve_text(runs, values, first)

    def _difference_intervals(self, runs: list[Run], metric: str, drawn: Array) -> None:
        """Of each run against its base, all at once: a call a run takes longer than the quantiles themselves."""
        places = {run: place for place, run in enumerate(runs)}
        bases = {run: places[base] for run in runs if (base := self.study.bases.get(run)) in places}
        for place in dict.fromkeys(bases.values()):
            members = [run for run, its in bases.items() if its == place]
            changes = np.take(drawn, [places[run] for run in members], axis=1) - drawn[:, [place]]
            lows, highs = statistics.interval(changes)
            errors = changes.std(axis=0, ddof=1)
            for run, low, high, error in zip(members, lows, highs, errors, strict=True):
                self.bounds[run, metric] = float(low), float(high), float(error)

    def _primary(self, runs: list[Run], drawn: Array, replicates: dict[Mean, dict[Run, Array]]) -> None:
        """Who is best, and this column's part in the means."""
        if len(runs) == len(self.runs):
            values = [self.analysis.values[run, self.column, self.column.metric].value for run in runs]
            sign = 1 if self.column.higher_is_better else -1
            self.analysis.tied[self.column] = tied_with_best(runs, [sign * value for value in values], drawn)
        for mean in self.analysis.means:
            if self.column in mean.columns:
                for place, run in enumerate(runs):
                    share = drawn[:, place] / len(mean.columns)
                    known = replicates[mean].get(run)
                    replicates[mean][run] = share if known is None else known + share

    def _halve(self, runs: list[Run], values: Array, first: Scores) -> None:
        """This column's part in the means on either half of the documents."""
        for choosing in (True, False):
            chosen = first.documents.half == choosing
            if not chosen.any():
                continue
            clusters = first.documents.clusters
            clusters = None if clusters is None else np.unique(clusters[chosen], return_inverse=True)[1]
            drawn = statistics.resampled(
                values[chosen], (*self.seed, int(choosing)), clusters=clusters, resamples=self.resamples
            )
            point = values[chosen].mean(axis=0)
            for mean in self.analysis.means:
                for place, run in enumerate(runs) if self.column in mean.columns else ():
                    self._add_half(choosing, run, mean, float(point[place]), drawn[:, place], int(chosen.sum()))

    def _halve_text(self, runs: list[Run], values: Array, first: Scores) -> None:
        """Bits per byte of this text on either half of its documents."""
        assert first.bytes is not None
        for choosing in (True, False):
            chosen = first.documents.half == choosing
            if not chosen.any():
                continue
            below = first.bytes[chosen]
            drawn = statistics.resampled(
                values[chosen], (*self.seed, int(choosing)), denominator=below, resamples=self.resamples
            )
            point, documents = values[chosen].sum(axis=0) / below.sum() / LN2, int(chosen.sum())
            for place, run in enumerate(runs):
                half = Half(float(point[place]), drawn[:, place] / LN2, documents, 1)
                self.analysis.halves[choosing, run, self.column] = half

    def _add_half(self, choosing: bool, run: Run, mean: Mean, value: float, drawn: Array, documents: int) -> None:
        key, count = (choosing, run, mean), len(mean.columns)
        half = self.analysis.halves.setdefault(key, Half(0.0, np.zeros(len(drawn)), 0))
        half.value += value / count
        half.replicates = half.replicates + drawn / count
        half.documents += documents
        half.tasks += 1

    def _interval(self, run: Run, metric: str, scores: Scores, low: float, high: float) -> None:
        """The estimate's interval, and its standard error by cluster where documents share a passage."""
        key = (run, self.column, metric)
        estimate = self.analysis.values.get(key)
        if estimate is None:
            return
        stderr = estimate.stderr
        if scores.documents.clusters is not None and self.column.kind != "perplexity":
            stderr = statistics.ratio(scores.values, None, scores.documents.clusters).stderr
        self.analysis.values[key] = Estimate(estimate.value, stderr, estimate.n, low, high)

    # ------------------------------------------------------------------------------------------ pairs

    def _pair(self, run: Run, mine: Scores, theirs: Scores) -> None:
        """Difference on the documents both have; normally all."""
        a, b = matched(mine, theirs)
        if not len(a):
            self._unpaired(run, self.study.bases[run])
            return
        clusters = (
            None if mine.documents.clusters is None else np.unique(mine.documents.clusters[a], return_inverse=True)[1]
        )
        for metric, below in self._measures().items():
            if below is not None and (getattr(mine, below)[a] != getattr(theirs, below)[b]).any():
                self._say_of_tokens()
                continue
            if below is None:
                pair = shares(mine.values[a], theirs.values[b], clusters)
            else:
                pair = texts(mine.values[a], theirs.values[b], getattr(mine, below)[a], clusters, metric)
            low, high, error = self.bounds.get((run, metric), (None, None, None))
            self.analysis.differences[run, self.column, metric] = Difference(
                n=len(a), low=low, high=high, resampled_stderr=error, **pair
            )

    def _say_of_tokens(self) -> None:
        said = (
            f"differences in perplexity of {self.column.cell}: tokenizers cut its texts into different tokens, compare "
            "bits per byte"
        )
        if said not in self.analysis.left_out:
            self.analysis.left_out.append(said)

    def _unpaired(self, run: Run, base: Run) -> None:
        for metric in self._measures():
            mine = self.analysis.values.get((run, self.column, metric))
            theirs = self.analysis.values.get((base, self.column, metric))
            if mine is not None and theirs is not None:
                difference = unpaired(mine, theirs, is_bits=metric == "bits_per_byte")
                self.analysis.differences[run, self.column, metric] = difference


def tied_with_best(runs: list[Run], goodness: list[float], drawn: Array) -> set[Run]:
    """The best run, with all whose distance to it is within 1.96 of that distance's standard error.

    Args:
        runs: of a column.
        goodness: value of each, larger is better.
        drawn: [resamples, runs] the values under the same resamples of documents, so distances are paired.
    """
    best = int(np.argmax(goodness))
    errors = (drawn - drawn[:, [best]]).std(axis=0)
    return {run for run, good, error in zip(runs, goodness, errors, strict=True) if goodness[best] - good <= Z * error}


def _denominator(each: list[Array]) -> Array:
    """[n] what every run's sums are divided by; [n, R] where it differs, as tokens of different tokenizers do."""
    return each[0] if all(np.array_equal(one, each[0]) for one in each[1:]) else np.stack(each, axis=1)


def _in_units(drawn: Array, metric: str) -> Array:
    """From nats by byte or token to the metric's own unit; a share is what it is."""
    if metric == "bits_per_byte":
        return drawn / LN2
    return np.exp(np.minimum(drawn, 700.0)) if metric == "perplexity" else drawn
