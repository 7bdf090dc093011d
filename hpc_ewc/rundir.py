"""Paths in a run folder: the only module that joins names into paths.

runs/NAME/  experiment.toml  jobs.jsonl  submit.lock
  tokens/<key>/    plan.json  parts/<i>.{bin,index,json}  heldout.jsonl
  fisher/<key>/    fisher-*.safetensors  anchor-*.safetensors  partial/
  train/<run>/     metrics.jsonl  checkpoints/<step>/  exports/<step>/
  evaluate/<run>/  <step>/<cell>.json  <step>/<cell>.samples.jsonl.zst
  every folder above: stage.json  config.toml  manifest.json  progress/<element>.json  done.json | failed.json
  report/          tables and figures, unless --out names another folder
  jobs/<job_id>/   submitit's files; ranks/ (torchrun --log-dir); stop.<restart>  port.<restart>  exit.<restart>
  jobs/<token>/    on Slurm: submission.sh  task.pkl  attempts.<index>.json, and the output of the batch script
  code/<hash>/     copy of the package at submission
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


def cache_dir() -> Path:
    """Return the cache that all experiments on this machine share: `$HPC_EWC_CACHE`, else `~/.cache/hpc_ewc`."""
    return Path(os.environ.get("HPC_EWC_CACHE") or "~/.cache/hpc_ewc").expanduser().absolute()


def step_name(step: int) -> str:
    """Return the step as 8 digits, so that names sort like numbers."""
    return f"{step:08d}"


@dataclass(frozen=True)
class StageDir:
    """The folder of one artefact."""

    path: Path

    @property
    def stage_json(self) -> Path:
        return self.path / "stage.json"

    @property
    def config_toml(self) -> Path:
        return self.path / "config.toml"

    @property
    def manifest_json(self) -> Path:
        return self.path / "manifest.json"

    @property
    def done(self) -> Path:
        return self.path / "done.json"

    @property
    def failed(self) -> Path:
        return self.path / "failed.json"

    @property
    def progress_dir(self) -> Path:
        return self.path / "progress"

    def progress(self, element: str = "0") -> Path:
        return self.progress_dir / f"{element}.json"

    # tokens
    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def parts(self) -> Path:
        return self.path / "parts"

    @property
    def heldout(self) -> Path:
        return self.path / "heldout.jsonl"

    # fisher
    @property
    def fisher_partial(self) -> Path:
        return self.path / "partial"

    # train
    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / step_name(step)

    @property
    def exports(self) -> Path:
        return self.path / "exports"

    def export(self, step: int) -> Path:
        return self.exports / step_name(step)

    # evaluate
    def cells(self, step: int) -> Path:
        return self.path / step_name(step)

    def cell(self, step: int, cell: str) -> Path:
        return self.cells(step) / f"{cell}.json"

    def samples(self, step: int, cell: str) -> Path:
        return self.cells(step) / f"{cell}.samples.jsonl.zst"


@dataclass(frozen=True)
class RunDir:
    """The folder of one experiment, `runs/NAME`."""

    root: Path

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def experiment_toml(self) -> Path:
        return self.root / "experiment.toml"

    @property
    def ledger(self) -> Path:
        return self.root / "jobs.jsonl"

    @property
    def lock(self) -> Path:
        return self.root / "submit.lock"

    @property
    def jobs(self) -> Path:
        return self.root / "jobs"

    @property
    def report(self) -> Path:
        """Tables and figures, unless `--out` names another folder."""
        return self.root / "report"

    def stage(self, stage: str, name: str) -> StageDir:
        """The folder of one artefact: `name` is a key (tokens, fisher) or a run (train, evaluate)."""
        return StageDir(self.root / stage / name)

    def tokens(self, key: str) -> StageDir:
        return self.stage("tokens", key)

    def fisher(self, key: str) -> StageDir:
        return self.stage("fisher", key)

    def train(self, run: str) -> StageDir:
        return self.stage("train", run)

    def evaluate(self, run: str) -> StageDir:
        return self.stage("evaluate", run)

    def code(self, digest: str) -> Path:
        """Return the folder of the package copied at a submission, which its jobs import."""
        return self.root / "code" / digest

    def job(self, job_id: str) -> Path:
        return self.jobs / job_id


def exit_file(job: Path, restart: int) -> Path:
    """Return the file in which the launcher records how the worker of an attempt ended."""
    return job / f"exit.{restart}"


def stop_file(job: Path, restart: int) -> Path:
    """Return the flag file that asks one attempt of a job to save and stop; per attempt, so it is never stale."""
    return job / f"stop.{restart}"


def port_file(job: Path, restart: int) -> Path:
    """Return the file in which node 0 of an attempt publishes the rendezvous port."""
    return job / f"port.{restart}"


def attempts_file(submission: Path, index: int) -> Path:
    """Return the file that records where each attempt of an array element began, in the folder of its submission."""
    return submission / f"attempts.{index}.json"


def script_file(submission: Path) -> Path:
    """Return the batch script given to sbatch."""
    return submission / "submission.sh"


def task_file(submission: Path) -> Path:
    """Return the pickle that every element of a submission runs; elements link to it when they start."""
    return submission / "task.pkl"


def torchrun_log(logs: Path) -> Path:
    """Return the log of torchrun itself on one node of an attempt."""
    return logs / "torchrun.log"


def rank_logs(job: Path) -> Path:
    """Return the folder in which torchrun puts the output of its ranks."""
    return job / "ranks"


def node_logs(job: Path, restart: int, node: int) -> Path:
    """Return the folder of rank output of one node in one attempt, on Slurm."""
    return rank_logs(job) / f"restart_{restart}" / f"node_{node}"
