"""Several base models in one report: each run is compared with its own base and never treated as a repetition."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpc_ewc import suites
from hpc_ewc.report.analysis.differences import analyse
from hpc_ewc.report.drawing import curves, plane
from hpc_ewc.report.drawing.figures import draw_figures
from hpc_ewc.report.study.collect import collect
from hpc_ewc.report.study.samples import SampleReader
from hpc_ewc.report.study.stages import read_stages
from hpc_ewc.report.study.study import build_study
from hpc_ewc.report.tables.document import Document, build_document
from hpc_ewc.report.tables.table import Table
from tests.unit.report_fixture import RunBuilder, digest

OTHER = "google/gemma-2-9b-it"
OTHER_BASE = digest("another base")


class Larger(RunBuilder):
    """Runs of another base, which has its own hash and is worse on all texts."""

    def write(self, *args: Any, **changes: Any) -> Path:
        hashes = {"base_hash": OTHER_BASE} | ({"model_hash": OTHER_BASE} if args[1] == "base" else {})
        return super().write(*args, **{**changes, **hashes, "cell_key": digest(*args[1:4], args[5].name, "larger")})

    def rows(self, cell: suites.Cell, strength: float | None, seed: int) -> list[dict[str, Any]]:
        rows = super().rows(cell, strength, seed)
        for row in rows if cell.kind == "perplexity" else ():
            row["loglikelihoods"] = [2 * row["loglikelihoods"][0]]
        return rows


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Document:
    folder = tmp_path_factory.mktemp("bases") / "runs"
    options: dict[str, Any] = {"strengths": (0.0, 1e6), "tasks": ("arc_easy", "mmlu"), "n": 24}
    RunBuilder(folder / "small", **options).build()
    Larger(folder / "large", model=OTHER, **options).build()
    collection = collect([folder / "small", folder / "large"])
    return build_document(analyse(build_study(collection, read_stages(collection)), resamples=200))


def table(document: Document, key: str) -> Table:
    return next(table for table in document.tables if table.key == key)


def test_base_models_have_separate_rows_and_are_not_seeds(document: Document) -> None:
    assert not document.build.lines.repeated
    assert not any("several seeds" in lead for lead in document.leads)
    rows = [[cell.text for cell in row[:2]] for row in table(document, "summary").rows]
    hashes = {run.model_hash[:6] for run in document.build.study.runs if run.is_base}
    assert len(hashes) == 2
    assert sorted(rows[:2]) == sorted([f"base {h}", "small" if digest("base")[:6] == h else "large"] for h in hashes)
    assert sorted(rows[2:]) == [["0", "large"], ["0", "small"], ["1e6", "large"], ["1e6", "small"]]


def test_each_run_is_compared_with_its_own_base(document: Document) -> None:
    """Per cent change of bits per byte, with a ratio's error, agrees with a bootstrap over documents."""
    study = document.build.study
    shown = table(document, "tradeoff")
    place = [head.text for head in shown.heads].index("bits/byte English %")
    column = next(c for c in study.columns if c.cell == "ppl_heldout.en")
    reader, rng = SampleReader(study), np.random.default_rng(0)
    for line, row in zip((x for x in document.build.lines.lines if not x.first.is_base), shown.rows, strict=True):
        mine, theirs = reader.scores(line.first, column), reader.scores(study.bases[line.first], column)
        assert mine is not None
        assert theirs is not None
        assert row[place].sort == pytest.approx(100 * (mine.values.sum() / theirs.values.sum() - 1))
        drawn = rng.integers(0, 24, (4000, 24))
        ratios = mine.values[drawn].sum(1) / theirs.values[drawn].sum(1)
        found = document.build.lines.difference(line, column, "bits_per_byte")
        assert found is not None
        assert found.relative_stderr == pytest.approx(ratios.std(), rel=0.15)


def test_figures_show_every_base_without_shading(document: Document) -> None:
    figure = curves.mean_figure(document.build, paper=False)
    assert figure is not None
    (axes,) = figure.axes
    across = [line for line in axes.lines if list(line.get_xdata()) == [0, 1] and math.isfinite(line.get_ydata()[0])]
    assert len(across) == 4, "two languages, two bases"
    figure = plane.tradeoff_figure(document.build, document.choice)
    assert figure is not None
    assert not figure.axes[0].patches, "the region of unacceptable loss depends on the base"
    said = {figure.name: figure.caption for figure in draw_figures(document, endings=("svg",))}
    assert "Shaded" not in said["tradeoff"]
