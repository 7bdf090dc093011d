"""The recommended λ, and comparisons of two runs."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from hpc_ewc.errors import InputError
from hpc_ewc.report import compare, load_records
from hpc_ewc.report.analysis.differences import analyse
from hpc_ewc.report.analysis.estimates import Analysis, Estimate
from hpc_ewc.report.analysis.means import Mean
from hpc_ewc.report.comparison import print_comparison
from hpc_ewc.report.study.collect import collect
from hpc_ewc.report.study.samples import SampleReader
from hpc_ewc.report.study.stages import read_stages
from hpc_ewc.report.study.study import build_study
from hpc_ewc.report.tables.builder import Builder
from hpc_ewc.report.tables.choose import _pick, choose
from hpc_ewc.report.tables.lines import Lines
from hpc_ewc.report.tables.measure import gain
from hpc_ewc.report.tables.recommendation import choice_table, sentence
from hpc_ewc.report.tables.summary import front
from tests.unit.report_fixture import RunBuilder

TASKS = ("arc_easy", "belebele", "mmlu")


def analysis_of(root: Path) -> Analysis:
    collection = collect([root])
    return analyse(build_study(collection, read_stages(collection)))


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    root = tmp_path_factory.mktemp("choose") / "runs" / "small"
    RunBuilder(root, strengths=(0.0, 1e2, 1e4, 1e12), tasks=TASKS, n=80).build()
    return analysis_of(root)


# ---------------------------------------------------------------------------------------------- choosing


def test_the_rule_takes_the_largest_gain_within_the_loss() -> None:
    old = np.array([[-0.30, -0.02, -0.005, 0.0], [-0.3, -0.2, -0.2, -0.2]])
    new = np.array([[0.40, 0.30, 0.20, 0.01], [0.4, 0.3, 0.2, 0.1]])
    assert list(_pick(old, new, 0.01)) == [2, -1]
    assert list(_pick(old, new, 0.03)) == [1, -1]
    assert list(_pick(old, new, 1.0)) == [0, 0]
    assert list(_pick(old, -new, 1.0)) == [-1, -1], "only values above 0 are gains"


def test_the_halves_are_disjoint_complete_and_equal_for_translations(analysis: Analysis) -> None:
    reader = SampleReader(analysis.study)
    base = analysis.study.runs[0]
    halves = {}
    for column in analysis.study.columns:
        scores = reader.scores(base, column)
        assert scores is not None
        assert 0.2 < scores.documents.half.mean() < 0.8
        halves[column.cell] = scores.documents
    assert (halves["mmlu.en"].half == halves["mmlu.lt"].half).all()
    passages = halves["belebele.en"]
    for code in np.unique(passages.clusters):
        assert len(set(passages.half[passages.clusters == code])) == 1, "each passage is in one half"


def test_the_recommendation_is_scored_on_documents_not_used_to_choose_it(analysis: Analysis) -> None:
    build = Builder(Lines(analysis))
    choice = choose(build)
    assert choice is not None
    assert choice.best is not None
    assert choice.best.line.first.strength == 1e4
    assert sum(candidate.chosen for candidate in choice.candidates) + choice.none == pytest.approx(1.0)
    assert choice.best.chosen == max(candidate.chosen for candidate in choice.candidates)
    # the reported loss, by hand
    reader, values = SampleReader(analysis.study), []
    run = choice.best.line.first
    for column in (c for c in analysis.study.columns if c.language == "en" and c.kind == "share"):
        mine, theirs = (reader.scores(r, column) for r in (run, analysis.study.bases[run]))
        assert mine is not None
        assert theirs is not None
        values.append((mine.values - theirs.values)[~mine.documents.half].mean())
    assert choice.best.old_reported.value == pytest.approx(np.mean(values))
    said = sentence(build, choice)
    assert said.startswith("Recommended: λ = 1e4.")
    assert said.endswith("Single seed per setting: the conclusion applies to these checkpoints only.")


def test_choice_frequency_is_counted_over_resampled_documents(analysis: Analysis) -> None:
    """Count independently: a loop over resamples of the first half, of documents per task and whole passages."""
    choice = choose(Builder(Lines(analysis)), max_loss=0.01)
    assert choice is not None
    reader, lines = SampleReader(analysis.study), [candidate.line for candidate in choice.candidates]
    base = analysis.study.bases[lines[0].first]
    tasks: dict[str, list[tuple[np.ndarray, list[np.ndarray]]]] = {"en": [], "lt": []}
    for column in (c for c in analysis.study.columns if c.kind == "share"):
        each = [reader.scores(run, column) for run in (base, *(line.first for line in lines))]
        first = each[0].documents  # type: ignore[union-attr]
        values = np.stack([scores.values for scores in each], axis=1)[first.half]  # type: ignore[union-attr]
        codes = np.arange(len(values)) if first.clusters is None else first.clusters[first.half]
        groups = [np.flatnonzero(codes == code) for code in dict.fromkeys(codes)]
        tasks[column.language].append((values[:, 1:] - values[:, :1], groups))
    rng, counts = np.random.default_rng(2), np.zeros(len(lines) + 1)
    for _ in range(2000):
        change = {}
        for language, parts in tasks.items():
            drawn = [np.concatenate([g[i] for i in rng.integers(0, len(g), len(g))]) for _, g in parts]
            change[language] = np.mean([v[d].mean(axis=0) for (v, _), d in zip(parts, drawn, strict=True)], axis=0)
        allowed = [place for place in range(len(lines)) if change["en"][place] >= -0.01 and change["lt"][place] > 0]
        counts[max(allowed, key=lambda place: change["lt"][place], default=-1)] += 1
    expected = counts / 2000
    assert choice.none == pytest.approx(expected[-1], abs=0.04)
    assert [candidate.chosen for candidate in choice.candidates] == pytest.approx(list(expected[:-1]), abs=0.04)
    assert 0.02 < max(expected) < 0.98, "otherwise the test would be empty"


def test_nothing_is_recommended_if_every_run_forgets_too_much(tmp_path: Path) -> None:
    root = tmp_path / "runs" / "x"
    RunBuilder(root, strengths=(0.0, 1.0), tasks=TASKS, n=40).build()
    build = Builder(Lines(analysis_of(root)))
    choice = choose(build)
    assert choice is not None
    assert choice.best is None
    assert sentence(build, choice).startswith("No recommendation: on the first half no run loses at most 1 point of")


def test_the_front_contains_the_undominated_runs(analysis: Analysis) -> None:
    build = Builder(Lines(analysis))
    old, new = (next(m for m in analysis.means if m.language == language) for language in ("en", "lt"))
    points = {
        line: (analysis.mean_values[line.first, old].value, analysis.mean_values[line.first, new].value)
        for line in build.lines.lines
    }
    for line, (x, y) in points.items():
        dominated = any(a >= x and b >= y and (a > x or b > y) for a, b in points.values())
        assert (line in front(build)) == (not dominated)


# ---------------------------------------------------------------------------------------------- two runs


def rows(analysis: Analysis, strength: float | None) -> list[dict[str, object]]:
    source = Path(next(iter(analysis.study.records.values()))["path"]).parents[3]
    return [row for row in load_records(source) if row["coordinates"].get("ewc.strength") == strength]


def test_two_runs_are_compared_per_task_and_overall(analysis: Analysis) -> None:
    comparison = compare(rows(analysis, 0.0), rows(analysis, 1e12))
    english = [judgement for judgement in comparison.tasks if judgement.language == "en"]
    assert {judgement.better for judgement in english} == {"B"}
    assert [mean.better for mean in comparison.means] == ["B", "A"]
    assert "English, mean over tasks: B changes A's" in comparison.verdict
    assert "B is better than A on ARC easy (English)" in comparison.verdict
    out = io.StringIO()
    print_comparison(comparison, Console(file=out, width=80))
    assert "A: strength=0-" in out.getvalue()
    assert "apply to these two checkpoints only" in out.getvalue()


def test_a_comparison_equals_the_reports_difference(analysis: Analysis) -> None:
    comparison = compare(rows(analysis, None), rows(analysis, 1e4))
    run = next(run for run in analysis.study.runs if run.strength == 1e4)
    column = next(column for column in analysis.study.columns if column.cell == "belebele.lt")
    expected = analysis.differences[run, column, "acc"]
    found = next(j.difference for j in comparison.tasks if j.name == "Belebele" and j.language == "lt")
    assert (found.value, found.stderr, found.p, found.low) == (
        expected.value,
        expected.stderr,
        expected.p,
        expected.low,
    )


def test_a_run_equals_itself(analysis: Analysis) -> None:
    comparison = compare(rows(analysis, 1e4), rows(analysis, 1e4))
    assert all(judgement.better == "" for judgement in comparison.tasks)
    assert "no significant difference" in comparison.verdict


def test_a_comparison_needs_one_run_on_each_side(analysis: Analysis) -> None:
    with pytest.raises(InputError, match="A must be one run at one checkpoint; it holds nothing"):
        compare([], rows(analysis, None))
    with pytest.raises(InputError, match="B must be one run at one checkpoint; it holds base at step 0, strength=0-"):
        compare(rows(analysis, None), rows(analysis, None) + rows(analysis, 0.0))


def test_cells_on_only_one_side_are_named(analysis: Analysis) -> None:
    fewer = [row for row in rows(analysis, 1e4) if row["cell"] != "mmlu.en"]
    comparison = compare(rows(analysis, None), fewer)
    assert comparison.only_one == ["mmlu (en)"]
    assert not any(mean.language == "en" for mean in comparison.means)


def test_with_several_seeds_the_sentence_says_what_its_interval_omits(tmp_path: Path) -> None:
    root = tmp_path / "runs" / "x"
    RunBuilder(root, strengths=(0.0, 1e4, 1e12), seeds=(0, 1), tasks=TASKS, n=60).build()
    build = Builder(Lines(analysis_of(root)))
    choice = choose(build)
    assert choice is not None
    assert choice.best is not None
    assert sentence(build, choice).endswith("Intervals and resamples are of documents alone, not of seeds.")
    table = choice_table(build, choice)
    assert table is not None
    assert table.notes[0].endswith("by bootstrap of documents, not of seeds.")


def test_the_luckiest_of_many_guessing_runs_is_not_above_chance(tmp_path: Path) -> None:
    """2.5 standard errors above chance is significant for one run, not for the best of thirty."""
    estimates = {30: False, 1: True}
    for count, is_above in estimates.items():
        root = tmp_path / f"{count}" / "x"
        RunBuilder(root, strengths=tuple(10.0**i for i in range(count)), tasks=("arc_easy",), n=12).build(base=False)
        analysis = analysis_of(root)
        column = next(c for c in analysis.study.columns if c.cell == "arc_easy.lt")
        for place, run in enumerate(analysis.study.runs):
            analysis.values[run, column, "acc"] = Estimate(0.25 + (0.05 if place == 0 else 0.0), 0.02, 400)
        found = gain(Builder(Lines(analysis)))
        assert found is not None
        assert isinstance(found.what, Mean) == is_above
