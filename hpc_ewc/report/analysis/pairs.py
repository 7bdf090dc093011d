"""The difference of two runs in one column: paired by document, or from their records alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hpc_ewc.report.analysis import statistics
from hpc_ewc.report.analysis.estimates import Difference, Estimate
from hpc_ewc.report.analysis.statistics import Array, Index, Moments, p_value
from hpc_ewc.report.study.samples import Scores

LN2 = math.log(2)
MAX_EXPONENT = 700.0
"""exp of more is no float."""


def matched(mine: Scores, theirs: Scores) -> tuple[Index, Index]:
    """Positions, in either run, of the documents that both have."""
    if mine.documents is theirs.documents:
        everything = np.arange(len(mine.values))
        return everything, everything
    place = {key: at for at, key in enumerate(theirs.documents.keys)}
    pairs = [(at, place[key]) for at, key in enumerate(mine.documents.keys) if key in place]
    return np.array([a for a, _ in pairs], dtype=np.int64), np.array([b for _, b in pairs], dtype=np.int64)


def difference_of_shares(a: Array, b: Array, clusters: Index | None) -> dict[str, Any]:
    """Fields of `Difference` for two scores in [0, 1] on the same documents."""
    binary = bool((((a == 0) | (a == 1)) & ((b == 0) | (b == 1))).all())
    moments = statistics.ratio(a - b, None, clusters)
    fields = _fields(moments, moments, len(a), clusters, binary=binary)
    if binary:
        lost, gained = int(((a == 0) & (b == 1)).sum()), int(((a == 1) & (b == 0)).sum())
        fields |= {"lost": lost, "gained": gained}
        if clusters is None:
            fields |= {"method": "McNemar", "p": p_value(statistics.mcnemar, lost, gained)}
    return fields


def difference_of_texts(a: Array, b: Array, below: Array, clusters: Index | None, metric: str) -> dict[str, Any]:
    """Fields of `Difference` for two perplexities or bits per byte on the same texts; tested on −log p.

    Args:
        a: [n] nats of the run.
        b: [n] nats of its base.
        below: [n] tokens or bytes, the same for both.
        clusters: [n] codes, or None.
        metric: bits_per_byte or perplexity, which sets the unit.
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
        up, down = math.exp(min(mine, MAX_EXPONENT)), math.exp(min(theirs, MAX_EXPONENT))
        # delta method: d exp(R) = exp(R) dR, on the same documents
        change = statistics.ratio(up * (a - mine * below) - down * (b - theirs * below), below, clusters)
        moments = Moments(up - down, change.stderr, change.df)
    return _fields(moments, nats, len(a), clusters, binary=False) | relative


def _fields(moments: Moments, tested: Moments, n: int, clusters: Index | None, *, binary: bool) -> dict[str, Any]:
    return {
        "value": moments.value,
        "stderr": moments.stderr,
        "df": moments.df,
        "n": n,
        "method": "paired t" if clusters is None else "clustered t",
        "p": p_value(statistics.student, tested),
        "detectable": statistics.minimum_detectable(moments.stderr, n, binary=binary),
    }


def unpaired_difference(mine: Estimate, theirs: Estimate, *, is_bits: bool) -> Difference:
    """The wider difference of two values whose documents cannot be paired.

    Args:
        mine: value of the run.
        theirs: value of its base.
        is_bits: they are bits per byte, which have a ratio too.
    """
    stderr = math.nan if mine.stderr is None or theirs.stderr is None else math.hypot(mine.stderr, theirs.stderr)
    df = math.inf
    if stderr > 0:
        df = statistics.satterthwaite([mine.stderr or 0.0, theirs.stderr or 0.0], [mine.n - 1, theirs.n - 1])
    elif stderr == 0:  # 2 right of 2 against 0 of 2: no more certain than so many draws
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
        p=p_value(statistics.student, moments),
        detectable=statistics.minimum_detectable(stderr, mine.n, binary=False),
        relative=relative,
        relative_stderr=relative_stderr,
    )
