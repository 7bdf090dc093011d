"""Tasks and texts that the languages do not share: no claims about missing ones; λ is chosen by available ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpc_ewc import suites
from hpc_ewc.config import EvaluateConfig
from hpc_ewc.report.__main__ import main
from hpc_ewc.report.analysis.differences import analyse
from hpc_ewc.report.analysis.estimates import Analysis
from hpc_ewc.report.comparison import compare_paths
from hpc_ewc.report.drawing.figures import draw_figures
from hpc_ewc.report.output.data import choice_fields
from hpc_ewc.report.study.collect import collect
from hpc_ewc.report.study.samples import SampleReader
from hpc_ewc.report.study.stages import read_stages
from hpc_ewc.report.study.study import build_study
from hpc_ewc.report.tables.builder import Builder
from hpc_ewc.report.tables.document import Document, build_document
from hpc_ewc.report.tables.lines import Lines
from hpc_ewc.report.tables.measure import gain
from hpc_ewc.report.tables.recommendation import sentence
from hpc_ewc.report.tables.summary import front
from hpc_ewc.report.tables.table import Table
from hpc_ewc.report.tables.texts import bits_column
from tests.unit.report_fixture import RunBuilder

ENGLISH = ("arc_easy.en", "mmlu.en")
TEXTS = ("en.flores", "lt.flores", "en.news", "lt.news")


class Uneven(RunBuilder):
    """Runs with English tasks, one Lithuanian four-choice task at chance, and three texts."""

    asked: Sequence[str] = (*ENGLISH, "arc_easy.lt", "ppl_heldout")
    texts: Sequence[str] = TEXTS

    def cells(self) -> list[suites.Cell]:
        heldout = {text: f"{text}.jsonl" for text in self.texts}
        return suites.expand_suites(EvaluateConfig(suites=tuple(self.asked), heldout=heldout), "lt")

    def rows(self, cell: suites.Cell, strength: float | None, seed: int) -> list[dict[str, Any]]:
        rows = super().rows(cell, strength, seed)
        if cell.name == "arc_easy.lt":
            for i, row in enumerate(rows):
                guessed = (i + 3 * (strength is None)) % 4 == 0
                row |= {"loglikelihoods": [-1.0] * 4, "metrics": {"acc": float(guessed)}}
        return rows[:8] if cell.variant == "news" else rows

    def write(self, *args: Any, **changes: Any) -> Path:
        unknown: Mapping[str, Any] = {"chance": None} if args[5].name == "arc_easy.lt" else {}
        return super().write(*args, **{**changes, **unknown})


def analysis_of(root: Path) -> Analysis:
    collection = collect([root])
    return analyse(build_study(collection, read_stages(collection)), resamples=400)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("uneven") / "runs" / "uneven"
    Uneven(root, strengths=(0.0, 1e2, 1e4, 1e12), n=80).build()
    return root


@pytest.fixture(scope="module")
def analysis(root: Path) -> Analysis:
    return analysis_of(root)


@pytest.fixture(scope="module")
def document(analysis: Analysis) -> Document:
    return build_document(analysis)


def table_of(document: Document, key: str) -> Table:
    return next(table for table in document.tables if table.key == key)


def heads(table: Table) -> list[str]:
    return [head.text for head in table.heads]


# ---------------------------------------------------------------------------------------------- texts


def test_the_compared_text_is_one_both_languages_have(analysis: Analysis) -> None:
    build = Builder(Lines(analysis))
    assert [bits_column(build, language).cell for language in ("en", "lt")] == [  # type: ignore[union-attr]
        "ppl_heldout.en.flores",
        "ppl_heldout.lt.flores",
    ], "both have flores and news; flores has more documents, and the corpus's own text is Lithuanian alone"


@pytest.mark.parametrize(
    ("texts", "english", "lithuanian"),
    [
        (("en", "en.a", "lt.a"), "ppl_heldout.en", "ppl_heldout.lt"),
        (("en.a", "lt.b"), "ppl_heldout.en.a", "ppl_heldout.lt"),
        ((), None, "ppl_heldout.lt"),
    ],
)
def test_other_texts_can_be_compared(
    tmp_path: Path, texts: Sequence[str], english: str | None, lithuanian: str
) -> None:
    run = Uneven(tmp_path / "runs" / "x", strengths=(0.0,), n=12)
    run.asked, run.texts = ("ppl_heldout",), texts
    run.build()
    build = Builder(Lines(analysis_of(run.dir.root)))
    found = [bits_column(build, language) for language in ("en", "lt")]
    assert [None if column is None else column.cell for column in found] == [english, lithuanian]


def test_tables_name_their_texts_and_show_the_corpus_text(document: Document) -> None:
    summary = table_of(document, "summary")
    expected = ["bits/byte English flores", "bits/byte Lithuanian flores", "bits/byte Lithuanian"]
    assert heads(summary)[-3:] == expected
    assert heads(table_of(document, "tradeoff"))[-4:-1] == [f"{name} %" for name in expected]


def test_every_text_has_a_column_with_the_paired_bootstrap_error(analysis: Analysis, document: Document) -> None:
    table = table_of(document, "texts")
    assert heads(table)[1:] == ["English flores", "English news", "Lithuanian", "Lithuanian flores", "Lithuanian news"]
    assert table.foot[0][0].text == "base"
    column = next(c for c in analysis.study.columns if c.cell == "ppl_heldout.lt.flores")
    run = next(run for run in analysis.study.runs if run.strength == 0.0)
    reader = SampleReader(analysis.study)
    mine, theirs = reader.scores(run, column), reader.scores(analysis.study.bases[run], column)
    assert mine is not None
    assert theirs is not None
    assert mine.bytes is not None
    random = np.random.default_rng(3)
    drawn = random.integers(0, 80, size=(4000, 80))
    change = (mine.values - theirs.values)[drawn].sum(1) / mine.bytes[drawn].sum(1) / np.log(2)
    found = analysis.differences[run, column, "bits_per_byte"]
    assert found.resampled_stderr == pytest.approx(change.std(), rel=0.12)
    cell = next(row for row in table.rows if row[0].text == "0")[4]
    assert cell.sort == found.value
    assert f"±{found.resampled_stderr:.3f}" in cell.text


def test_one_text_per_language_needs_no_table_of_texts(tmp_path: Path) -> None:
    run = Uneven(tmp_path / "runs" / "x", strengths=(0.0,), n=12)
    run.texts = ("en",)
    run.build()
    document = build_document(analysis_of(run.dir.root))
    assert "texts" not in [table.key for table in document.tables]


# ---------------------------------------------------------------------------------------------- one task


def test_a_mean_over_one_task_has_the_tasks_name(document: Document) -> None:
    assert heads(table_of(document, "summary"))[1:3] == ["mean English", "ARC easy Lithuanian"]
    assert "English: 2 tasks; Lithuanian: ARC easy alone" in table_of(document, "summary").notes[0]
    assert heads(table_of(document, "accuracy.lt")) == ["λ", "ARC easy"], "no second column with the same numbers"
    assert heads(table_of(document, "difference.lt")) == ["λ", "ARC easy"]
    assert "Plasticity: Lithuanian accuracy, ARC easy alone." in table_of(document, "tradeoff").notes[0]
    everything = " ".join(note for table in document.tables for note in (*table.notes, *table.legend))
    assert "1 tasks" not in everything


def test_the_mean_over_one_task_is_tested_as_the_task_is(analysis: Analysis) -> None:
    mean = analysis.mean("lt")
    assert mean is not None
    assert mean.single is not None
    for run in analysis.study.bases:
        assert analysis.mean_differences[run, mean].p == analysis.differences[run, mean.single, "acc"].p


def test_chance_is_computed_from_answers_if_the_record_lacks_it(analysis: Analysis, document: Document) -> None:
    column = next(c for c in analysis.study.columns if c.cell == "arc_easy.lt")
    assert column.chance is None
    assert analysis.chances[column] == 0.25
    assert [cell.text for cell in table_of(document, "accuracy.lt").foot[0]] == ["chance", "25.0"]


def test_nothing_is_claimed_about_a_language_without_tasks(tmp_path: Path) -> None:
    run = Uneven(tmp_path / "runs" / "x", strengths=(0.0, 1e4), n=40)
    run.asked = (*ENGLISH, "ppl_heldout")
    run.build()
    document = build_document(analysis_of(run.dir.root))
    assert "Δ Lithuanian" not in heads(table_of(document, "summary"))
    tradeoff = table_of(document, "tradeoff")
    assert "plasticity" not in heads(tradeoff)
    assert "Plasticity" not in tradeoff.notes[0]
    assert document.choice is not None
    assert "no run has tasks of this language" in sentence(document.build, document.choice)
    run = Uneven(tmp_path / "runs" / "y", strengths=(0.0, 1e4), n=40)
    run.asked = ("arc_easy.lt", "mmlu.lt", "ppl_heldout")
    run.build()
    document = build_document(analysis_of(run.dir.root))
    assert not {"forgetting", "worst task", "front"} & set(heads(table_of(document, "tradeoff")))
    assert document.choice is None, "the loss in English is unknown"


def test_no_worst_task_is_named_if_none_fell(analysis: Analysis, document: Document) -> None:
    english = [c for c in analysis.study.columns if c.language == "en" and c.kind == "share"]
    place = heads(table_of(document, "tradeoff")).index("worst task")
    for row, run in zip(table_of(document, "tradeoff").rows, sorted(analysis.study.bases), strict=True):
        each = [analysis.differences[run, column, "acc"].value for column in english]
        assert (row[place].text == "none fell") == (min(each) >= 0)


# ---------------------------------------------------------------------------------------------- the measure of the gain


def test_tasks_at_chance_do_not_decide_the_recommendation(analysis: Analysis, document: Document) -> None:
    choice = document.choice
    assert choice is not None
    assert choice.best is not None
    assert choice.best.line.first.strength == 1e4, "keeps English, and has the fewest bits per byte of those that do"
    said = sentence(document.build, choice)
    assert "bits per byte of held-out text flores" in said
    assert "no run, the base included, is significantly above chance in ARC easy" in said
    assert choice_fields(document)["gain_in"] == "bits_per_byte of ppl_heldout.lt.flores"
    # the reported gain, by hand, on the documents not used for the choice
    reader, run = SampleReader(analysis.study), choice.best.line.first
    column = next(c for c in analysis.study.columns if c.cell == "ppl_heldout.lt.flores")
    mine, theirs = reader.scores(run, column), reader.scores(analysis.study.bases[run], column)
    assert mine is not None
    assert theirs is not None
    assert mine.bytes is not None
    other = ~mine.documents.half
    bits = (mine.values - theirs.values)[other].sum() / mine.bytes[other].sum() / np.log(2)
    assert choice.best.new_reported.value == pytest.approx(bits)
    assert heads(table_of(document, "choice"))[2] == "Δ Lithuanian bits/byte first half"


def test_the_front_uses_the_same_measure(analysis: Analysis) -> None:
    build = Builder(Lines(analysis))
    old, column = analysis.mean("en"), bits_column(build, "lt")
    assert old is not None
    assert column is not None
    points = {
        line: (analysis.mean_values[line.first, old].value, -analysis.values[line.first, column, "bits_per_byte"].value)
        for line in build.lines.lines
    }
    for line, (x, y) in points.items():
        dominated = any(a >= x and b >= y and (a > x or b > y) for a, b in points.values())
        assert (line in front(build)) == (not dominated)


def test_the_measure_can_be_set(analysis: Analysis, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = {name: gain(Builder(Lines(analysis), name)) for name in ("auto", "accuracy", "text")}
    assert {name: found.sign for name, found in asked.items() if found} == {"auto": -1, "accuracy": 1, "text": -1}
    assert asked["accuracy"] is not None
    assert asked["accuracy"].why == "as requested"
    assert main([str(root), "--gain", "txt"]) == 2
    assert "ConfigError: --gain txt: allowed are auto, accuracy, text; did you mean" in capsys.readouterr().err


def test_tasks_above_chance_decide_the_recommendation(tmp_path: Path) -> None:
    run = RunBuilder(tmp_path / "runs" / "x", strengths=(0.0, 1e4), tasks=("arc_easy",), n=60)
    run.build()
    found = gain(Builder(Lines(analysis_of(run.dir.root))))
    assert found is not None
    assert (found.sign, found.why) == (1, "")


def test_figures_name_their_measure(document: Document) -> None:
    figures = {figure.name: figure for figure in draw_figures(document, endings=("svg",))}
    assert "Lithuanian bits per byte, flores" in figures["tradeoff"].files["svg"].decode()
    assert "bits per byte of held-out text flores, fewer above" in figures["tradeoff"].caption
    assert "TruthfulQA" not in figures["perplexity"].caption
    assert "Lithuanian: ARC easy alone" in figures["mean"].files["svg"].decode()
    assert figures["perplexity"].files["svg"].decode().count("held-out text") == 2, "one panel per text"


def test_a_comparison_names_the_only_task(root: Path) -> None:
    found = compare_paths("base", "strength=0-", [root])
    assert "Lithuanian, ARC easy alone: B changes" in found.verdict
    assert [row[0].text for row in found.table.rows][-1] == "mean English"


def test_none_is_recommended_if_every_run_lost_the_new_language(tmp_path: Path) -> None:
    run = Uneven(tmp_path / "runs" / "x", strengths=(1e4, 1e12), n=40)
    run.asked, run.texts = (*ENGLISH, "ppl_heldout"), ("en",)
    original = run.rows

    def worse(cell: suites.Cell, strength: float | None, seed: int) -> list[dict[str, Any]]:
        """Make the base as good as λ = 0 would be."""
        return original(cell, 0.0 if strength is None and cell.language == "lt" else strength, seed)

    run.rows = worse  # type: ignore[method-assign]
    run.build()
    document = build_document(analysis_of(run.dir.root))
    assert document.choice is not None
    assert document.choice.best is None
    said = sentence(document.build, document.choice)
    assert said.startswith("No recommendation: on the first half no run that loses at most 1 point of English gains")
    assert "bits per byte of held-out text (no run has tasks of this language)" in said
    assert choice_fields(document)["runs"] == []
