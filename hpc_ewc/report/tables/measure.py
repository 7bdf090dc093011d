"""By what the gain in the new language is measured: its tasks where they can show one, else bits per byte of a text.

A small model, or one that has learnt little, answers the tasks of the new language at chance. A λ that is chosen by
such numbers is chosen by noise, while the same runs differ by many standard errors in how well they predict its text.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

from hpc_ewc.report.analysis.estimates import Estimate
from hpc_ewc.report.analysis.means import Mean
from hpc_ewc.report.study.columns import Column, language_name
from hpc_ewc.report.tables.builder import Builder, plain_name
from hpc_ewc.report.tables.formats import bits, percent
from hpc_ewc.report.tables.lines import Line
from hpc_ewc.report.tables.texts import bits_column

GAINS = ("auto", "accuracy", "text")


@dataclass(frozen=True)
class Gain:
    """The measure, and why it is this one."""

    what: Mean | Column
    why: str
    """Empty where it is the tasks and nobody asked."""

    @property
    def sign(self) -> int:
        """Of a change that is a gain: fewer bits per byte are one."""
        return 1 if isinstance(self.what, Mean) else -1

    @property
    def text(self) -> Callable[..., str]:
        """How its values are written."""
        return percent if isinstance(self.what, Mean) else bits

    @property
    def unit(self) -> str:
        """Of a change, in a sentence."""
        return "points" if isinstance(self.what, Mean) else f"bits per byte of {plain_name(self.what)}"

    @property
    def head(self) -> str:
        """Of a column that shows changes."""
        name = f"Δ {language_name(self.what.language)}"
        return name if isinstance(self.what, Mean) else f"{name} bits/byte"

    def value(self, build: Builder, line: Line) -> Estimate | None:
        """Of one row."""
        if isinstance(self.what, Mean):
            return build.lines.mean_value(line, self.what)[0]
        return build.lines.value(line, self.what, "bits_per_byte")[0]


def gain(build: Builder) -> Gain | None:
    """By tasks, unless there are none or no run is above chance in them; None where the language has nothing at all."""
    mean, text = build.analysis.mean(build.study.target), bits_column(build, build.study.target)
    if build.gain == "text" and text is not None:
        return Gain(text, "as asked")
    if mean is not None and (build.gain == "accuracy" or text is None):
        return Gain(mean, "as asked" if build.gain == "accuracy" else "")
    if mean is None:
        return None if text is None else Gain(text, "no run has tasks of this language")
    if _is_above_chance(build, mean):
        return Gain(mean, "")
    assert text is not None
    return Gain(text, f"no run, the base included, can be told from chance in {over(mean)}")


def over(mean: Mean) -> str:
    """Its 7 tasks; exams_lt, where that is the only one."""
    return f"its {len(mean.columns)} tasks" if mean.single is None else plain_name(mean.single)


def _is_above_chance(build: Builder, mean: Mean) -> bool:
    """Some run is, in the mean over the tasks whose chance is known; without any such task nobody can say.

    At 95 % over all runs together (Bonferroni): of a hundred that guess, one alone would often be 1.96 errors above.
    """
    chances = build.analysis.chances
    z = NormalDist().inv_cdf(1 - 0.025 / max(1, len(build.study.runs)))
    known = [column for column in mean.columns if column in chances]
    for run in build.study.runs if known else ():
        each = [build.analysis.values.get((run, column, column.metric)) for column in known]
        found = [e for e in each if e is not None and e.stderr is not None]
        if len(found) == len(known):
            above = sum(e.value - chances[column] for e, column in zip(found, known, strict=True))
            if above > z * math.hypot(*(e.stderr or 0.0 for e in found)):
                return True
    return not known
