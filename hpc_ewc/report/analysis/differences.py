"""Each run against its base: paired by document, column by column and over tasks, with Holm's correction."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from typing import Any

import numpy as np

from hpc_ewc.report.analysis import statistics
from hpc_ewc.report.analysis.columns import ColumnAnalysis, tied_with_best
from hpc_ewc.report.analysis.estimates import Analysis, Difference, Estimate
from hpc_ewc.report.analysis.means import Mean, means
from hpc_ewc.report.analysis.pairs import optional
from hpc_ewc.report.analysis.statistics import Array, Moments
from hpc_ewc.report.study.runs import Run
from hpc_ewc.report.study.samples import SampleReader
from hpc_ewc.report.study.study import Study


def analyse(study: Study, *, paired: bool = True, resamples: int = statistics.RESAMPLES, seed: int = 0) -> Analysis:
    """Values, differences and their uncertainty.

    Args:
        study: runs, columns, records.
        paired: read samples; else differences are unpaired and wider.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    known = {column: column.chance for column in study.columns if column.chance is not None}
    analysis = Analysis(study, means(study), chances=known)
    paired = paired and _packages(analysis)
    reader = SampleReader(study)
    replicates: dict[Mean, dict[Run, Array]] = defaultdict(dict)
    for column in study.columns:
        ColumnAnalysis(analysis, column, reader if paired else None, resamples, seed).fill(replicates)
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


# ---------------------------------------------------------------------------------------------- over tasks


def _fill_mean(analysis: Analysis, mean: Mean, replicates: dict[Run, Array]) -> None:
    study, count = analysis.study, len(mean.columns)
    whole = [run for run in study.runs if mean.is_whole(study, run)]
    resampled = {run for run in whole if _is_resampled(analysis, run, mean)}
    bounds = _intervals({run: replicates[run] for run in whole if run in resampled})
    for run in whole:
        parts = [analysis.values[run, column, column.metric] for column in mean.columns]
        stderrs = [part.stderr for part in parts if part.stderr is not None]
        stderr = math.sqrt(sum(s**2 for s in stderrs)) / count if len(stderrs) == count else None
        value = sum(part.value for part in parts) / count
        low, high = bounds.get(run, (None, None))
        analysis.mean_values[run, mean] = Estimate(value, stderr, sum(part.n for part in parts), low, high)
    if whole and len(resampled) == len(whole):
        drawn = np.stack([replicates[run] for run in whole], axis=1)
        analysis.tied[mean] = tied_with_best(whole, [analysis.mean_values[run, mean].value for run in whole], drawn)
    paired = {
        run: base
        for run in whole
        if (base := study.bases.get(run)) in resampled
        and run in resampled
        and all(analysis.differences[run, c, c.metric].low is not None for c in mean.columns)
    }
    bounds = _intervals({run: replicates[run] - replicates[base] for run, base in paired.items()})
    for run in whole:
        base = study.bases.get(run)
        if base not in whole:
            continue
        each = [analysis.differences[run, column, column.metric] for column in mean.columns]
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
            p=optional(statistics.student, moments),
            detectable=statistics.minimum_detectable(moments.stderr, 1, binary=False),
        )


def _intervals(drawn: dict[Run, Array]) -> dict[Run, tuple[float, float]]:
    """Of each run's resampled means, or differences of means: all at once, a call a run takes longer."""
    if not drawn:
        return {}
    lows, highs = statistics.interval(np.stack(list(drawn.values()), axis=1))
    return {run: (float(low), float(high)) for run, low, high in zip(drawn, lows, highs, strict=True)}


def _is_resampled(analysis: Analysis, run: Run, mean: Mean) -> bool:
    """Every task of the mean was resampled for this run."""
    each = [analysis.values.get((run, column, column.metric)) for column in mean.columns]
    return all(estimate is not None and estimate.low is not None for estimate in each)


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
