"""The figures show the numbers of the tables, with λ = 0 left of a break in the log axis."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpc_ewc.report.analysis.differences import analyse
from hpc_ewc.report.drawing import captions, curves, plane, style, training
from hpc_ewc.report.drawing.figures import draw_figures
from hpc_ewc.report.drawing.paper import accuracy_curve, paper, perplexity_curve
from hpc_ewc.report.study.collect import collect
from hpc_ewc.report.study.stages import read_stages
from hpc_ewc.report.study.study import build_study
from hpc_ewc.report.tables.choose import choose
from hpc_ewc.report.tables.document import Document, build_document
from tests.unit.report_fixture import RunBuilder


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Document:
    root = tmp_path_factory.mktemp("figures") / "runs" / "small"
    RunBuilder(root, strengths=(0.0, 1e2, 1e4, 1e12), tasks=("arc_easy", "mmlu"), n=40).build()
    collection = collect([root])
    return build_document(analyse(build_study(collection, read_stages(collection)), resamples=300))


@pytest.fixture(autouse=True)
def _styled() -> Iterator[None]:
    with style.styled():
        yield


def test_the_axis_puts_zero_left_of_a_break() -> None:
    axis = style.StrengthAxis((0.0, 1e2, 1e6, 1e12))
    assert [axis.place(s) for s in (1e2, 1e6, 1e12)] == [2.0, 6.0, 12.0]
    assert axis.place(0.0) <= 2.0 - 1.0, "at least a decade left of the smallest λ"
    assert style.StrengthAxis((0.0,)).place(0.0) == 0.0


def test_points_equal_the_tables_and_zero_is_not_connected(document: Document) -> None:
    figure = curves.mean_figure(document.build, paper=False)
    assert figure is not None
    (axes,) = figure.axes
    analysis = document.build.analysis
    mean = analysis.mean("en")
    assert mean is not None
    expected = {
        line.first.strength: 100 * analysis.mean_values[line.first, mean].value
        for line in document.build.lines.lines
        if line.first.strength is not None
    }
    x = curves.axis_of(document.build)
    marks = axes.containers[0].lines[0].get_xydata()  # type: ignore[attr-defined]
    assert {round(float(a), 6): float(b) for a, b in marks} == pytest.approx(
        {round(x.place(strength), 6): value for strength, value in expected.items()}
    )
    solid = [line for line in axes.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 3]
    assert solid, "points with λ > 0 are connected"
    assert min(solid[0].get_xdata()) == pytest.approx(2.0), "λ = 0 is not connected"
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert labels[0] == "0"
    assert "$10^{12}$" in labels


def test_languages_differ_by_marker_and_dash_besides_colour() -> None:
    looks = [style.look(place) for place in range(4)]
    for part in ("colour", "marker", "dashes"):
        assert len({getattr(look, part) for look in looks}) == 4


def test_every_task_has_its_panel_with_base_and_chance(document: Document) -> None:
    figure = curves.accuracy_figure(document.build, paper=False)
    assert figure is not None
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == ["ARC easy", "MMLU", "mean over tasks"]
    levels = {round(float(line.get_ydata()[0]), 6) for line in shown[0].lines if len(set(line.get_ydata())) == 1}
    analysis = document.build.analysis
    base = next(run for run in analysis.study.runs if run.is_base)
    for column in (c for c in analysis.study.columns if c.task == "arc_easy"):
        assert round(100 * analysis.values[base, column, "acc"].value, 6) in levels
    assert 25.0 in levels


def test_the_recommended_strength_is_ringed(document: Document) -> None:
    choice = choose(document.build)
    assert choice is not None
    assert choice.best is not None
    figure = plane.tradeoff_figure(document.build, choice)
    assert figure is not None
    (axes,) = figure.axes
    rings = [line for line in axes.lines if line.get_markerfacecolor() == "none"]
    analysis = document.build.analysis
    old, new = analysis.mean("en"), analysis.mean("lt")
    assert old is not None
    assert new is not None
    run = choice.best.line.first
    (ring,) = rings
    assert ring.get_xydata()[0] == pytest.approx(
        [100 * analysis.mean_values[run, old].value, 100 * analysis.mean_values[run, new].value]
    )


def test_training_curves_use_the_last_line_of_a_step_and_skip_truncated_ones(document: Document) -> None:
    run = next(run for run in document.build.study.runs if run.strength == 1e4)
    trained = document.build.study.trained(run)
    assert trained is not None
    path = trained.folder.metrics
    text = path.read_text()
    path.write_text(text + '{"step": 40, "loss": 1.5, "penalty": 0.1, "distance": 2.0, "restart": 1}\n{"step": 41, "lo')
    read = training.read_metrics(document.build, run)
    path.write_text(text)
    assert read is not None
    assert list(read["step"]) == list(range(1, 41))
    assert read["loss"][-1] == 1.5


def test_a_long_run_is_downsampled_by_means() -> None:
    import numpy as np

    steps, values = training.thin(np.arange(4000.0), np.arange(4000.0) * 2)
    assert len(steps) == training.POINTS
    assert values.mean() == pytest.approx(3999.0)
    assert steps[0] == 24.5


def test_all_figures_are_drawn_in_three_formats_with_the_papers_curve(document: Document) -> None:
    drawn = {figure.name: figure for figure in draw_figures(document, overlay=True)}
    assert list(drawn) == ["accuracy", "mean", "perplexity", "tradeoff", "training", "fisher"]
    for figure in drawn.values():
        root = ElementTree.fromstring(figure.files["svg"])
        assert root.tag.endswith("svg")
        assert figure.files["pdf"].startswith(b"%PDF")
        assert figure.files["png"].startswith(b"\x89PNG")
    caption = drawn["accuracy"].caption
    assert "arXiv 2505.05946" in caption
    assert "its λ has another scale" in caption
    assert "its λ has another scale" not in draw_captions(document)


def draw_captions(document: Document) -> str:
    return " ".join(captions.captions(document, overlay=False).values())


def test_many_strengths_are_drawn_with_bands_and_few_labels_as_captions_say(tmp_path: Path) -> None:
    strengths = (0.0, *(float(10 ** (n / 8)) for n in range(8, 78)))
    root = tmp_path / "runs" / "many"
    RunBuilder(root, strengths=strengths, tasks=("arc_easy",), n=12).build()
    collection = collect([root])
    document = build_document(analyse(build_study(collection, read_stages(collection)), resamples=100))
    build = document.build
    figure = curves.mean_figure(build, paper=False)
    assert figure is not None
    (axes,) = figure.axes
    assert [len(container.lines[0].get_xdata()) for container in axes.containers] == [1, 1], "λ = 0 alone is marked"  # type: ignore[attr-defined]
    joined = [line for line in axes.lines if len(line.get_xdata()) == 70]
    assert len(joined) == 2, "every λ > 0 is on the line of its language"
    plane_figure = plane.tradeoff_figure(build, document.choice)
    assert plane_figure is not None
    names = {text.get_text() for text in plane_figure.axes[0].texts}
    assert {"base", "λ = 0"} <= names
    assert len(names) < 10
    lines = training.drawn(build)
    assert len(lines) == training.MOST_CURVES
    assert [lines[0].first.strength, lines[-1].first.strength] == [strengths[0], strengths[-1]]
    said = captions.captions(document, overlay=False)
    assert "With so many λs, the band along a line: one standard error." in said["mean"]
    assert "few of so many points are labelled; all are in the table" in said["tradeoff"]
    assert "12 of 71 λs are drawn." in said["training"]


def test_captions_name_the_settings_drawn_if_more_than_strength_differs(document: Document) -> None:
    assert "faint" not in captions.captions(document, overlay=False)["mean"]
    lines = document.build.lines
    assert lines.setting(lines.lines[-1]) == ""


def test_the_papers_facts_equal_the_shared_file(shared_data: Path) -> None:
    import json

    original = json.loads((shared_data.parent / "paper_fig3.json").read_text())
    assert paper()["accuracy"] == original


def test_the_papers_means_equal_its_figure_1b() -> None:
    found = {language: accuracy_curve("mean", language) for language in ("en", "lt")}
    assert found["en"] is not None
    assert found["lt"] is not None
    assert found["en"][0] == [0.0, 1e2, 1e3, 1e6, 1e9, 1e12]
    assert found["en"][1] == pytest.approx([0.28, 0.49, 0.56, 0.62, 0.64, 0.63], abs=0.006)
    assert found["en"][2] == pytest.approx(0.629, abs=0.001)
    assert found["lt"][1] == pytest.approx([0.30, 0.42, 0.46, 0.46, 0.44, 0.44], abs=0.006)
    assert perplexity_curve("lt") == ([0.0, 1e2, 1e3, 1e6, 1e9, 1e12], [26, 12.7, 13.2, 24, 43, 72], 93.0)
    assert accuracy_curve("unknown", "en") is None


def test_names_are_not_rendered_as_mathematics() -> None:
    assert style.plain("a$b$c") == r"a\$b\$c"
    assert not style.plain("_hidden").startswith("_")
    assert "\x1b" not in style.plain("\x1b[2J")
