"""Tests, intervals and corrections: arrays in, numbers out, without runs or files.

The documents of a task are a random sample; the tasks themselves are fixed, so an interval for a mean over tasks
resamples documents within each task (a stratified bootstrap) and never the tasks. Documents that share a passage count
as one draw: standard errors and resampling are by cluster.

Sources: McNemar 1947, exact form (Edwards 1948 has the corrected one); Efron & Tibshirani 1993, chapters 6, 13 and 16
(paired and percentile bootstrap); Cochran 1977, section 2.11 (ratios), section 9A (clusters); Holm 1979;
Welch 1947 and Satterthwaite 1946 (degrees of freedom of a sum); Miller 2024, arXiv 2411.00640 (evaluations).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.int64]

RESAMPLES = 2000
CONFIDENCE = 0.95
POWER = 0.8
CHUNK = 1 << 22
"""Draws in memory at once, so that memory stays bounded whatever the number of documents."""


@dataclass(frozen=True)
class Moments:
    """An estimate, its standard error (NaN with a single draw) and the error's degrees of freedom."""

    value: float
    stderr: float
    df: float


# ---------------------------------------------------------------------------------------------- estimates


def ratio(numerator: Array, denominator: Array | None = None, clusters: Index | None = None) -> Moments:
    """Σa / Σb and its linearised standard error √(G/(G−1) Σ_g (Σ_{i∈g} a_i − R b_i)²) / Σb; Cochran 1977, 2.11.

    With b = 1 and no clusters that is the mean and s/√n.

    Args:
        numerator: [n] fp64, such as one 0/1 per document, or −log p of each text.
        denominator: [n] fp64, such as bytes of each text; None: ones.
        clusters: [n] codes 0…G−1 of documents that were drawn together; None: each document alone.
    """
    total = float(denominator.sum()) if denominator is not None else float(len(numerator))
    value = float(numerator.sum()) / total
    residuals: Array = numerator - value * (denominator if denominator is not None else 1.0)
    if clusters is not None:
        residuals = np.bincount(clusters, weights=residuals).astype(np.float64)
    draws = len(residuals)
    if draws < 2:
        return Moments(value, math.nan, 0)
    return Moments(value, math.sqrt(draws / (draws - 1) * float(residuals @ residuals)) / total, draws - 1)


def mean_of(parts: Sequence[Moments]) -> Moments:
    """The mean of independent estimates; degrees of freedom by Satterthwaite, the fewest if none has an error."""
    count, stderrs, dfs = len(parts), [part.stderr for part in parts], [part.df for part in parts]
    stderr = math.hypot(*stderrs) / count
    return Moments(
        sum(part.value for part in parts) / count, stderr, satterthwaite(stderrs, dfs) if stderr else min(dfs)
    )


def satterthwaite(stderrs: Sequence[float], dfs: Sequence[float]) -> float:
    """Degrees of freedom of the standard error of a sum of independent estimates; infinite if all errors are zero."""
    largest = max(stderrs)
    if not largest > 0:
        return math.inf
    variances = [(stderr / largest) ** 2 for stderr in stderrs]
    size = sum(v**2 / df for v, df in zip(variances, dfs, strict=True) if v > 0 and df > 0)
    return sum(variances) ** 2 / size if size > 0 else math.inf


def mean_over_seeds(values: Sequence[float], stderrs: Sequence[float]) -> Moments:
    """The mean of one estimate per seed; its error has the documents' and the seeds' part: √(SE² + SD²/k).

    The documents' error is the seeds' mean, as if all seeds had one error, which they nearly have.
    """
    seeds = len(values)
    with np.errstate(over="ignore", invalid="ignore"):
        parts = [float(np.mean(stderrs)), float(np.std(values, ddof=1)) / math.sqrt(seeds)]
    stderr = math.hypot(*parts)
    df = satterthwaite(parts, [math.inf, seeds - 1]) if stderr else seeds - 1
    return Moments(sum(values) / seeds, stderr, df)


# ---------------------------------------------------------------------------------------------- tests


def mcnemar(lost: int, gained: int) -> float:
    """Two-sided exact p-value that the two discordant counts of paired 0/1 outcomes are equally likely.

    2·P(X ≤ min), X ~ Binomial(lost + gained, ½), at most 1. Needs scipy.
    """
    from scipy.special import bdtr

    if lost + gained == 0:
        return 1.0
    return min(1.0, 2.0 * float(bdtr(min(lost, gained), lost + gained, 0.5)))


def student(moments: Moments) -> float:
    """Two-sided p-value of an estimate against 0, by Student's t. Needs scipy. NaN if there is no standard error.

    If all draws are the same, t has no scale: then by the sign test, 2·½^draws.
    """
    from scipy.special import ndtr, stdtr

    if moments.value == 0:
        return 1.0
    if math.isnan(moments.stderr):
        return math.nan
    if moments.stderr <= 1e-12 * abs(moments.value):
        return float(min(1.0, 2.0 * 0.5 ** (moments.df + 1)))
    t = -abs(moments.value) / moments.stderr
    return 2.0 * float(ndtr(t) if math.isinf(moments.df) else stdtr(moments.df, t))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values: calling all below α different has a family-wise error of at most α.

    NaN stays NaN and does not count.
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")[: np.isfinite(values).sum()]  # NaN is sorted last
    adjusted = np.full(len(values), math.nan)
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, factors * values[order]))
    return [float(value) for value in adjusted]


def p_value(test: Callable[..., float], *arguments: Any) -> float | None:
    """The p-value of a test; None without scipy or without a standard error."""
    try:
        p = test(*arguments)
    except ModuleNotFoundError:
        return None
    return None if math.isnan(p) else p


def minimum_detectable(
    stderr: float, n: int, *, binary: bool, alpha: float = 0.05, power: float = POWER
) -> float | None:
    """The smallest true difference that this comparison would have found with probability `power` at level `alpha`.

    (z_{1−α/2} + z_power) · standard error: 2.80 of them. For paired 0/1 outcomes never less than the difference at
    which McNemar's exact test can reject at all: 6 of n documents, since 2·2⁻⁵ > 0.05 ≥ 2·2⁻⁶. None without a standard
    error: from one draw, or if all scores are the same.
    """
    size = (normal_quantile(1 - alpha / 2) + normal_quantile(power)) * stderr
    if math.isnan(size):
        return None
    if binary:
        return min(1.0, max(size, math.ceil(1 - math.log2(alpha)) / n))
    return size or None


normal_quantile = cache(NormalDist().inv_cdf)


# ---------------------------------------------------------------------------------------------- bootstrap


def resampled(
    values: Array,
    seed: Sequence[int],
    *,
    denominator: Array | None = None,
    clusters: Index | None = None,
    resamples: int = RESAMPLES,
) -> Array:
    """[resamples, R] Σa / Σb of each column under the same resamples of documents, so that columns stay paired.

    Args:
        values: [n, R] fp64, one row per document.
        seed: seed of the generator; the same seed and documents give the same resamples.
        denominator: [n] fp64, or [n, R], one per column; None: ones.
        clusters: [n] codes; whole clusters are drawn.
        resamples: number of resamples.
    """
    below = np.ones((len(values), 1)) if denominator is None else denominator.reshape(len(values), -1)
    if clusters is not None:
        values, below = (_summed(part, clusters) for part in (values, below))
    out = np.empty((resamples, values.shape[1]))
    at = 0
    for weights in _weights(len(values), seed, resamples):
        out[at : at + len(weights)] = (weights @ values) / (weights @ below)
        at += len(weights)
    return out


def _summed(values: Array, clusters: Index) -> Array:
    """[G, R] sums of [n, R] over the documents of each cluster."""
    sums = np.zeros((int(clusters.max()) + 1, values.shape[1]))
    np.add.at(sums, clusters, values)
    return sums


def _weights(n: int, seed: Sequence[int], resamples: int) -> Iterator[Array]:
    """[some resamples, n] how often each document is drawn, until there are `resamples`."""
    random = np.random.default_rng(list(seed))
    step = max(1, min(resamples, CHUNK // n))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        draws = random.integers(0, n, size=(rows, n)) + np.arange(rows)[:, None] * n
        yield np.bincount(draws.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def interval(replicates: Array, confidence: float = CONFIDENCE) -> tuple[Array, Array]:
    """Percentile interval of each column of [resamples, R]."""
    tail = (1 - confidence) / 2
    # a copy in which each column is contiguous: partitioning strided columns takes four times as long
    columns = np.array(replicates.T, order="C")
    low, high = np.quantile(columns, [tail, 1 - tail], axis=1, overwrite_input=True)
    return low, high
