"""Checkpoints given on a command line: asked, reported against their base, and not asked twice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpc_ewc import miniature, records
from hpc_ewc.report import load_records
from hpc_ewc.rundir import RunDir
from tests.end_to_end.evaluation import noised, stamps

ASKED = ("--suites", "arc_easy.en,ppl_heldout.lt", "--shots", "arc_easy=1", "--limit", "6", "--dtype", "float32")


@pytest.mark.timeout(900)
@pytest.mark.slow  # seven processes that import everything
def test_a_glob_of_checkpoints_is_asked_and_compared_with_its_base(
    miniature_cache: Path, repository: Path, tmp_path: Path
) -> None:
    base = miniature_cache / "miniature" / miniature.version() / "model"
    noised(base, tmp_path / "train" / "r-1", 0.4)
    foreign = tmp_path / "foreign"
    shutil.copytree(noised(base, tmp_path / "scratch", 0.2) / "exports" / "00000010", foreign)
    (foreign / "hpc_ewc.json").unlink()  # somebody else's: it says nothing of itself

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hpc_ewc", "evaluate", "train/*/exports/*", "foreign", "--base", "miniature"]
        env = os.environ | {"PYTHONPATH": str(repository), "HPC_EWC_CACHE": str(miniature_cache)}
        return subprocess.run([*command, *ASKED, *more], cwd=tmp_path, env=env, capture_output=True, text=True)

    done = run()
    assert done.returncode == 0, done.stderr
    assert "points against the base" in done.stdout
    root = RunDir(tmp_path / "runs" / "checkpoints")
    found = {record["run"]: record for record in load_records(root.root) if record["task"] == "arc_easy"}
    own = next(run for run in found if run.startswith("foreign-"))
    assert found.keys() == {"base", "r-1", own}
    assert found["r-1"]["coordinates"] == {"ewc.strength": 0.4}
    assert (found["r-1"]["step"], found["r-1"]["fraction"], found[own]["step"]) == (10, 1.0, 0)
    assert {record["base_hash"] for record in found.values()} == {records.model_hash(base)}

    before = {run: stamps(root.evaluate(run)) for run in found}
    again = run()
    assert (again.returncode, "nothing to do" in again.stderr) == (0, True)
    path = root.evaluate(own).cell(0, "arc_easy.en")
    path.unlink()
    assert run().returncode == 0
    after = {run: stamps(root.evaluate(run)) for run in found}
    assert after["r-1"] == before["r-1"] and after["base"] == before["base"]
    changed = {name for name in after[own] if after[own][name] != before[own][name]}
    assert changed == {"arc_easy.en.json"}
