"""The measure of the gain in the new language: its tasks if they can show one, else bits per byte of a text.

A small model, or one that has learnt little, answers the tasks of the new language at chance. Choosing λ by such
numbers is choosing by noise, while the same runs differ by many standard errors in how well they predict its text.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from hpc_ewc.report.analysis.estimates import Estimate
from hpc_ewc.report.analysis.means import Mean
from hpc_ewc.report.analysis.statistics import normal_quantile
from hpc_ewc.report.study.columns import Column, language_name
from hpc_ewc.report.tables.builder import Builder, plain_name, text_of
from hpc_ewc.report.tables.lines import Line
from hpc_ewc.report.tables.texts import BITS, bits_column

GAINS = ("auto", "accuracy", "text")


@dataclass(frozen=True)
class Gain:
    """The measure, and the reason for it."""

    what: Mean | Column
    why: str
    """Empty if tasks were taken by default."""

    @property
    def sign(self) -> int:
        """Sign of a change that is a gain: fewer bits per byte are one."""
        return 1 if isinstance(self.what, Mean) else -1

    @property
    def metric(self) -> str | None:
        """Metric of its values, if they are not a mean over tasks."""
        return None if isinstance(self.what, Mean) else BITS

    @property
    def text(self) -> Callable[..., str]:
        """The function that formats its values."""
        return text_of(self.what, self.metric)

    @property
    def unit(self) -> str:
        """Unit of a change, in a sentence."""
        return "points" if isinstance(self.what, Mean) else f"bits per byte of {plain_name(self.what)}"

    @property
    def head(self) -> str:
        """Head of a column of changes."""
        name = f"Δ {language_name(self.what.language)}"
        return name if isinstance(self.what, Mean) else f"{name} bits/byte"

    def value(self, build: Builder, line: Line) -> Estimate | None:
        """The value of one row."""
        return build.lines.value(line, self.what, self.metric)[0]


def gain(build: Builder) -> Gain | None:
    """The measure: tasks, unless none exist or no run is above chance in them; None if nothing was measured."""
    mean, text = build.analysis.mean(build.study.target), bits_column(build, build.study.target)
    if build.gain == "text" and text is not None:
        return Gain(text, "as requested")
    if mean is not None and (build.gain == "accuracy" or text is None):
        return Gain(mean, "as requested" if build.gain == "accuracy" else "")
    if mean is None:
        return None if text is None else Gain(text, "no run has tasks of this language")
    if _is_above_chance(build, mean):
        return Gain(mean, "")
    assert text is not None
    tasks = f"its {len(mean.columns)} tasks" if mean.single is None else plain_name(mean.single)
    return Gain(text, f"no run, the base included, is significantly above chance in {tasks}")


def _is_above_chance(build: Builder, mean: Mean) -> bool:
    """Whether some run is, in the mean over the tasks whose chance is known; True if it is known of none.

    At 95 % over all runs together (Bonferroni): among a hundred that guess, one alone is often 1.96 errors above.
    """
    chances = build.analysis.chances
    z = normal_quantile(1 - 0.025 / max(1, len(build.study.runs)))
    known = [column for column in mean.columns if column in chances]
    for run in build.study.runs if known else ():
        each = [build.analysis.value(run, column) for column in known]
        found = [e for e in each if e is not None and e.stderr is not None]
        if len(found) == len(known):
            above = sum(e.value - chances[column] for e, column in zip(found, known, strict=True))
            if above > z * math.hypot(*(e.stderr or 0.0 for e in found)):
                return True
    return not known
