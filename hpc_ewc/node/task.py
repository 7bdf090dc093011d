"""The task that submitit calls in a job, and the job's place on this machine or on the cluster."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path

from hpc_ewc.artefacts.artefact import Element
from hpc_ewc.node.container import ContainerConfig


@dataclass(frozen=True)
class JobTask:
    """The description of a job; plain values only, so that its pickle can be read on any node, and no secrets."""

    name: str
    """NAME/stage/run, for messages."""
    stage: str
    folder: str
    """Folder of the artefact; for the report, the run folder."""
    jobs: str
    """runs/NAME/jobs."""
    token: str
    """Token of the submission; in a chain, of its first job."""
    elements: tuple[tuple[Element, ...], ...]
    """By array index; several elements run side by side, one on each GPU."""
    python: str
    environment: dict[str, str]
    nodes: int = 1
    nproc_per_node: int = 1
    slots: int = 1
    """Workers side by side, if a job has several elements."""
    gpus_per_node: int = 0
    cpus_per_task: int = 1
    out: str = ""
    """For the report: folder of its tables."""
    runs: tuple[str, ...] = ()
    """For the report: the evaluations that it reads."""
    folders: tuple[str, ...] = ()
    """By array index, the artefact's folder, if the array makes several artefacts."""
    host_suffix: str = ""
    requeue: bool = True
    link: int = 0
    """Position in a chain of successors."""
    grace_time_s: int = 300
    scratch: str = ""
    container: ContainerConfig = field(default_factory=ContainerConfig)

    def job(self, job_id: str) -> Path:
        """runs/NAME/jobs/<job_id>; given a token, the folder of the submission."""
        return Path(self.jobs) / job_id

    def at(self, index: int) -> JobTask:
        """The task of one array index, which makes one artefact."""
        if not self.folders:
            return self
        folder = self.folders[index]
        return dataclasses.replace(self, name=f"{self.name}/{Path(folder).name}", folder=folder, folders=())


@dataclass(frozen=True)
class JobContext:
    """This process's place: which job, which attempt, which node."""

    job_id: str
    """Name of its folder under jobs/; on Slurm `123`, or `123_4`."""
    raw_id: str = ""
    """The id that scontrol takes: an array element has a number of its own."""
    index: int = 0
    restart: int = 0
    node: int = 0
    hosts: tuple[str, ...] = ("localhost",)

    @staticmethod
    def from_slurm() -> JobContext:
        """Read it from the environment of a task on Slurm."""
        from submitit import JobEnvironment

        env = JobEnvironment()
        index = int(env.array_task_id or 0)
        restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        return JobContext(env.job_id, env.raw_job_id, index, restart, env.node, tuple(env.hostnames))
