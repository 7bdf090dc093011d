"""Runs that differ in more than λ: named by what differs in tables and figures; and trainings that overshot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpc_ewc.report.collect import collect
from hpc_ewc.report.differences import analyse
from hpc_ewc.report.document import Document, build_document
from hpc_ewc.report.drawing import captions, curves, plane, training
from hpc_ewc.report.figures import draw_figures
from hpc_ewc.report.stages import read_stages
from hpc_ewc.report.study import build_study
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
    """Six settings of three λs."""
    root = tmp_path_factory.mktemp("many") / "runs" / "many"
    others = {"ewc.mode": ("gradient", "proximal"), "train.learning_rate": (1e-5, 2e-5, 5e-5)}
    RunBuilder(root, strengths=(0.0, 1e2, 1e6), tasks=("arc_easy",), n=12, others=others).build()
    return document_of(root)


def test_rows_are_named_by_what_differs(modes: Document) -> None:
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


def test_each_setting_has_its_own_curve_marker_and_place_in_the_legend(modes: Document) -> None:
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


def test_a_fifth_setting_is_in_the_tables_alone_and_the_captions_say_so(many: Document) -> None:
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
    assert "2 more settings are in the tables alone." in said["mean"]
    assert said["training"].endswith("Of mode gradient, learning_rate 1e-5.")
    assert [line.first.strength for line in training.drawn(many.build)] == [0.0, 1e2, 1e6]
    figure = plane.tradeoff_figure(many.build, many.choice)
    assert figure is not None
    names = [text.get_text() for text in figure.axes[0].texts]
    assert len(names) < plane.MOST_NAMES < 19
    assert "a few are named" in said["tradeoff"]


def test_a_long_legend_takes_rows_and_no_room_from_the_panels(modes: Document, many: Document) -> None:
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


def test_a_training_that_overshot_is_named_before_the_tables(tmp_path: Path) -> None:
    run = RunBuilder(tmp_path / "runs" / "x", strengths=(0.0, 1e6), tasks=("arc_easy",), n=12)
    run.build()
    path = run.dir.train(run.run_name(1e6, 0)).done
    done = json.loads(path.read_text())
    path.write_text(json.dumps(done | {"summary": done["summary"] | {"overshot": True}}))
    document = document_of(run.dir.root)
    (said,) = [lead for lead in document.leads if lead.startswith("Overshot")]
    assert said.startswith("Overshot, so not what their λ would do: λ = 1e6.")
    held = next(table for table in document.tables if table.key == "held")
    assert any(note.startswith("Overshot: λ = 1e6. Loss and penalty ended above") for note in held.notes)
