"""The miniature's criterion is applied as fixed before its first run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from examples.miniature.criterion import REQUIREMENTS, judge, main, read_runs
from tests.unit.report_fixture import RunBuilder

TASKS = ("arc_easy", "belebele", "mmlu")


def build_run(root: Path, strengths: tuple[float, ...], n: int = 80) -> RunBuilder:
    run = RunBuilder(root, strengths=strengths, tasks=TASKS, n=n)
    run.build()
    return run


def verdicts_of(root: Path) -> list[bool | None]:
    build = read_runs([root])
    return [verdict.holds for verdict in judge(build.analysis, build, ())]


def test_the_criterion_passes_for_expected_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "runs" / "small"
    build_run(root, (0.0, 1e2, 1e4, 1e12))
    build = read_runs([root])
    verdicts = judge(build.analysis, build, ())
    assert [verdict.holds for verdict in verdicts] == [True, True, True]
    assert [verdict.strength for verdict in verdicts] == [0.0, 1e4, 1e12]
    assert verdicts[1].share is not None
    assert 0.5 <= verdicts[1].share <= 1.2
    assert main([str(root)]) == 0
    printed = capsys.readouterr().out
    assert all(requirement in printed for requirement in REQUIREMENTS) and printed.count("yes") == 3


def test_the_criterion_fails_for_unexpected_results(tmp_path: Path) -> None:
    """λ = 10 alone changes too much for "barely moves" and keeps too little; λ = 0 without forgetting fails too."""
    root = tmp_path / "runs" / "x"
    build_run(root, (0.0, 10.0))
    assert verdicts_of(root) == [True, False, False]
    build = read_runs([root])
    analysis = build.analysis
    analysis.mean_differences = {key: replace(d, value=-0.05) for key, d in analysis.mean_differences.items()}
    analysis.differences = {key: replace(d, value=0.1 * d.value) for key, d in analysis.differences.items()}
    assert judge(analysis, build, ())[0].holds is False


def test_the_criterion_is_undecided_if_a_cell_is_missing(tmp_path: Path) -> None:
    root = tmp_path / "runs" / "x"
    run = build_run(root, (0.0, 1e4), n=60)
    run.dir.evaluate(run.run_name(0.0, 0)).cell(40, "mmlu.en").unlink()
    assert verdicts_of(root) == [None, True, False]
    run.dir.evaluate(run.run_name(0.0, 0)).cell(40, "ppl_heldout.lt").unlink()
    run.dir.evaluate(run.run_name(1e4, 0)).cell(40, "mmlu.lt").unlink()
    assert set(verdicts_of(root)) == {None}


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == 2
    assert "InputError" in capsys.readouterr().err
