"""Does the miniature show the phenomenon? What issue 2 of this project fixed before any of its seeds was run."""

from __future__ import annotations

from dataclasses import dataclass

from hpc_ewc.report.analysis import Analysis, Difference, Estimate
from hpc_ewc.report.formats import percent, strength_text
from hpc_ewc.report.means import Mean
from hpc_ewc.report.study import SOURCE_LANGUAGE, Column, Run, Study
from hpc_ewc.report.tables import Builder, Cell, Head, Table, bits_column

LOSS, FACTOR = 0.20, 2.0
"""λ = 0 must lose so much English accuracy, or multiply its bits per byte by so much."""
KEPT, KEPT_BITS, SHARE = 0.03, 0.10, 0.5
"""Some λ must lose no more English accuracy, no more of its bits per byte, and gain this share of what λ = 0 gains."""
UNMOVED, UNMOVED_BITS = 0.01, 0.02
"""At the largest λ English is as it was: within this, or not to be told from it."""


@dataclass(frozen=True)
class Verdict:
    """One requirement, for one seed."""

    holds: bool | None
    """None: cannot be said, since a cell is missing."""
    evidence: str


@dataclass(frozen=True)
class Point:
    """What the requirements look at, for one run."""

    run: Run
    strength: float
    accuracy: Difference
    """English, mean over tasks."""
    english: Difference
    """English bits per byte."""
    english_base: float
    lithuanian: Difference
    """Lithuanian bits per byte."""
    learnt: Estimate
    """Lithuanian accuracy, mean over tasks."""
    learnt_difference: Difference

    @property
    def factor(self) -> float:
        """English bits per byte over those of the base."""
        return 1 + self.english.value / self.english_base


def criterion_table(build: Builder) -> Table | None:
    """The three requirements by seed; for the miniature alone."""
    analysis = build.analysis
    if not analysis.study.illustration:
        return None
    seeds = sorted({run.seeds for run in analysis.study.runs if run.strength is not None})
    table = Table("criterion", "Does the phenomenon show? (fixed beforehand)", [Head("requirement", is_label=True)], [])
    several = len(seeds) > 1
    table.heads += [Head("seed", is_label=True)] if several else []
    table.heads += [Head("holds"), Head("measured")]
    texts = (
        "λ = 0 forgets English",
        "some λ keeps English and learns Lithuanian",
        "the largest λ moves next to nothing",
    )
    for place, text in enumerate(texts):
        for seed in seeds:
            verdict = judge(analysis, build, seed)[place]
            said = "?" if verdict.holds is None else "yes" if verdict.holds else "NO"
            number = None if verdict.holds is None else float(verdict.holds)
            label = [Cell(text), *([Cell(" ".join(str(value) for _, value in seed))] if several else [])]
            table.rows.append([*label, Cell(said, number, bold=True), Cell(verdict.evidence)])
    table.notes.append(
        f"Forgets: at least {100 * LOSS:.0f} points of accuracy lost, or bits per byte × {FACTOR:g}. "
        f"Keeps and learns: at most {100 * KEPT:.0f} points lost, bits per byte within {100 * KEPT_BITS:.0f} %, and "
        f"Lithuanian bits per byte fall by at least {100 * SHARE:.0f} % of what λ = 0 gains. "
        f"Next to nothing: English accuracy within {100 * UNMOVED:.0f} point and bits per byte within "
        f"{100 * UNMOVED_BITS:.0f} %, or not to be told from the base's (95 %); Lithuanian accuracy at chance (within "
        "1.96 standard errors, or not to be told from the base's)."
    )
    return table


def judge(analysis: Analysis, build: Builder, seed: tuple[tuple[str, object], ...]) -> tuple[Verdict, Verdict, Verdict]:
    """The requirements for the runs of one seed."""
    points = sorted(_points(analysis, build, seed), key=lambda point: point.strength)
    unknown = Verdict(None, "a cell is missing")
    if not points or points[0].strength != 0:
        return unknown, unknown, unknown
    free, held = points[0], points[1:]
    forgets = free.accuracy.value <= -LOSS or free.factor >= FACTOR
    first = Verdict(forgets, f"accuracy {_points_text(free.accuracy)}, bits per byte × {free.factor:.2f}")
    return first, _keeps(free, held), _unmoved(analysis, build, held[-1]) if held else unknown


def _keeps(free: Point, held: list[Point]) -> Verdict:
    """The best λ: of those that keep English, the one with the largest gain; else the nearest to it."""
    if not held or free.lithuanian.value >= 0:
        return Verdict(False if held else None, "λ = 0 gains nothing in Lithuanian" if held else "no λ > 0")

    def share(point: Point) -> float:
        return point.lithuanian.value / free.lithuanian.value

    keeping = [p for p in held if p.accuracy.value >= -KEPT and abs(p.factor - 1) <= KEPT_BITS]
    best = max(keeping or held, key=share)
    evidence = (
        f"λ = {strength_text(best.strength)}: accuracy {_points_text(best.accuracy)}, "
        f"bits per byte × {best.factor:.2f}, {100 * share(best):.0f} % of the Lithuanian gain"
    )
    return Verdict(bool(keeping) and share(best) >= SHARE, evidence)


def _unmoved(analysis: Analysis, build: Builder, point: Point) -> Verdict:
    accuracy = abs(point.accuracy.value) <= UNMOVED or _contains_zero(point.accuracy)
    english = abs(point.factor - 1) <= UNMOVED_BITS or _contains_zero(point.english)
    mean = analysis.mean(build.study.target)
    chance = _chance(mean)
    error = point.learnt.stderr or 0.0
    at_chance = (chance is not None and abs(point.learnt.value - chance) <= 1.96 * error) or _contains_zero(
        point.learnt_difference
    )
    evidence = (
        f"λ = {strength_text(point.strength)}: accuracy {_points_text(point.accuracy)}, "
        f"bits per byte × {point.factor:.3f}; Lithuanian {percent(point.learnt.value, point.learnt.stderr)}"
        + ("" if chance is None else f", chance {percent(chance)}")
    )
    return Verdict(accuracy and english and at_chance, evidence)


def _contains_zero(difference: Difference) -> bool:
    if difference.low is not None and difference.high is not None:
        return difference.low <= 0 <= difference.high
    return abs(difference.value) <= 1.96 * difference.stderr


def _chance(mean: Mean | None) -> float | None:
    """Of the mean over tasks, where every task has one."""
    if mean is None or any(column.chance is None for column in mean.columns):
        return None
    return sum(column.chance or 0.0 for column in mean.columns) / len(mean.columns)


def _points_text(difference: Difference) -> str:
    return f"{percent(difference.value, difference.stderr, sign=True)} points"


def _points(analysis: Analysis, build: Builder, seed: tuple[tuple[str, object], ...]) -> list[Point]:
    study: Study = analysis.study
    old, new = analysis.mean(SOURCE_LANGUAGE), analysis.mean(study.target)
    english, lithuanian = bits_column(build, SOURCE_LANGUAGE), bits_column(build, study.target)
    if old is None or new is None or english is None or lithuanian is None:
        return []
    found = []
    for run in study.runs:
        if run.strength is None or run.seeds != seed or run.fraction != 1.0:
            continue
        point = _point(analysis, run, (old, new), (english, lithuanian))
        if point is not None:
            found.append(point)
    return found


def _point(analysis: Analysis, run: Run, means: tuple[Mean, Mean], texts: tuple[Column, Column]) -> Point | None:
    accuracy, learnt_difference = (analysis.mean_differences.get((run, mean)) for mean in means)
    english, lithuanian = (analysis.differences.get((run, column, "bits_per_byte")) for column in texts)
    learnt, value = analysis.mean_values.get((run, means[1])), analysis.values.get((run, texts[0], "bits_per_byte"))
    if None in (accuracy, learnt_difference, english, lithuanian, learnt, value):
        return None
    assert accuracy and learnt_difference and english and lithuanian and learnt and value
    assert run.strength is not None
    base = value.value - english.value
    return Point(run, run.strength, accuracy, english, base, lithuanian, learnt, learnt_difference)
