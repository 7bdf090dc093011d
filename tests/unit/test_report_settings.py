"""Runs that differ in more than λ are named by their differences; overshooting trainings are reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpc_ewc.report.analysis.differences import analyse
from hpc_ewc.report.drawing import captions, curves, plane, training
from hpc_ewc.report.drawing.figures import draw_figures
from hpc_ewc.report.study.collect import collect
from hpc_ewc.report.study.stages import read_stages
from hpc_ewc.report.study.study import build_study
from hpc_ewc.report.tables.document import Document, build_document
from tests.unit.report_fixture import RunBuilder


def document_of(root: Path) -> Document:
    collection = collect([root])
    return build_document(analyse(build_study(collection, read_stages(collection)), resamples=100))


@pytest.fixture(scope="module")
def modes(tmp_path_factory: pytest.TempPathFactory) -> Document:
    root = tmp_path_factory.mktemp("modes") / "runs" / "modes"
    others = {"ewc.mode": ("gradient", "proximal")}
    RunBuilder(root, strengths=(0.0, 1e6), tasks=("arc_easy",), n=12, others=others).build()
    return document_of(root)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Document:
    """Build six settings of three λs."""
    root = tmp_path_factory.mktemp("many") / "runs" / "many"
    others = {"ewc.mode": ("gradient", "proximal"), "train.learning_rate": (1e-5, 2e-5, 5e-5)}
    RunBuilder(root, strengths=(0.0, 1e2, 1e6), tasks=("arc_easy",), n=12, others=others).build()
    return document_of(root)


def test_rows_are_named_by_the_settings_that_differ(modes: Document) -> None:
    for table in modes.tables:
        if table.heads[0].text == "λ":
            assert [head.text for head in table.heads[:2]] == ["λ", "mode"], table.key
    rows = [[cell.text for cell in row[:2]] for row in modes.tables[0].rows]
    assert rows == [
        ["base", ""],
        ["0", "gradient"],
        ["1e6", "gradient"],
        ["0", "proximal"],
        ["1e6", "proximal"],
    ]
    lines = modes.build.lines
    assert lines.name(lines.lines[-1]) == "λ = 1e6, mode proximal"
    assert lines.setting(lines.lines[-1]) == "mode proximal"


def test_each_setting_has_its_own_curve_marker_and_legend_entry(modes: Document) -> None:
    figures = {figure.name: figure.files["svg"].decode() for figure in draw_figures(modes, endings=("svg",))}
    for name in ("accuracy", "mean", "perplexity", "tradeoff"):
        assert figures[name].count("mode gradient") >= 1, name
        assert figures[name].count("mode proximal") >= 1, name
    assert figures["training"].count("mode proximal") == 2, "both λs of the second mode are drawn too"
    figure = curves.mean_figure(modes.build, paper=False)
    assert figure is not None
    (axes,) = figure.axes
    markers = {container.lines[0].get_marker() for container in axes.containers}  # type: ignore[attr-defined]
    assert markers == {"o", "s", "v"}, "two languages, and the second mode"
    said = captions.captions(modes, overlay=False)["mean"]
    assert "In full colour mode gradient; faint, with other markers, mode proximal." in said


def test_a_fifth_setting_is_only_in_the_tables_as_captions_say(many: Document) -> None:
    assert len(many.tables[0].rows) == 1 + 6 * 3
    figure = curves.mean_figure(many.build, paper=False)
    assert figure is not None
    (axes,) = figure.axes
    assert len(axes.containers) == 2 * curves.MOST_GROUPS
    (legend,) = figure.legends
    settings = [text.get_text() for text in legend.get_texts() if text.get_text().startswith("mode")]
    assert settings == [
        "mode gradient, learning_rate 1e-5",
        "mode gradient, learning_rate 2e-5",
        "mode gradient, learning_rate 5e-5",
        "mode proximal, learning_rate 1e-5",
    ]
    said = captions.captions(many, overlay=False)
    assert "2 more settings are only in the tables." in said["mean"]
    assert said["training"].endswith("Of mode gradient, learning_rate 1e-5.")
    assert [line.first.strength for line in training.drawn(many.build)] == [0.0, 1e2, 1e6]
    figure = plane.tradeoff_figure(many.build, many.choice)
    assert figure is not None
    names = [text.get_text() for text in figure.axes[0].texts]
    assert len(names) < plane.MOST_NAMES < 19
    assert "Only a few" in said["tradeoff"]


def test_a_long_legend_adds_rows_without_shrinking_the_panels(modes: Document, many: Document) -> None:
    heights = []
    for document in (modes, many):
        figure = curves.mean_figure(document.build, paper=False)
        assert figure is not None
        figure.canvas.draw()
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width
        assert box.y1 <= figure.axes[0].get_tightbbox().y0
        heights.append(figure.axes[0].get_position().height * figure.get_figheight())
    assert heights[0] == pytest.approx(heights[1], abs=0.1)


def test_an_overshooting_training_is_named_before_the_tables(tmp_path: Path) -> None:
    run = RunBuilder(tmp_path / "runs" / "x", strengths=(0.0, 1e6), tasks=("arc_easy",), n=12)
    run.build()
    path = run.dir.train(run.run_name(1e6, 0)).done
    done = json.loads(path.read_text())
    path.write_text(json.dumps(done | {"summary": done["summary"] | {"overshot": True}}))
    document = document_of(run.dir.root)
    (said,) = [lead for lead in document.leads if lead.startswith("Overshot")]
    assert said.startswith(
        "Overshot: λ = 1e6. Loss and penalty ended above where they began, so these runs do not show"
    )
    held = next(table for table in document.tables if table.key == "penalty")
    assert any(note.startswith("Overshot: λ = 1e6. Loss and penalty ended above") for note in held.notes)


def rewritten(folder: Path, cell: str, *strengths: float, **changes: Any) -> Document:
    """Rewrite records of one cell with other fields, at these λs."""
    run = RunBuilder(folder / "runs" / "x", strengths=(0.0, 1e6), tasks=("arc_easy", "gsm8k"), n=12)
    run.build()
    for strength in strengths:
        path = run.dir.evaluate(run.run_name(strength, 0)).cell(40, cell)
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return document_of(run.dir.root)


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({"cloze": True}, "arc_easy cloze=True"),
        ({"backend_args": "quantization=fp8"}, "arc_easy backend_args=quantization=fp8"),
        ({"max_gen_toks": 32}, "arc_easy max_gen_toks=32"),
        ({"max_gen_toks": None, "backend_args": ""}, "arc_easy"),
    ],
)
def test_another_wording_or_engine_has_its_own_column(tmp_path: Path, changes: dict[str, Any], label: str) -> None:
    document = rewritten(tmp_path, "arc_easy.en", 0.0, **changes)
    labels = {column.label for column in document.build.study.columns if column.cell == "arc_easy.en"}
    assert label in labels
    assert len(labels) == (1 if label == "arc_easy" else 2)


def test_several_versions_and_kernels_are_reported(tmp_path: Path) -> None:
    versions = {"hpc_ewc": "0.1.0", "lm_eval": "0.4.12", "torch": "2.13.0"}
    document = rewritten(tmp_path, "arc_easy.en", 0.0, versions=versions, attention="flash_attention_2")
    said = "Measured by several versions (lm_eval 0.4.12, 0.4.13): they may explain a difference between runs."
    assert said in document.leads
    notes = next(table for table in document.tables if table.key == "accuracy.en").notes
    assert "attention eager, flash_attention_2" in notes[0]


def test_a_metric_that_is_not_a_share_is_not_in_per_cent_or_means(tmp_path: Path) -> None:
    run = RunBuilder(tmp_path / "runs" / "x", strengths=(0.0, 1e6), tasks=("arc_easy", "gsm8k"), n=12)
    run.build()
    for path in run.dir.root.rglob("gsm8k.en.json"):  # as some tasks of lm-eval give their f1
        record = json.loads(path.read_text())
        for result in record["results"]:
            result |= {"metric": "f1", "value": 100 * result["value"], "stderr": 2.5}
        path.write_text(json.dumps(record))
    document = document_of(run.dir.root)
    english = next(table for table in document.tables if table.key == "accuracy.en")
    assert [head.text for head in english.heads] == ["λ", "ARC easy", "GSM8K"], "no mean over a per cent and a share"
    f1 = next(c for c in document.build.study.columns if c.cell == "gsm8k.en")
    value = document.build.lines.value(document.build.lines.lines[0], f1)[0]
    assert value is not None
    assert english.rows[0][2].text == f"{value.value:.1f}±2.5"
    assert not document.build.study.problems, "its samples have no f1 of a single document, and are no less whole"
    against = next(table for table in document.tables if table.key == "difference.en")
    assert against.foot[0][2].text == "9.91", "2.80 errors of √2·2.5, in its own unit"
    assert "unpaired where samples are missing" in against.legend[0]
