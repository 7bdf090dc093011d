"""Which λ to take: the largest gain in the new language whose loss in the old one is within what is allowed.

Chosen on one hash-half of the documents and reported on the other, so that the winner's luck is not reported as its
merit. How sure the choice is, is how often each λ would have been chosen under resampled documents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hpc_ewc.report.analysis import statistics
from hpc_ewc.report.analysis.means import Mean
from hpc_ewc.report.analysis.statistics import Array
from hpc_ewc.report.study.columns import SOURCE_LANGUAGE, Column, language_name
from hpc_ewc.report.tables.builder import Builder, Cell, Head, Table
from hpc_ewc.report.tables.formats import percent
from hpc_ewc.report.tables.lines import Line
from hpc_ewc.report.tables.measure import Gain, gain, over

MAX_LOSS = 0.01
"""Of accuracy, mean over tasks of the old language."""


@dataclass(frozen=True)
class Change:
    """Against the base, on one half: of a mean over tasks, or in bits per byte."""

    value: float
    stderr: float
    low: float
    high: float


@dataclass(frozen=True)
class Candidate:
    """One setting: what it lost and gained, on either half."""

    line: Line
    old: Change
    new: Change
    """On the half for choosing."""
    old_reported: Change
    new_reported: Change
    chosen: float
    """Share of the resamples of the first half in which this one is chosen."""


@dataclass(frozen=True)
class Choice:
    """The recommendation; `best` is None where no setting keeps the old language and gains the new one."""

    best: Candidate | None
    candidates: list[Candidate]
    max_loss: float
    documents: tuple[int, int]
    """On which was chosen, and on which is reported."""
    none: float
    """Share of the resamples in which no setting does both."""
    gain: Gain
    """By what the new language is measured."""


def choose(build: Builder, max_loss: float = MAX_LOSS) -> Choice | None:
    """The recommendation; None where values cannot be split by document, or there is nothing to choose from."""
    old, new = build.analysis.mean(SOURCE_LANGUAGE), gain(build)
    if old is None or new is None:
        return None
    lines = [line for line in build.lines.lines if line.first.strength is not None]
    changes = {}
    for line in lines:
        each = [_change(build, line, what, half) for half in (True, False) for what in (old, new.what)]
        if all(each):
            changes[line] = [change for change in each if change is not None]
    lines = list(changes)
    if len(lines) < 2:
        return None
    # from the largest λ: of two with the same gain the one that is held more
    lines.sort(key=lambda line: -(line.first.strength or 0.0))
    points = np.array([[changes[line][0][0], changes[line][1][0]] for line in lines])
    best = _pick(points[None, :, 0], new.sign * points[None, :, 1], max_loss)[0]
    drawn_old, drawn_new = (np.stack([changes[line][part][1] for line in lines], axis=1) for part in (0, 1))
    picks = _pick(drawn_old, new.sign * drawn_new, max_loss)
    parts = [_summaries([changes[line][part] for line in lines]) for part in range(4)]
    candidates = [
        Candidate(
            line, parts[0][place], parts[1][place], parts[2][place], parts[3][place], float((picks == place).mean())
        )
        for place, line in enumerate(lines)
    ]
    documents = _documents(build, lines[0], old, new.what)
    return Choice(
        best=None if best < 0 else candidates[best],
        candidates=sorted(candidates, key=lambda c: c.line.first),
        max_loss=max_loss,
        documents=documents,
        none=float((picks < 0).mean()),
        gain=new,
    )


def _change(build: Builder, line: Line, what: Mean | Column, half: bool) -> tuple[float, Array] | None:
    """Against the base, over the seeds of a line: the value, and the same under resampling."""
    halves, parts = build.analysis.halves, len(what.columns) if isinstance(what, Mean) else 1
    pairs = [(halves.get((half, run, what)), build.study.bases.get(run)) for run in line.runs]
    values, drawn = [], []
    for mine, base in pairs:
        theirs = None if base is None else halves.get((half, base, what))
        if mine is None or theirs is None or {mine.tasks, theirs.tasks} != {parts}:
            return None
        values.append(mine.value - theirs.value)
        drawn.append(mine.replicates - theirs.replicates)
    return float(np.mean(values)), np.mean(drawn, axis=0)


def _pick(old: Array, new: Array, max_loss: float) -> Array:
    """[resamples] place of the largest gain among those within the loss, −1 for none. old, new: [resamples, lines].

    A change of the new language that is not above 0 is no gain.
    """
    gain = np.where((old >= -max_loss) & (new > 0), new, -np.inf)
    best = np.argmax(gain, axis=1)
    return np.where(np.isfinite(gain.max(axis=1)), best, -1)


def _summaries(changes: list[tuple[float, Array]]) -> list[Change]:
    """All at once: a call a line takes longer than the quantiles themselves."""
    lows, highs = statistics.interval(np.stack([drawn for _, drawn in changes], axis=1))
    return [
        Change(value, float(drawn.std(ddof=1)), float(low), float(high))
        for (value, drawn), low, high in zip(changes, lows, highs, strict=True)
    ]


def _documents(build: Builder, line: Line, *parts: Mean | Column) -> tuple[int, int]:
    halves = build.analysis.halves
    counts = [sum(halves[half, line.first, what].documents for what in parts) for half in (True, False)]
    return counts[0], counts[1]


# ---------------------------------------------------------------------------------------------- in words


def choice_table(build: Builder, choice: Choice | None) -> Table | None:
    """The recommendation, and what it was chosen from."""
    if choice is None:
        return None
    old, new = language_name(SOURCE_LANGUAGE), language_name(build.study.target)
    table, text = build.table("choice", "Choosing λ"), choice.gain.text
    table.heads += [
        Head(f"{name} {half} half") for half in ("first", "other") for name in (f"Δ {old}", choice.gain.head)
    ]
    table.heads += [Head("allowed"), Head("chosen in")]
    for candidate in choice.candidates:
        row = build.labelled(candidate.line)
        row += [_cell(candidate.old, percent), _cell(candidate.new, text)]
        row += [_cell(candidate.old_reported, percent), _cell(candidate.new_reported, text)]
        allowed = candidate.old.value >= -choice.max_loss
        row.append(Cell("yes" if allowed else "no", float(allowed)))
        is_best = candidate is choice.best
        row.append(Cell(f"{100 * candidate.chosen:.0f} %", candidate.chosen, bold=is_best))
        table.rows.append(row)
    table.notes.append(
        f"Rule: of the runs that lose at most {points_text(choice.max_loss)} of {old}, the one that gains most "
        f"{new} ({_measures(build, choice.gain)}). Chosen on the first half of the documents "
        f"(n={choice.documents[0]:,}, by hash), reported on the other (n={choice.documents[1]:,}). Chosen in: share of "
        "bootstrap resamples of the first half in which the rule picks this row. ± standard error, by bootstrap"
        + (" of documents, not of seeds." if build.lines.repeated else ".")
    )
    return table


def sentence(build: Builder, choice: Choice) -> str:
    """The recommendation with its uncertainty."""
    old, new = language_name(SOURCE_LANGUAGE), language_name(build.study.target)
    if choice.best is None and any(c.old.value >= -choice.max_loss for c in choice.candidates):
        why = f" ({choice.gain.why})" if choice.gain.why else ""
        return (
            f"No recommendation: on the first half no run that loses at most {points_text(choice.max_loss)} of {old} "
            f"gains {new}, measured in {_unit(choice.gain)}{why}."
        )
    if choice.best is None:
        return (
            f"No recommendation: on the first half no run loses at most {points_text(choice.max_loss)} of {old}; "
            "try a larger λ, or allow more (--max-loss)."
        )
    best = choice.best
    lost, gained = best.old_reported, best.new_reported
    words = f"Recommended: {build.lines.name(best.line)}. On the other half it changes {old} by {_with_interval(lost)} "
    text = choice.gain.text
    words += "" if text is percent else "points "
    words += f"and {new} by {_with_interval(gained, text)} {choice.gain.unit}"
    others = [c for c in choice.candidates if c is not best and c.chosen > 0]
    second = max(others, key=lambda candidate: candidate.chosen, default=None)
    words += f"; under resampled documents the rule picks it in {100 * best.chosen:.0f} % of cases"
    if second is not None:
        words += f", {build.lines.name(second.line)} in {100 * second.chosen:.0f} %"
    if choice.none > 0:
        words += f", no run in {100 * choice.none:.0f} %"
    if lost.low < -choice.max_loss:
        words += f". Its loss may be larger than allowed: the interval reaches {percent(lost.low, sign=True)}"
    if choice.gain.why:
        words += f". The gain in {new} is measured in {_unit(choice.gain)}: {choice.gain.why}"
    if build.lines.repeated:
        return f"{words}. Intervals and resamples are of documents alone, not of seeds."
    return f"{words}. This is about these checkpoints, one seed each."


def points_text(share: float) -> str:
    """1 point, 2.5 points."""
    return f"{100 * share:g} point" + ("" if 100 * share == 1 else "s")


def _measures(build: Builder, measured: Gain) -> str:
    """Of loss and gain, in words."""
    old = build.analysis.mean(SOURCE_LANGUAGE)
    if isinstance(measured.what, Mean):
        alike = old is not None and old.single is None and measured.what.single is None
        words = "means over tasks" if alike else f"{_mean_words(old)}; {_mean_words(measured.what)}"
        return f"{words}, points against the base"
    return f"{_mean_words(old)}, points against the base; {measured.unit}"


def _mean_words(mean: Mean | None) -> str:
    return "mean over tasks" if mean is None or mean.single is None else f"{over(mean)} alone"


def _unit(measured: Gain) -> str:
    return "accuracy" if isinstance(measured.what, Mean) else measured.unit


def _cell(change: Change, text: Callable[..., str]) -> Cell:
    interval = f"{text(change.low, sign=True)} to {text(change.high, sign=True)}"
    return Cell(text(change.value, change.stderr, sign=True), change.value, interval, f"95 % {interval}")


def _with_interval(change: Change, text: Callable[..., str] = percent) -> str:
    low, high = text(change.low, sign=True), text(change.high, sign=True)
    return f"{text(change.value, change.stderr, sign=True)} (95 %: {low} to {high})"
