"""The recommended λ in a table and in words."""

from __future__ import annotations

from collections.abc import Callable

from hpc_ewc.report.analysis.means import Mean
from hpc_ewc.report.study.columns import SOURCE_LANGUAGE, language_name
from hpc_ewc.report.tables.builder import Builder, ColumnOf, mean_name
from hpc_ewc.report.tables.choose import Candidate, Change, Choice
from hpc_ewc.report.tables.formats import percent
from hpc_ewc.report.tables.lines import Line
from hpc_ewc.report.tables.measure import Gain
from hpc_ewc.report.tables.table import Cell, Table


def choice_table(build: Builder, choice: Choice | None) -> Table | None:
    """The candidates, with their changes on either half and how often each is chosen."""
    if choice is None:
        return None
    old, new, text = language_name(SOURCE_LANGUAGE), language_name(build.study.target), choice.gain.text
    of = {candidate.line: candidate for candidate in choice.candidates}

    def chosen(line: Line) -> Cell:
        return Cell(f"{100 * of[line].chosen:.0f} %", of[line].chosen, bold=of[line] is choice.best)

    def allowed(line: Line) -> Cell:
        return Cell("yes", 1.0) if choice.is_allowed(of[line]) else Cell("no", 0.0)

    columns: list[ColumnOf] = [
        (f"Δ {old} first half", lambda line: _cell(of[line].old, percent)),
        (f"{choice.gain.head} first half", lambda line: _cell(of[line].new, text)),
        (f"Δ {old} other half", lambda line: _cell(of[line].old_reported, percent)),
        (f"{choice.gain.head} other half", lambda line: _cell(of[line].new_reported, text)),
        ("allowed", allowed),
        ("chosen in", chosen),
    ]
    table = build.table("choice", "Choosing λ", columns, of)
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
    old, new, measured = language_name(SOURCE_LANGUAGE), language_name(build.study.target), choice.gain
    allowed = points_text(choice.max_loss)
    if choice.best is None and any(map(choice.is_allowed, choice.candidates)):
        why = f" ({measured.why})" if measured.why else ""
        return (
            f"No recommendation: on the first half no run that loses at most {allowed} of {old} gains {new}, measured "
            f"in {_unit(measured)}{why}."
        )
    if choice.best is None:
        return (
            f"No recommendation: on the first half no run loses at most {allowed} of {old}; try a larger λ, or allow "
            "more (--max-loss)."
        )
    best = choice.best
    lost, gained = best.old_reported, best.new_reported
    points = "" if isinstance(measured.what, Mean) else "points "
    words = (
        f"Recommended: {build.lines.name(best.line)}. On the other half it changes {old} by {_with_interval(lost)} "
        f"{points}and {new} by {_with_interval(gained, measured.text)} {measured.unit}; under resampled documents the "
        f"rule picks it in {100 * best.chosen:.0f} % of cases"
    )
    others: list[Candidate] = [c for c in choice.candidates if c is not best and c.chosen > 0]
    if others:
        second = max(others, key=lambda candidate: candidate.chosen)
        words += f", {build.lines.name(second.line)} in {100 * second.chosen:.0f} %"
    if choice.none > 0:
        words += f", no run in {100 * choice.none:.0f} %"
    if lost.low < -choice.max_loss:
        words += f". Its loss may be larger than allowed: the interval reaches {percent(lost.low, sign=True)}"
    if measured.why:
        words += f". The gain in {new} is measured in {_unit(measured)}: {measured.why}"
    if build.lines.repeated:
        return f"{words}. Intervals and resamples are of documents alone, not of seeds."
    return f"{words}. Single seed per setting: the conclusion applies to these checkpoints only."


def points_text(share: float) -> str:
    """1 point, 2.5 points."""
    return f"{100 * share:g} point" + ("" if 100 * share == 1 else "s")


def _measures(build: Builder, measured: Gain) -> str:
    """The measures of loss and gain, in words."""
    old = mean_name(build.analysis.mean(SOURCE_LANGUAGE))
    if not isinstance(measured.what, Mean):
        return f"{old}, points against the base; {measured.unit}"
    new = mean_name(measured.what)
    both = "means over tasks" if old == new == "mean over tasks" else f"{old}; {new}"
    return f"{both}, points against the base"


def _unit(measured: Gain) -> str:
    return "accuracy" if isinstance(measured.what, Mean) else measured.unit


def _cell(change: Change, text: Callable[..., str]) -> Cell:
    interval = f"{text(change.low, sign=True)} to {text(change.high, sign=True)}"
    return Cell(text(change.value, change.stderr, sign=True), change.value, interval, f"95 % {interval}")


def _with_interval(change: Change, text: Callable[..., str] = percent) -> str:
    low, high = text(change.low, sign=True), text(change.high, sign=True)
    return f"{text(change.value, change.stderr, sign=True)} (95 %: {low} to {high})"
