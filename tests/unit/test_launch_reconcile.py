"""How a job ended, told from what Slurm and its launcher say of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpc_ewc import records, rundir
from hpc_ewc.launch.ledger.job_history import Job
from hpc_ewc.launch.ledger.reconcile import final_outcome
from hpc_ewc.launch.slurm.output import SlurmJob
from hpc_ewc.rundir import RunDir


@pytest.mark.parametrize(
    ("state", "wrote", "expected"),
    [
        ("COMPLETED", None, "finished"),
        ("FAILED", "failed", "failed"),
        ("FAILED", "stopped", "stopped"),
        ("FAILED", None, "failed"),
        ("CANCELLED", None, "stopped"),
        ("TIMEOUT", None, "stopped"),
        ("NODE_FAIL", None, "stopped"),
        ("OUT_OF_MEMORY", None, "failed"),
        ("CANCELLED", "failed", "failed"),
        ("PENDING", None, "stopped"),
        (None, None, "stopped"),
        (None, "finished", "finished"),
    ],
)
def test_how_a_job_ended(tmp_path: Path, state: str | None, wrote: str | None, expected: str) -> None:
    root = RunDir(tmp_path)
    job = Job("t", "train", "a", "0", job_id="7", scheduler="slurm")
    if wrote:
        records.write_json(rundir.exit_file(root.job("7"), 0), {"status": 1, "outcome": wrote})
    told = SlurmJob("7", "7", state=state, exit_code="1:0") if state else None
    assert final_outcome(root, job, told) == expected


def test_a_job_whose_launcher_never_started_says_why(tmp_path: Path) -> None:
    root = RunDir(tmp_path)
    job = Job("t", "train", "a", "0", job_id="7", scheduler="slurm")
    records.write_text(root.job("t") / "7_batch.out", "/bad/python: No such file or directory\n")
    assert final_outcome(root, job, SlurmJob("7", "7", state="FAILED", exit_code="2:0")) == "failed"
    failed = json.loads(root.train("a").failed.read_text())
    assert "FAILED (2:0); last line of its log: /bad/python: No such file or directory" in failed["error"]


def test_memory_that_ran_out_names_the_key(tmp_path: Path) -> None:
    root = RunDir(tmp_path)
    job = Job("t", "train", "a", "0", job_id="7", scheduler="slurm")
    final_outcome(root, job, SlurmJob("7", "7", state="OUT_OF_MEMORY", exit_code="0:125"))
    assert "raise resources.train.mem_gb" in json.loads(root.train("a").failed.read_text())["error"]


def test_the_next_attempt_of_what_slurm_ended_can_forget_it(tmp_path: Path) -> None:
    """It removes what was written under its own name: an evaluation's worker goes by its first cell."""
    root = RunDir(tmp_path)
    covers = ("1.0:mmlu.en", "1.0:mmlu.lt")
    job = Job("t", "evaluate", "a", "3", job_id="7_3", scheduler="slurm", index=3, covers=covers)
    final_outcome(root, job, SlurmJob("7_3", "7", state="OUT_OF_MEMORY", exit_code="0:125"))
    assert json.loads(root.evaluate("a").failed.read_text())["element"] == "1.0-mmlu.en"
