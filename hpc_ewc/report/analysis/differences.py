"""Differences of each run to its base: paired by document, per column and over tasks, with Holm's correction."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from importlib.util import find_spec
from typing import Any

import numpy as np

from hpc_ewc.report.analysis import statistics
from hpc_ewc.report.analysis.columns import ColumnAnalysis, tied_with_best
from hpc_ewc.report.analysis.estimates import Analysis, Difference, Estimate
from hpc_ewc.report.analysis.means import Mean, means
from hpc_ewc.report.analysis.statistics import Array, Moments
from hpc_ewc.report.study.runs import Run
from hpc_ewc.report.study.samples import SampleReader
from hpc_ewc.report.study.study import Study


def analyse(study: Study, *, paired: bool = True, resamples: int = statistics.RESAMPLES, seed: int = 0) -> Analysis:
    """All values and differences of a study, with their uncertainty.

    Args:
        study: runs, columns, records.
        paired: read samples; otherwise differences are unpaired and wider.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.
    """
    known = {column: column.chance for column in study.columns if column.chance is not None}
    analysis = Analysis(study, means(study), chances=known)
    if paired and find_spec("zstandard") is None:
        paired = False
        analysis.left_out.append(
            "differences are unpaired and have no intervals: samples cannot be read without zstandard (pip install it)"
        )
    if paired and find_spec("scipy") is None:
        analysis.left_out.append("p-values are left out: scipy is not installed")
    reader = SampleReader(study) if paired else None
    replicates: dict[Mean, dict[Run, Array]] = defaultdict(dict)
    for column in study.columns:
        ColumnAnalysis(analysis, column, reader, resamples, seed).fill(replicates)
    for mean in analysis.means:
        _fill_mean(analysis, mean, replicates[mean])
    # two families: the primary metric of each run × cell, and the mean of each run × language
    correct(analysis.differences, [key for key in analysis.differences if key[2] == key[1].metric])
    correct(analysis.mean_differences, list(analysis.mean_differences))
    return analysis


def _fill_mean(analysis: Analysis, mean: Mean, replicates: dict[Run, Array]) -> None:
    study, count = analysis.study, len(mean.columns)
    complete = [run for run in study.runs if mean.is_complete(study, run)]
    parts = {run: [analysis.values[run, column, column.metric] for column in mean.columns] for run in complete}
    # runs that were resampled in every task
    drawn = {run: replicates[run] for run in complete if all(part.low is not None for part in parts[run])}
    bounds = _intervals(drawn)
    for run in complete:
        stderrs = [part.stderr for part in parts[run] if part.stderr is not None]
        stderr = math.hypot(*stderrs) / count if len(stderrs) == count else None
        value, n = sum(part.value for part in parts[run]) / count, sum(part.n for part in parts[run])
        analysis.mean_values[run, mean] = Estimate(value, stderr, n, *bounds.get(run, (None, None)))
    if complete and len(drawn) == len(complete):
        values = [analysis.mean_values[run, mean].value for run in complete]
        analysis.tied[mean] = tied_with_best(complete, values, np.stack(list(drawn.values()), axis=1))
    differences = {
        run: [analysis.differences[run, column, column.metric] for column in mean.columns]
        for run in complete
        if study.bases.get(run) in parts
    }
    bounds = _intervals(
        {
            run: drawn[run] - drawn[study.bases[run]]
            for run, each in differences.items()
            if run in drawn and study.bases[run] in drawn and all(d.low is not None for d in each)
        }
    )
    for run, each in differences.items():
        if mean.single is not None:  # no mean: the task's own test, corrected in the family of the means
            analysis.mean_differences[run, mean] = dataclasses.replace(each[0], p_holm=None)
            continue
        moments = statistics.mean_of([Moments(d.value, d.stderr, d.df) for d in each])
        low, high = bounds.get(run, (None, None))
        analysis.mean_differences[run, mean] = Difference(
            value=moments.value,
            stderr=moments.stderr,
            n=sum(d.n for d in each),
            method="mean over tasks" if all(d.method != "unpaired" for d in each) else "unpaired",
            df=moments.df,
            low=low,
            high=high,
            p=statistics.p_value(statistics.student, moments),
            detectable=statistics.minimum_detectable(moments.stderr, 1, binary=False),
        )


def _intervals(drawn: dict[Run, Array]) -> dict[Run, tuple[float, float]]:
    """Intervals of resampled values by run, all at once: one call per run takes longer."""
    if not drawn:
        return {}
    lows, highs = statistics.interval(np.stack(list(drawn.values()), axis=1))
    return {run: (float(low), float(high)) for run, low, high in zip(drawn, lows, highs, strict=True)}


def correct(differences: dict[Any, Any], keys: list[Any]) -> None:
    """Give the differences of one family, those at `keys`, their p-values after Holm's correction."""
    values = [math.nan if differences[key].p is None else differences[key].p for key in keys]
    for key, p in zip(keys, statistics.holm(values), strict=True):
        differences[key] = dataclasses.replace(differences[key], p_holm=None if math.isnan(p) else p)
