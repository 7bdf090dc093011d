"""`hpc-ewc evaluate` on Slurm: one array over all checkpoints, one job each, with every billed GPU in use."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from hpc_ewc import rundir
from hpc_ewc.cli import evaluate
from hpc_ewc.launch.inputs.checkpoints import find_checkpoints
from hpc_ewc.launch.ledger.job_history import Ledger
from hpc_ewc.node.task import JobTask
from hpc_ewc.rundir import RunDir
from tests.conftest import use_hub_cache
from tests.unit import fake_slurm
from tests.unit.launch_world import write_model

PROFILE = """
executor = "slurm"
python = "/venv/bin/python"
[slurm]
partition = "main"
max_running = 3
cells_per_job = "CELLS"
[resources.evaluate]
gpus_per_node = 4
nproc_per_node = 4
elements = 2
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = fake_slurm.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("HPC_EWC_CACHE", str(tmp_path / "cache"))
    use_hub_cache(monkeypatch, tmp_path / "hf")
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c"):
        write_model(tmp_path / "models" / name)
    return folder


def give(tmp_path: Path, *more: str, cells: str = "gpu", suites: str = "arc_easy,winogrande.en") -> None:
    """Show what would be submitted, then submit it."""
    (tmp_path / "p.toml").write_text(PROFILE.replace("CELLS", cells))
    options: dict[str, Any] = {"suites": suites, "name": "mine", "dtype": "float32", "profile": tmp_path / "p.toml"}
    for dry_run in (True, False):
        settings = evaluate.Settings(checkpoints=("models/*", *more), dry_run=dry_run, yes=True, **options)
        assert evaluate.run(settings) == 0


def tasks(tmp_path: Path) -> list[JobTask]:
    """Return the task that each submission's jobs run, oldest first."""
    found = sorted((tmp_path / "runs" / "mine" / "jobs").iterdir(), key=lambda folder: folder.name)
    return [pickle.loads(rundir.task_file(folder).read_bytes()).function for folder in found]


def test_checkpoints_share_an_array_and_each_job_evaluates_one(
    cluster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    give(tmp_path)
    shown = capsys.readouterr().out
    assert shown.count("=====") == 2 and "--array=0-5%3" in shown and "afterany:<evaluate>'" in shown
    array, report = fake_slurm.load(cluster)["jobs"]
    assert (array["name"], array["elements"], array["dependency"]) == ("mine/evaluate", 6, "")
    assert (report["name"], report["dependency"]) == ("mine/report", f"afterany:{array['id']}")
    root = RunDir(tmp_path / "runs" / "mine")
    runs = {given.run for given in find_checkpoints(["models/*"])}
    jobs = [job for job in Ledger(root).read().jobs.values() if job.stage == "evaluate"]
    assert {job.run for job in jobs} == runs
    for run in runs:
        mine = [job for job in jobs if job.run == run]
        made = sorted(name for job in mine for name in job.covers)
        assert made == ["0.0:arc_easy.en", "0.0:arc_easy.lt", "0.0:winogrande.en"]
    task = tasks(tmp_path)[0]
    for job in jobs:
        assert job.index is not None and job.job_id == f"{array['id']}_{job.index}"
        one = task.at(job.index)
        assert (one.name, one.folder) == (f"mine/evaluate/{job.run}", str(root.evaluate(job.run).path))
        assert [name for element in task.elements[job.index] for name in element.expected] == list(job.covers)


def test_running_elements_stay_and_new_ones_are_submitted_with_the_lost_ones(cluster: Path, tmp_path: Path) -> None:
    give(tmp_path)
    give(tmp_path)
    assert len(fake_slurm.load(cluster)["jobs"]) == 2
    write_model(tmp_path / "other")
    give(tmp_path, "other")
    jobs = fake_slurm.load(cluster)["jobs"]
    assert [job["name"].split("-")[0] for job in jobs[2:]] == ["mine/evaluate/other", "mine/report"]
    assert jobs[3]["dependency"] == f"afterany:{jobs[0]['id']}:{jobs[2]['id']}"
    fake_slurm.set_states(cluster, "CANCELLED")
    give(tmp_path, "other")
    assert [(job["name"], job["elements"]) for job in fake_slurm.load(cluster)["jobs"][4:]] == [
        ("mine/evaluate", 8),
        ("mine/report", 0),
    ]


def test_an_array_is_found_by_name_after_its_submitter_died(cluster: Path, tmp_path: Path) -> None:
    give(tmp_path)
    ledger = tmp_path / "runs" / "mine" / "jobs.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    cut = next(i for i, line in enumerate(lines) if '"submitted"' in line)
    ledger.write_text("".join(lines[:cut]))
    fake_slurm.change(cluster, jobs=fake_slurm.load(cluster)["jobs"][:1])
    give(tmp_path)
    assert [job["name"] for job in fake_slurm.load(cluster)["jobs"]] == ["mine/evaluate", "mine/report"]


def test_every_gpu_has_a_worker_if_whole_nodes_are_billed(cluster: Path, tmp_path: Path) -> None:
    """Two elements are requested; a node has four GPUs."""
    give(tmp_path, cells="node", suites="arc_easy,winogrande,belebele.en")
    array, _ = fake_slurm.load(cluster)["jobs"]
    assert array["elements"] == 3
    (task, _) = tasks(tmp_path)
    assert task.slots == 4 and [len(elements) for elements in task.elements] == [4, 4, 4]
