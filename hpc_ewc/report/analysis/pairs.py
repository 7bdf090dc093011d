"""The difference of two runs in one column: on the documents that both were asked, or by their records alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hpc_ewc.report.analysis import statistics
from hpc_ewc.report.analysis.estimates import Difference, Estimate
from hpc_ewc.report.analysis.statistics import Array, Moments
from hpc_ewc.report.study.samples import Scores

LN2 = math.log(2)


def matched(mine: Scores, theirs: Scores) -> tuple[Any, Any]:
    """Positions of the documents that both have."""
    if mine.documents is theirs.documents:
        everything = np.arange(len(mine.values))
        return everything, everything
    place = {key: at for at, key in enumerate(theirs.documents.keys)}
    pairs = [(at, place[key]) for at, key in enumerate(mine.documents.keys) if key in place]
    return np.array([a for a, _ in pairs], dtype=np.int64), np.array([b for _, b in pairs], dtype=np.int64)


def shares(a: Array, b: Array, clusters: Any) -> dict[str, Any]:
    """Fields of the difference of two scores in [0, 1] on the same documents."""
    moments = statistics.ratio(a - b, None, clusters)
    binary = bool((((a == 0) | (a == 1)) & ((b == 0) | (b == 1))).all())
    fields = _moments(moments) | {
        "method": "paired t" if clusters is None else "clustered t",
        "p": optional(statistics.student, moments),
        "detectable": statistics.minimum_detectable(moments.stderr, len(a), binary=binary),
    }
    if binary:
        lost, gained = int(((a == 0) & (b == 1)).sum()), int(((a == 1) & (b == 0)).sum())
        fields |= {"lost": lost, "gained": gained}
        if clusters is None:
            fields |= {"method": "McNemar", "p": optional(statistics.mcnemar, lost, gained)}
    return fields


def texts(a: Array, b: Array, below: Array, clusters: Any, metric: str) -> dict[str, Any]:
    """Fields of the difference of two perplexities or bits per byte on the same texts; tested on −log p.

    Args:
        a: [n] nats of the run.
        b: [n] nats of its base.
        below: [n] tokens or bytes, the same for both.
        clusters: [n] codes, or None.
        metric: bits_per_byte or perplexity: the unit.
    """
    nats = statistics.ratio(a - b, below, clusters)
    relative: dict[str, float] = {}
    if metric == "bits_per_byte":
        moments = Moments(nats.value / LN2, nats.stderr / LN2, nats.df)
        if b.sum() > 0:
            against = statistics.ratio(a, b, clusters)
            relative = {"relative": against.value - 1, "relative_stderr": against.stderr}
    else:
        mine, theirs = (float(x.sum() / below.sum()) for x in (a, b))
        up, down = math.exp(min(mine, 700.0)), math.exp(min(theirs, 700.0))
        # delta method: d exp(R) = exp(R) dR, on the same documents
        change = statistics.ratio(up * (a - mine * below) - down * (b - theirs * below), below, clusters)
        moments = Moments(up - down, change.stderr, change.df)
    return _moments(moments) | {
        "method": "paired t" if clusters is None else "clustered t",
        "p": optional(statistics.student, nats),
        "detectable": statistics.minimum_detectable(moments.stderr, len(a), binary=False),
        **relative,
    }


def _moments(moments: Moments) -> dict[str, Any]:
    return {"value": moments.value, "stderr": moments.stderr, "df": moments.df}


def unpaired(mine: Estimate, theirs: Estimate, *, is_bits: bool) -> Difference:
    """Of two values whose documents cannot be paired: wider. `is_bits`: of bits per byte, which have a ratio too."""
    stderr = math.nan if mine.stderr is None or theirs.stderr is None else math.hypot(mine.stderr, theirs.stderr)
    df = math.inf
    if stderr > 0:
        variances = [(estimate.stderr or 0.0) ** 2 for estimate in (mine, theirs)]
        df = statistics.satterthwaite(variances, [mine.n - 1, theirs.n - 1])
    elif stderr == 0:  # as of 2 right of 2 against 0 of 2: so many draws say so, and no more
        df = min(mine.n, theirs.n) - 1
    moments = Moments(mine.value - theirs.value, stderr, df)
    relative, relative_stderr = None, math.nan
    if is_bits and theirs.value > 0:
        ratio = mine.value / theirs.value
        relative = ratio - 1
        if not math.isnan(stderr):
            relative_stderr = math.hypot(mine.stderr or 0.0, ratio * (theirs.stderr or 0.0)) / theirs.value
    return Difference(
        value=moments.value,
        stderr=stderr,
        n=min(mine.n, theirs.n),
        method="unpaired",
        df=df,
        p=optional(statistics.student, moments),
        detectable=statistics.minimum_detectable(stderr, mine.n, binary=False),
        relative=relative,
        relative_stderr=relative_stderr,
    )


def optional(test: Any, *arguments: Any) -> float | None:
    """A p-value, or None without scipy or without a standard error."""
    try:
        p: float = test(*arguments)
    except ModuleNotFoundError:
        return None
    return None if math.isnan(p) else p
