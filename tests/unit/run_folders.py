"""Run folders as `submit` leaves them, without any job, for tests of `status`, `logs` and `cancel`."""

from __future__ import annotations

import os
import time
from pathlib import Path

from hpc_ewc import records, rundir
from hpc_ewc.launch.ledger.job_history import Ledger
from hpc_ewc.launch.slurm.client import Answer
from hpc_ewc.launch.slurm.output import SlurmJob
from hpc_ewc.node.slurm_command import SchedulerError
from hpc_ewc.process import Process, this_process
from hpc_ewc.rundir import RunDir

KEY = "0123456789ab"
TRAIN = EVALUATE = "strength=1e+06,seed=0-aa"
AWAY = SchedulerError("`squeue`: no answer in 20 s; try again in a minute", "silent")

# ---------------------------------------------------------------------------------------------- this machine

RUNS = [("tokens", KEY), ("train", "strength=0-aa"), ("train", "strength=1-bb"), ("evaluate", "strength=1-bb")]
GONE = Process(this_process().host, this_process().pid, "before")


def local_folder(tmp_path: Path) -> RunDir:
    """Make a local run folder: tokens and one run are done, the other failed, its evaluation not started."""
    root = RunDir(tmp_path / "runs" / "x")
    ledger = Ledger(root)
    nodes = [{"stage": stage, "run": run, "depends": []} for stage, run in RUNS]
    nodes[3]["depends"] = ["train/strength=1-bb"]
    ledger.graph([*nodes, {"stage": "report", "run": "", "depends": ["evaluate/strength=1-bb"]}])
    for number, (stage, run) in enumerate(RUNS):
        folder = root.stage(stage, run)
        facts = {"schema": 1, "stage": stage, "run": run, "key": KEY, "inputs": {}, "coordinates": {}}
        records.write_json(folder.stage_json, facts | {"expected": ["1.0:a.en", "1.0:b.en"] if number == 3 else []})
    for stage, run in RUNS[:2]:
        done = {"schema": 1, "key": KEY, "finished_at": 1.0, "outputs": {}, "summary": {}}
        records.write_json(root.stage(stage, run).done, done)
    fail(root, "train", "strength=1-bb", "job2")
    start(root, "train", "strength=0-aa", "job1", outcome="finished")
    start(root, "train", "strength=1-bb", "job2", outcome="failed")
    return root


def fail(root: RunDir, stage: str, run: str, job: str) -> None:
    facts = {"schema": 1, "error": "ValueError: a loss of NaN", "traceback": "Traceback …\nValueError: a loss of NaN"}
    records.write_json(root.stage(stage, run).failed, facts | {"rank": 1, "node": "n7", "job_id": job, "restart": 0})


def start(root: RunDir, stage: str, run: str, job: str, outcome: str = "", process: Process | None = None) -> Path:
    ledger = Ledger(root)
    ledger.intent(job, stage, run, "0")
    ledger.submitted(job, job, process or this_process())
    if outcome:
        ledger.ended(job, outcome)
    folder = root.job(job)
    folder.mkdir(parents=True)
    return folder


def rank_log(job: Path, rank: int, name: str, text: str, place: str = "none_abc/attempt_0") -> Path:
    path = rundir.rank_logs(job) / place / str(rank) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# ---------------------------------------------------------------------------------------------- Slurm


class Slurm:
    """Replacement for `ask` with preset answers that counts its calls."""

    def __init__(self) -> None:
        self.jobs: list[SlurmJob] = []
        self.unanswered: tuple[SchedulerError, ...] = ()
        self.queue_answered = True
        self.asked: list[set[str]] = []

    def __call__(self, main_ids: set[str], since: float | None = None, user: str | None = None) -> Answer:
        assert user == str(os.getuid()), "jobs of the owner of the run folder are queried"
        self.asked.append(set(main_ids))
        if len(self.unanswered) == 2:
            raise self.unanswered[0]
        found: dict[str, list[SlurmJob]] = {}
        for job in self.jobs:
            found.setdefault(job.main_id, []).append(job)
        return Answer(found, self.unanswered, self.queue_answered)

    def says(self, job_id: str, state: str, **facts: object) -> None:
        main, _, element = job_id.partition("_")
        self.jobs = [job for job in self.jobs if job.job_id != job_id]
        self.jobs.append(SlurmJob(job_id, main, element, state=state, **facts))  # type: ignore[arg-type]


def slurm_folder(tmp_path: Path) -> RunDir:
    """Make a Slurm run folder: tokens done; train is job 11, evaluate array 12 of three, the report job 13."""
    root = RunDir(tmp_path / "runs" / "x")
    ledger = Ledger(root)
    nodes = [
        {"stage": "tokens", "run": KEY, "depends": []},
        {"stage": "train", "run": TRAIN, "depends": [f"tokens/{KEY}"]},
        {"stage": "evaluate", "run": EVALUATE, "depends": [f"train/{TRAIN}"]},
        {"stage": "report", "run": "", "depends": [f"evaluate/{EVALUATE}"]},
    ]
    ledger.graph(nodes, out="/results/x")
    expected = [f"1.0:c{i}.en" for i in range(6)]
    for node in nodes[:3]:
        facts = {"schema": 1, "stage": node["stage"], "run": node["run"], "key": KEY, "inputs": {}, "coordinates": {}}
        here = expected if node["stage"] == "evaluate" else []
        records.write_json(root.stage(str(node["stage"]), str(node["run"])).stage_json, facts | {"expected": here})
    finish(root, "tokens", KEY)
    submit(root, "10", "tokens", KEY, [("0", [])])
    submit(root, "11", "train", TRAIN, [("0", [])])
    submit(root, "12", "evaluate", EVALUATE, [(str(i), expected[2 * i : 2 * i + 2]) for i in range(3)])
    submit(root, "13", "report", "", [("0", [])])
    return root


def finish(root: RunDir, stage: str, run: str, **summary: float) -> None:
    done = {"schema": 1, "key": KEY, "finished_at": 1.0, "outputs": {}, "summary": summary}
    records.write_json(root.stage(stage, run).done, done)


def submit(
    root: RunDir, job_id: str, stage: str, run: str, elements: list[tuple[str, list[str]]], link: int = 0
) -> None:
    ledger = Ledger(root)
    listed = [{"name": name, "covers": covers} for name, covers in elements]
    ledger.slurm_intent(f"token-{job_id}", stage, run, listed, link)
    if job_id:
        ledger.slurm_submitted(f"token-{job_id}", job_id, "")


def at_work(root: RunDir, stage: str, run: str, job_id: str, element: str = "0", **fields: object) -> Path:
    line = {"schema": 1, "done": 120, "total": 180, "unit": "step", "updated": time.time(), "job_id": job_id}
    path = root.stage(stage, run).progress(element)
    records.write_json(path, line | {"restart": 0, "node": "n9", **fields})
    return path
