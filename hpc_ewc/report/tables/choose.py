"""Which λ to choose: the largest gain in the new language whose loss in the old one is within what is allowed.

It is chosen on one half of the documents, drawn by hash, and reported on the other, so that the winner's luck is not
reported as its merit. How certain the choice is, is how often each λ would be chosen under resampled documents.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpc_ewc.report.analysis import statistics
from hpc_ewc.report.analysis.means import Mean
from hpc_ewc.report.analysis.statistics import Array
from hpc_ewc.report.study.columns import SOURCE_LANGUAGE, Column
from hpc_ewc.report.tables.builder import Builder
from hpc_ewc.report.tables.lines import Line
from hpc_ewc.report.tables.measure import Gain, gain

MAX_LOSS = 0.01
"""Accuracy in the old language, mean over tasks, that a recommended λ may cost."""


@dataclass(frozen=True)
class Change:
    """Change against the base on one half of the documents: of a mean over tasks, or of bits per byte."""

    value: float
    stderr: float
    low: float
    high: float


@dataclass(frozen=True)
class Candidate:
    """One setting, with its loss and gain on either half."""

    line: Line
    old: Change
    new: Change
    """On the half for choosing."""
    old_reported: Change
    new_reported: Change
    chosen: float
    """Share of the resamples of the first half in which it is chosen."""


@dataclass(frozen=True)
class Choice:
    """The recommendation; `best` is None if no setting keeps the old language and gains the new one."""

    best: Candidate | None
    candidates: list[Candidate]
    max_loss: float
    documents: tuple[int, int]
    """Number of documents for choosing and for reporting."""
    none: float
    """Share of the resamples in which no setting does both."""
    gain: Gain
    """The measure of the new language."""

    def is_allowed(self, candidate: Candidate) -> bool:
        """Whether it loses no more than is allowed, on the half for choosing."""
        return candidate.old.value >= -self.max_loss


def choose(build: Builder, max_loss: float = MAX_LOSS) -> Choice | None:
    """The recommendation; None if values cannot be split by document, or there are fewer than two settings."""
    old, new = build.analysis.mean(SOURCE_LANGUAGE), gain(build)
    if old is None or new is None:
        return None
    changes = {}
    for line in build.lines.lines:
        if line.first.strength is not None:
            each = [_change(build, line, what, half) for half in (True, False) for what in (old, new.what)]
            known = [change for change in each if change is not None]
            if len(known) == len(each):
                changes[line] = known
    if len(changes) < 2:
        return None
    # from the largest λ: of two with the same gain, the one with the stronger penalty
    lines = sorted(changes, key=lambda line: -(line.first.strength or 0.0))
    points = np.array([[changes[line][0][0], changes[line][1][0]] for line in lines])
    best = _pick(points[None, :, 0], new.sign * points[None, :, 1], max_loss)[0]
    drawn_old, drawn_new = (np.stack([changes[line][part][1] for line in lines], axis=1) for part in (0, 1))
    picks = _pick(drawn_old, new.sign * drawn_new, max_loss)
    old_changes, new_changes, old_reported, new_reported = (
        _summaries([changes[line][part] for line in lines]) for part in range(4)
    )
    chosen = [float((picks == place).mean()) for place in range(len(lines))]
    candidates = list(map(Candidate, lines, old_changes, new_changes, old_reported, new_reported, chosen))
    halves = build.analysis.halves
    counts = [sum(halves[half, lines[0].first, what].documents for what in (old, new.what)) for half in (True, False)]
    return Choice(
        best=None if best < 0 else candidates[best],
        candidates=sorted(candidates, key=lambda candidate: candidate.line.first),
        max_loss=max_loss,
        documents=(counts[0], counts[1]),
        none=float((picks < 0).mean()),
        gain=new,
    )


def _change(build: Builder, line: Line, what: Mean | Column, half: bool) -> tuple[float, Array] | None:
    """Mean change against the base over the seeds of a line, and the same under resampling."""
    halves, tasks = build.analysis.halves, len(what.columns) if isinstance(what, Mean) else 1
    values, drawn = [], []
    for run in line.runs:
        base = build.study.bases.get(run)
        mine, theirs = halves.get((half, run, what)), None if base is None else halves.get((half, base, what))
        if mine is None or theirs is None or {mine.tasks, theirs.tasks} != {tasks}:
            return None
        values.append(mine.value - theirs.value)
        drawn.append(mine.replicates - theirs.replicates)
    return float(np.mean(values)), np.mean(drawn, axis=0)


def _pick(old: Array, new: Array, max_loss: float) -> Array:
    """[resamples] place of the largest gain among those within the loss, −1 for none. old, new: [resamples, lines].

    A change of the new language that is not above 0 is no gain.
    """
    gains = np.where((old >= -max_loss) & (new > 0), new, -np.inf)
    return np.where(np.isfinite(gains.max(axis=1)), np.argmax(gains, axis=1), -1)


def _summaries(changes: list[tuple[float, Array]]) -> list[Change]:
    """Intervals of all changes at once: one call per line takes longer than the quantiles themselves."""
    lows, highs = statistics.interval(np.stack([drawn for _, drawn in changes], axis=1))
    return [
        Change(value, float(drawn.std(ddof=1)), float(low), float(high))
        for (value, drawn), low, high in zip(changes, lows, highs, strict=True)
    ]
