"""A job's outcome is derived from Slurm's state and its launcher's files."""

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
def test_ended_jobs_have_a_reason(tmp_path: Path, state: str | None, wrote: str | None, expected: str) -> None:
    root = RunDir(tmp_path)
    job = Job("t", "train", "a", "0", job_id="7", scheduler="slurm")
    if wrote:
        records.write_json(rundir.exit_file(root.job("7"), 0), {"status": 1, "outcome": wrote})
    told = SlurmJob("7", "7", state=state, exit_code="1:0") if state else None
    assert final_outcome(root, job, told) == expected


def test_a_job_whose_launcher_never_started_has_a_reason(tmp_path: Path) -> None:
    root = RunDir(tmp_path)
    job = Job("t", "train", "a", "0", job_id="7", scheduler="slurm")
    records.write_text(root.job("t") / "7_batch.out", "/bad/python: No such file or directory\n")
    assert final_outcome(root, job, SlurmJob("7", "7", state="FAILED", exit_code="2:0")) == "failed"
    failed = json.loads(root.train("a").failed.read_text())
    assert "FAILED (2:0); last line of its log: /bad/python: No such file or directory" in failed["error"]


def test_out_of_memory_names_the_key_to_change(tmp_path: Path) -> None:
    root = RunDir(tmp_path)
    job = Job("t", "train", "a", "0", job_id="7", scheduler="slurm")
    final_outcome(root, job, SlurmJob("7", "7", state="OUT_OF_MEMORY", exit_code="0:125"))
    assert "raise resources.train.mem_gb" in json.loads(root.train("a").failed.read_text())["error"]


def test_the_next_attempt_can_clear_a_recorded_failure(tmp_path: Path) -> None:
    """A worker removes failures under its own name: that of an evaluation is its first cell."""
    root = RunDir(tmp_path)
    covers = ("1.0:mmlu.en", "1.0:mmlu.lt")
    job = Job("t", "evaluate", "a", "3", job_id="7_3", scheduler="slurm", index=3, covers=covers)
    final_outcome(root, job, SlurmJob("7_3", "7", state="OUT_OF_MEMORY", exit_code="0:125"))
    assert json.loads(root.evaluate("a").failed.read_text())["element"] == "1.0-mmlu.en"
