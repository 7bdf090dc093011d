"""Tests, intervals and corrections: arrays in, numbers out. Nothing here knows of runs or files.

The documents of a task are taken as a random draw; the tasks themselves are fixed, so an interval for a mean over
tasks resamples documents within each task (a stratified bootstrap) and never the tasks. Documents that share a
passage are one draw: standard errors and resampling are by cluster.

Sources: McNemar 1947, exact form (Edwards 1948 has the corrected one); Efron & Tibshirani 1993, chapters 6, 13 and 16
(paired and percentile bootstrap); Cochran 1977, section 2.11 (ratios), section 9A (clusters); Holm 1979;
Welch 1947 and Satterthwaite 1946 (degrees of freedom of a sum); Miller 2024, arXiv 2411.00640 (evaluations).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.int64]

RESAMPLES = 2000
CONFIDENCE = 0.95
POWER = 0.8
CHUNK = 1 << 22
"""Draws held at once, so that memory stays bounded whatever the number of documents."""


@dataclass(frozen=True)
class Moments:
    """An estimate, its standard error (NaN from one draw) and the error's degrees of freedom."""

    value: float
    stderr: float
    df: float


# ---------------------------------------------------------------------------------------------- estimates


def ratio(numerator: Array, denominator: Array | None = None, clusters: Index | None = None) -> Moments:
    """Σa / Σb and its linearised standard error √(G/(G−1) Σ_g (Σ_{i∈g} a_i − R b_i)²) / Σb; Cochran 1977, 2.11.

    With b = 1 and no clusters that is the mean and s/√n.

    Args:
        numerator: [n] fp64, such as one 0/1 a document, or −log p of each text.
        denominator: [n] fp64, such as bytes of each text; None: ones.
        clusters: [n] codes 0…G−1 of what was drawn together; None: each document alone.
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
    """The mean of independent estimates; degrees of freedom by Satterthwaite, the fewest where none has an error."""
    count = len(parts)
    variances = np.array([part.stderr**2 for part in parts]) / count**2
    value, total, dfs = sum(part.value for part in parts) / count, float(variances.sum()), [part.df for part in parts]
    return Moments(value, math.sqrt(total), min(dfs) if total == 0 else satterthwaite(variances, dfs))


def satterthwaite(variances: Sequence[float] | Array, dfs: Sequence[float]) -> float:
    """Degrees of freedom of a sum of independent variances; infinite where all are zero."""
    total = float(np.sum(variances))
    if not total > 0:
        return math.inf
    size = sum(float(v) ** 2 / df for v, df in zip(variances, dfs, strict=True) if v > 0 and df > 0)
    return total**2 / size if size > 0 else math.inf


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
    """Two-sided p-value of an estimate against 0, by Student's t. Needs scipy. NaN where there is no standard error.

    Where every draw says the same, t has no scale: then by the sign test, 2·½^draws.
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
    """Holm's step-down adjusted p-values: the family-wise error is at most α where all below α are called different.

    NaN stays NaN and does not count.
    """
    order = sorted((value, place) for place, value in enumerate(p) if not math.isnan(value))
    adjusted = [math.nan] * len(p)
    running = 0.0
    for rank, (value, place) in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * value))
        adjusted[place] = running
    return adjusted


def minimum_detectable(
    stderr: float, n: int, *, binary: bool, alpha: float = 0.05, power: float = POWER
) -> float | None:
    """The smallest true difference that this comparison would have found with probability `power` at level `alpha`.

    (z_{1−α/2} + z_power) · standard error: 2.80 of them. For paired 0/1 outcomes never less than the difference at
    which McNemar's exact test can reject at all: 6 of n documents, since 2·2⁻⁵ > 0.05 ≥ 2·2⁻⁶. None where no standard
    error says it: from one draw, or where all scores are the same.
    """
    normal = _normal_quantile
    size = (normal(1 - alpha / 2) + normal(power)) * stderr
    if math.isnan(size):
        return None
    if binary:
        return min(1.0, max(size, math.ceil(1 - math.log2(alpha)) / n))
    return size or None


@cache
def _normal_quantile(p: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(p)


# ---------------------------------------------------------------------------------------------- bootstrap


def resampled(
    values: Array,
    seed: Sequence[int],
    *,
    denominator: Array | None = None,
    clusters: Index | None = None,
    resamples: int = RESAMPLES,
) -> Array:
    """[resamples, R]: Σa / Σb of each column under the same resamples of documents, so columns stay paired.

    Args:
        values: [n, R] fp64, one row a document.
        seed: of the generator; the same seed and documents give the same resamples.
        denominator: [n] fp64, or [n, R] of each column; None: ones.
        clusters: [n] codes; whole clusters are drawn.
        resamples: how many.
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
    """[G, R] sums of [n, R] over what was drawn together."""
    sums = np.zeros((int(clusters.max()) + 1, values.shape[1]))
    np.add.at(sums, clusters, values)
    return sums


def _weights(n: int, seed: Sequence[int], resamples: int) -> Iterator[Array]:
    """How often each of n documents is drawn in each resample, some resamples at a time."""
    random = np.random.default_rng(list(seed))
    step = max(1, min(resamples, CHUNK // n))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        draws = random.integers(0, n, size=(rows, n)) + np.arange(rows)[:, None] * n
        yield np.bincount(draws.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def interval(replicates: Array, confidence: float = CONFIDENCE) -> tuple[Array, Array]:
    """Percentile interval of each column of [resamples, R]."""
    tail = (1 - confidence) / 2
    # a copy with each column in one piece: to partition columns where they lie takes four times as long
    columns = np.array(replicates.T, order="C")
    low, high = np.quantile(columns, [tail, 1 - tail], axis=1, overwrite_input=True)
    return low, high
