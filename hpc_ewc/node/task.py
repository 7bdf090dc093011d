"""What submitit calls in a job of Slurm, and where in the cluster it finds itself."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path

from hpc_ewc.artefacts.artefact import Element
from hpc_ewc.node.container import ContainerConfig


@dataclass(frozen=True)
class SlurmTask:
    """What submitit calls; only plain values, so that its pickle says the same on any node, and no secret is in it."""

    name: str
    """NAME/stage/run, for messages."""
    stage: str
    folder: str
    """Of the artefact; of the report: the run folder."""
    jobs: str
    """runs/NAME/jobs."""
    token: str
    """Of the submission; of a chain, its first."""
    elements: tuple[tuple[Element, ...], ...]
    """By array index; several run side by side, one on each GPU."""
    python: str
    environment: dict[str, str]
    nodes: int = 1
    nproc_per_node: int = 1
    slots: int = 1
    """Workers side by side, where a job has several elements."""
    gpus_per_node: int = 0
    cpus_per_task: int = 1
    out: str = ""
    """Of the report: where its tables go."""
    runs: tuple[str, ...] = ()
    """Of the report: the evaluations it tells of."""
    folders: tuple[str, ...] = ()
    """By array index, the artefact's folder, where they are several."""
    host_suffix: str = ""
    requeue: bool = True
    link: int = 0
    """Place in a chain of successors."""
    grace_time_s: int = 300
    scratch: str = ""
    container: ContainerConfig = field(default_factory=ContainerConfig)

    def job(self, job_id: str) -> Path:
        """runs/NAME/jobs/<job_id>; of a submission, by its token."""
        return Path(self.jobs) / job_id

    def at(self, index: int) -> SlurmTask:
        """What one index of the array runs: one artefact, whatever the others are of."""
        if not self.folders:
            return self
        folder = self.folders[index]
        return dataclasses.replace(self, name=f"{self.name}/{Path(folder).name}", folder=folder, folders=())


@dataclass(frozen=True)
class SlurmContext:
    """Where this process is, as Slurm says it."""

    job_id: str
    """`123`, or `123_4`."""
    raw_id: str
    """Of scontrol: an element has a number of its own."""
    index: int
    restart: int
    node: int
    hosts: tuple[str, ...]

    @staticmethod
    def read() -> SlurmContext:
        """From the environment of a task."""
        from submitit import JobEnvironment

        env = JobEnvironment()
        index = int(env.array_task_id or 0)
        restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        return SlurmContext(env.job_id, env.raw_job_id, index, restart, env.node, tuple(env.hostnames))
