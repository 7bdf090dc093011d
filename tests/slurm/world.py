"""An experiment on a cluster, as its user has it: a folder, commands, and eyes and hands on the jobs."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_ewc import records
from hpc_ewc.launch.ledger.job_history import Ledger
from hpc_ewc.rundir import RunDir
from tests.conftest import REPOSITORY, link_miniature
from tests.slurm.sandbox import Sandbox, all_pids, read, wait_for

KEY = re.compile(r"-?[0-9a-f]{12}$")
PROFILE = REPOSITORY / "slurm" / "sandbox.toml"
ONCE = {"train": 1, "evaluate": 1, "report": 1}
"""Submissions of an experiment whose tokens and Fisher are there."""


@dataclass(frozen=True)
class SlurmJob:
    """A line of squeue."""

    job_id: str
    stage: str
    state: str
    reason: str
    nodes: str


@dataclass(frozen=True)
class Numbers:
    """All that an experiment found: what two undisturbed runs of it have in common, bit for bit."""

    losses: dict[str, list[tuple[int, float, float]]]
    """By run, of each step its loss and gradient norm."""
    exports: dict[str, str]
    """By run and step, the hash of the weights."""
    results: dict[str, Any]
    """By run, step and cell."""


@dataclass(frozen=True)
class World:
    """A folder with an experiment in it. Its name is the experiment's, and so the beginning of its jobs' names."""

    folder: Path
    environment: dict[str, str]
    cluster: Sandbox | None = None

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def root(self) -> RunDir:
        return RunDir(self.folder / "runs" / self.name)

    @property
    def sweep(self) -> Path:
        return self.folder / f"{self.name}.toml"

    @property
    def profile(self) -> Path:
        return self.folder / "profile.toml"

    def with_environment(self, **changed: str) -> World:
        return dataclasses.replace(self, environment=self.environment | changed)

    # ------------------------------------------------------------------------------------------ commands

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "hpc_ewc", *arguments]

    def run(self, *arguments: str, timeout_s: float = 600.0) -> subprocess.CompletedProcess[str]:
        command, place = self.command(*arguments), self.folder
        return subprocess.run(
            command, cwd=place, env=self.environment, capture_output=True, text=True, timeout=timeout_s
        )

    @property
    def submit_arguments(self) -> list[str]:
        given = ["--profile", self.profile.name] if self.profile.exists() else []
        return ["submit", self.sweep.name, *given]

    def submit(self) -> subprocess.CompletedProcess[str]:
        return self.run(*self.submit_arguments)

    def must_submit(self) -> None:
        done = self.submit()
        assert done.returncode in (0, 3), done.stdout + done.stderr

    def status(self) -> dict[str, dict[str, Any]]:
        """What `status --json` says of each stage and run, by `stage/run` without the key."""
        done = self.run("status", str(self.root.root), "--json")
        assert done.stdout, done.stderr
        return {
            KEY.sub("", f"{row['stage']}/{row['run']}").rstrip("/"): row for row in json.loads(done.stdout)["stages"]
        }

    def states(self) -> dict[str, str]:
        return {name: str(row["state"]) for name, row in self.status().items()}

    # ------------------------------------------------------------------------------------------ jobs

    def jobs(self) -> list[SlurmJob]:
        """What waits or runs of this experiment."""
        assert self.cluster is not None
        lines = self.cluster.slurm("squeue", "-hr", "-o", "%i|%j|%T|%r|%N").splitlines()
        found = []
        for line in lines:
            job_id, name, state, reason, nodes = line.split("|")
            experiment, _, rest = name.partition("/")
            if experiment == self.name:
                found.append(SlurmJob(job_id, rest.partition("/")[0], state, reason, nodes))
        return found

    def job(self, stage: str, state: str = "RUNNING", timeout_s: float = 300.0) -> SlurmJob:
        """The job of a stage, as soon as it is in a state."""

        def look() -> SlurmJob | None:
            return next((job for job in self.jobs() if (job.stage, job.state) == (stage, state)), None)

        found = wait_for(look, f"{self.name}/{stage} is {state}", timeout_s, context=str(self.jobs()))
        assert found is not None
        return found

    def finish(self, timeout_s: float = 600.0) -> None:
        """Wait until nothing of it waits or runs."""
        wait_for(lambda: not self.hurry(), f"{self.name} ends", timeout_s, every_s=0.3)

    def hurry(self) -> list[SlurmJob]:
        """What waits or runs; a job that was requeued need not wait out its delay."""
        assert self.cluster is not None
        jobs = self.jobs()
        for job in jobs:
            if job.state == "PENDING" and job.reason == "BeginTime":
                self.cluster.ask("scontrol", "update", f"JobId={job.job_id}", "StartTime=now")
        return jobs

    def change_profile(self, old: str, new: str) -> None:
        text = self.profile.read_text()
        assert old in text
        self.profile.write_text(text.replace(old, new))

    def submissions(self) -> Counter[str]:
        """How many jobs there were of each stage, elements of arrays counted."""
        return Counter(job.stage for job in Ledger(self.root).read().jobs.values() if job.outcome != "lost")

    # ------------------------------------------------------------------------------------------ ranks

    def ranks(self, stage: str = "train") -> list[int]:
        """The processes that train, on whichever node, as this machine sees them."""
        return [pid for pid in all_pids() if _is_rank(read(pid, "cmdline"), stage, str(self.root.root))]

    def steps(self) -> int:
        """How many lines of metrics there are."""
        with suppress(ValueError, FileNotFoundError):
            (path,) = self.root.root.glob("train/*/metrics.jsonl")
            return len(path.read_text().splitlines())
        return 0

    @contextmanager
    def held(self, step: int) -> Iterator[list[int]]:
        """Inside, training stands still after at least so many steps: its ranks are stopped, and go on afterwards."""
        ranks = wait_for(self.ranks, f"{self.name}: ranks", every_s=0.01)
        wait_for(lambda: self.steps() >= step, f"{self.name}: step {step}", every_s=0.01)
        tell(ranks, signal.SIGSTOP)  # at once: looking for them takes as long as some steps
        tell(ranks := self.ranks(), signal.SIGSTOP)
        try:
            assert ranks, "no rank was found"
            assert not list(self.root.root.glob("train/*/done.json")), "it was too late"
            yield ranks
        finally:
            tell(ranks, signal.SIGCONT)

    @contextmanager
    def held_with_checkpoint(self) -> Iterator[list[int]]:
        """Inside, training stands still somewhere behind a checkpoint that was made in time, as one is every second."""
        with self.held(2) as ranks:
            time.sleep(1.2)  # so that the next step is followed by a checkpoint
            tell(ranks, signal.SIGCONT)
            wait_for(lambda: self.newest_checkpoint() > 0, "a checkpoint", every_s=0.01)
            tell(ranks, signal.SIGSTOP)
            assert not list(self.root.root.glob("train/*/done.json")), "it was too late"
            yield ranks

    def newest_checkpoint(self) -> int:
        """The last step that a whole checkpoint is of; 0 where there is none."""
        return max(
            (int(path.parent.name) for path in self.root.root.glob("train/*/checkpoints/[0-9]*/done.json")), default=0
        )

    def stop_is_asked(self, restart: int = 0) -> bool:
        return bool(list(self.root.jobs.glob(f"*/stop.{restart}")))

    # ------------------------------------------------------------------------------------------ what came out

    def numbers(self) -> Numbers:
        losses, exports, results = {}, {}, {}
        for path in sorted(self.root.root.glob("train/*/metrics.jsonl")):
            last = {line["step"]: line for line in records.read_lines(path)}
            losses[path.parent.name] = [(step, last[step]["loss"], last[step]["grad_norm"]) for step in sorted(last)]
        for path in sorted(self.root.root.glob("train/*/exports/*/model*.safetensors")):
            exports["/".join(path.parts[-4:])] = records.sha256_file(path)
        for path in sorted(self.root.root.glob("evaluate/*/[0-9]*/*.json")):
            results["/".join(path.parts[-3:])] = records.read_json(path)["results"]
        return Numbers(losses, exports, results)

    def restarts(self) -> list[int]:
        """Of each step, in which attempt of the job it was made."""
        return [line["restart"] for line in self.metrics()]

    def metrics(self) -> list[dict[str, Any]]:
        """A line a step, of the one training."""
        (path,) = self.root.root.glob("train/*/metrics.jsonl")
        return list(records.read_lines(path))

    def leftovers(self) -> list[Path]:
        """Files that were being written when something died; `.metadata` is a checkpoint's own."""
        return [path for path in self.root.root.glob("*/*/**/.*") if path.is_file() and path.name != ".metadata"]


def assert_done(world: World, undisturbed: World) -> None:
    """Everything is there, with the numbers of an undisturbed run; nothing lost, nothing counted twice."""
    assert set(world.states().values()) == {"done"}, world.status()
    found, wanted = world.numbers(), undisturbed.numbers()
    assert found.losses == wanted.losses
    assert found.exports == wanted.exports
    assert found.results == wanted.results
    assert world.leftovers() == []
    again = world.submit()
    assert again.returncode == 0
    assert "nothing to do" in again.stderr


def tables_without_jobs(world: World) -> list[list[list[str]]]:
    """The rows of its tables without what no two runs have in common: ids of jobs, seconds."""
    return [_rows(world.root.root / "report" / name) for name in ("results.csv", "table.csv")]


def _rows(table: Path) -> list[list[str]]:
    rows = [line.split(",") for line in table.read_text().splitlines()]
    own = [index for index, name in enumerate(rows[0]) if name in ("job_id", "seconds", "gpu_hours", "versions")]
    return [[value for index, value in enumerate(row) if index not in own] for row in rows]


def tell(pids: list[int], number: signal.Signals) -> None:
    """A signal to those of them that still live."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _is_rank(command: bytes, stage: str, root: str) -> bool:
    words = command.decode(errors="replace").split("\0")
    return "hpc_ewc.worker" in words and stage in words and "torch.distributed.run" not in words and root in str(words)


def make_world(
    folder: Path, cluster: Sandbox | None, miniature: Path, *, given: Path | None = None, experiment: str = "fault.toml"
) -> World:
    """A new folder with the experiment under its name.

    Args:
        folder: to make; its name becomes the experiment's.
        cluster: where its jobs run; None: on this machine.
        miniature: files that the experiment reads, with the base model.
        given: a run folder whose tokens and Fisher are copied: they are made already. Evaluation is one job then.
        experiment: beside this file.
    """
    link_miniature(folder, miniature)
    named = {"HPC_EWC_CACHE": str(miniature.parent), "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    world = World(folder, (cluster.environment if cluster else dict(os.environ)) | named, cluster)
    shutil.copy(Path(__file__).with_name(experiment), world.sweep)
    if cluster is not None:
        shutil.copy(PROFILE, world.profile)
    if given is not None:
        for stage in ("tokens", "fisher"):
            shutil.copytree(given / stage, world.root.root / stage)
        world.sweep.write_text(world.sweep.read_text().replace("elements = 2", "elements = 1"))  # a start-up less
    return world
