"""The pandas example computes the same differences as the report."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from hpc_ewc.report.analysis.differences import analyse
from hpc_ewc.report.study.collect import collect
from hpc_ewc.report.study.stages import read_stages
from hpc_ewc.report.study.study import build_study
from tests.unit.report_fixture import RunBuilder


def test_the_examples_differences_equal_the_reports(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import matplotlib.pyplot as plt

    run = RunBuilder(tmp_path / "runs" / "x", strengths=(0.0, 1e2, 1e6), tasks=("arc_easy", "mmlu"), n=12)
    run.build()
    monkeypatch.setattr(sys, "argv", ["read_results.py", str(run.dir.root)])
    plt.switch_backend("Agg")
    found = runpy.run_path(str(repository / "examples" / "read_results.py"))
    plt.close("all")
    collection = collect([run.dir.root])
    analysis = analyse(build_study(collection, read_stages(collection)), resamples=100)
    expected = {
        (of.strength, column.cell): difference.value
        for (of, column, metric), difference in analysis.differences.items()
        if metric == column.metric
    }
    shown = {(strength, cell): value for cell, column in found["table"].items() for strength, value in column.items()}
    assert shown == pytest.approx(expected)
    assert found["picture"].read_bytes().startswith(b"\x89PNG")
    assert "results of 4 runs in 8 cells" in capsys.readouterr().out
