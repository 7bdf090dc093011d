"""`python -m examples.miniature.criterion runs/NAME`: does an experiment on the miniature show the phenomenon?

Three requirements, fixed before the first run: λ = 0 forgets English, some λ keeps it and still learns Lithuanian, and
the largest λ leaves the model almost unchanged.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from hpc_ewc.errors import HpcEwcError
from hpc_ewc.report.analysis.differences import analyse
from hpc_ewc.report.analysis.estimates import Analysis, Difference, Estimate
from hpc_ewc.report.analysis.means import Mean
from hpc_ewc.report.output.terminal import print_table
from hpc_ewc.report.study.collect import collect
from hpc_ewc.report.study.columns import SOURCE_LANGUAGE, Column
from hpc_ewc.report.study.runs import Run
from hpc_ewc.report.study.stages import read_stages
from hpc_ewc.report.study.study import Study, build_study
from hpc_ewc.report.tables.builder import Builder
from hpc_ewc.report.tables.formats import NOTHING, percent, strength_text
from hpc_ewc.report.tables.lines import Lines
from hpc_ewc.report.tables.table import Cell, Head, Table, difference_cell, value_cell
from hpc_ewc.report.tables.texts import bits_column

LOSS, FACTOR = 0.20, 2.0
"""λ = 0 must lose at least this much English accuracy, or multiply its English bits per byte by this factor."""
KEPT, KEPT_BITS, SHARE = 0.03, 0.10, 0.5
"""Some λ may lose at most this much English accuracy and bits per byte, and must gain this share of λ = 0's gain."""
UNMOVED, UNMOVED_BITS = 0.01, 0.02
"""At the largest λ English changes by at most this, or not significantly."""


@dataclass(frozen=True)
class Verdict:
    """The verdict on one requirement for one seed, with the numbers that decide it."""

    holds: bool | None
    """None: unknown, because a cell is missing."""
    strength: float | None = None
    """λ of the run that decides."""
    accuracy: Difference | None = None
    factor: float | None = None
    share: float | None = None
    """Gain in Lithuanian bits per byte as a share of λ = 0's."""
    learnt: Estimate | None = None


@dataclass(frozen=True)
class Point:
    """The measurements of one run that the requirements use; None where a cell is missing."""

    strength: float
    accuracy: Difference | None
    """Change of English accuracy, mean over tasks."""
    english: Difference | None
    """Change of English bits per byte."""
    english_base: float | None
    lithuanian: Difference | None
    """Change of Lithuanian bits per byte."""
    learnt: Estimate | None
    """Lithuanian accuracy, mean over tasks."""
    learnt_difference: Difference | None

    @property
    def factor(self) -> float | None:
        """English bits per byte divided by the base model's."""
        return None if self.english is None or not self.english_base else 1 + self.english.value / self.english_base


REQUIREMENTS = ("λ = 0 forgets", "some λ keeps and learns", "largest λ barely moves")


def main(arguments: list[str] | None = None) -> int:
    """Print the table of requirements; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m examples.miniature.criterion", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, such as runs/miniature")
    try:
        print_table(criterion_table(read_runs(parser.parse_args(arguments).folders)), Console())
    except HpcEwcError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 2
    return 0


def read_runs(folders: list[Path]) -> Builder:
    """The analysed records of run folders."""
    collection = collect(folders)
    return Builder(Lines(analyse(build_study(collection, read_stages(collection)))))


def criterion_table(build: Builder) -> Table:
    """The three requirements, a row for each seed."""
    analysis = build.analysis
    seeds = sorted({run.seeds for run in analysis.study.runs if run.strength is not None})
    table = Table("criterion", "Does the phenomenon show? (fixed beforehand)", [Head("requirement", is_label=True)], [])
    several = len(seeds) > 1
    table.heads += [Head("seed", is_label=True)] if several else []
    names = ("holds", "λ", "Δ English", "bits/byte English ×", "Lithuanian gain", "Lithuanian")
    table.heads += [Head(name) for name in names]
    for place, requirement in enumerate(REQUIREMENTS):
        for seed in seeds:
            label = [Cell(requirement), *([Cell(" ".join(str(value) for _, value in seed))] if several else [])]
            table.rows.append([*label, *_cells(judge(analysis, build, seed)[place])])
    chance = _chance(analysis.mean(build.study.target))
    table.notes.append(
        f"Forgets: at least {100 * LOSS:.0f} points of accuracy lost, or bits per byte × {FACTOR:g}. "
        f"Keeps and learns: at most {100 * KEPT:.0f} points lost, bits per byte within {100 * KEPT_BITS:.0f} %, and "
        f"Lithuanian bits per byte fall by at least {100 * SHARE:.0f} % of what λ = 0 gains. "
        f"Barely moves: English accuracy within {100 * UNMOVED:.0f} point and bits per byte within "
        f"{100 * UNMOVED_BITS:.0f} %, or not significantly different from the base's (95 %); Lithuanian accuracy at "
        "chance"
        + ("" if chance is None else f" ({percent(chance)})")
        + " within 1.96 standard errors, or not significantly different from the base's. ?: a cell is missing."
    )
    return table


def _cells(verdict: Verdict) -> list[Cell]:
    said = "?" if verdict.holds is None else "yes" if verdict.holds else "NO"
    factor, share = verdict.factor, verdict.share
    return [
        Cell(said, None if verdict.holds is None else float(verdict.holds), bold=True),
        Cell(NOTHING if verdict.strength is None else strength_text(verdict.strength), verdict.strength),
        difference_cell(verdict.accuracy, percent),
        Cell(NOTHING if factor is None else f"{factor:.3f}", factor),
        Cell(NOTHING if share is None else f"{100 * share:.0f} %", share),
        value_cell((verdict.learnt, None), percent),
    ]


UNKNOWN = Verdict(None)


def judge(analysis: Analysis, build: Builder, seed: tuple[tuple[str, object], ...]) -> tuple[Verdict, Verdict, Verdict]:
    """The requirements for the runs of one seed."""
    points = sorted(_points(analysis, build, seed), key=lambda point: point.strength)
    free = points[0] if points and points[0].strength == 0 else None
    held = [point for point in points if point.strength > 0]
    last = _unmoved(held[-1], _chance(analysis.mean(build.study.target))) if held else UNKNOWN
    return UNKNOWN if free is None else _forgets(free), UNKNOWN if free is None else _keeps(free, held), last


def _forgets(free: Point) -> Verdict:
    if free.accuracy is None or free.factor is None:
        return UNKNOWN
    forgets = free.accuracy.value <= -LOSS or free.factor >= FACTOR
    return Verdict(forgets, 0.0, free.accuracy, free.factor, 1.0, free.learnt)


def _keeps(free: Point, held: list[Point]) -> Verdict:
    """The verdict on the best λ: the largest gain among those that keep English, else the largest gain of all."""
    if free.lithuanian is None:
        return UNKNOWN
    gain = free.lithuanian.value
    if gain >= 0:
        return Verdict(False, 0.0, free.accuracy, free.factor, None, free.learnt)
    known = []
    for p in held:
        if p.lithuanian is not None and p.factor is not None and p.accuracy is not None:
            keeps = p.accuracy.value >= -KEPT and abs(p.factor - 1) <= KEPT_BITS
            share = p.lithuanian.value / gain
            holds = keeps and share >= SHARE
            known.append((keeps, share, Verdict(holds, p.strength, p.accuracy, p.factor, share, p.learnt)))
    best = max(known, key=lambda item: item[:2], default=None)
    if best is None or (not best[2].holds and len(known) < len(held)):
        return UNKNOWN
    return best[2]


def _unmoved(point: Point, chance: float | None) -> Verdict:
    accuracy, english, learnt, change = point.accuracy, point.english, point.learnt, point.learnt_difference
    if accuracy is None or english is None or learnt is None or change is None or point.factor is None:
        return UNKNOWN
    same_accuracy = abs(accuracy.value) <= UNMOVED or _contains_zero(accuracy)
    same_bits = abs(point.factor - 1) <= UNMOVED_BITS or _contains_zero(english)
    near_chance = chance is not None and abs(learnt.value - chance) <= 1.96 * (learnt.stderr or 0.0)
    holds = same_accuracy and same_bits and (near_chance or _contains_zero(change))
    return Verdict(holds, point.strength, accuracy, point.factor, None, learnt)


def _contains_zero(difference: Difference) -> bool:
    if difference.low is not None and difference.high is not None:
        return difference.low <= 0 <= difference.high
    return abs(difference.value) <= 1.96 * difference.stderr


def _chance(mean: Mean | None) -> float | None:
    """Chance level of the mean over tasks, if every task has one."""
    if mean is None or any(column.chance is None for column in mean.columns):
        return None
    return sum(column.chance or 0.0 for column in mean.columns) / len(mean.columns)


def _points(analysis: Analysis, build: Builder, seed: tuple[tuple[str, object], ...]) -> list[Point]:
    study: Study = analysis.study
    old, new = analysis.mean(SOURCE_LANGUAGE), analysis.mean(study.target)
    english, lithuanian = bits_column(build, SOURCE_LANGUAGE), bits_column(build, study.target)
    if old is None or new is None or english is None or lithuanian is None:
        return []
    return [
        _point(analysis, run, (old, new), (english, lithuanian))
        for run in study.runs
        if run.strength is not None and run.seeds == seed and run.fraction == 1.0
    ]


def _point(analysis: Analysis, run: Run, means: tuple[Mean, Mean], texts: tuple[Column, Column]) -> Point:
    accuracy, change = (analysis.mean_differences.get((run, mean)) for mean in means)
    english, lithuanian = (analysis.differences.get((run, column, "bits_per_byte")) for column in texts)
    value = analysis.values.get((run, texts[0], "bits_per_byte"))
    base = None if value is None or english is None else value.value - english.value
    assert run.strength is not None
    learnt = analysis.mean_values.get((run, means[1]))
    return Point(run.strength, accuracy, english, base, lithuanian, learnt, change)


if __name__ == "__main__":
    sys.exit(main())
