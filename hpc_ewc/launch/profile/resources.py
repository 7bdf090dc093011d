"""The resources of one job of a stage."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from math import ceil

from hpc_ewc.config import Experiment, Resources
from hpc_ewc.launch.profile.keys import Profile

DEFAULT_TIME_MIN = 60


@dataclass(frozen=True)
class JobResources:
    """The resources of one job of a stage, with all defaults filled in."""

    nodes: int
    nproc_per_node: int
    gpus_per_node: int
    cpus_per_task: int
    mem_gb: int | None
    time_min: int
    elements: int

    @property
    def gpu_hours(self) -> float:
        """The most GPU-hours that one element can use."""
        return self.nodes * self.gpus_per_node * self.time_min / 60


def job_resources(stage: str, experiment: Experiment, profile: Profile) -> JobResources:
    """Return the resources of a stage: the profile's keys, then the experiment's, then defaults."""
    chosen = dataclasses.asdict(experiment.resources.get(stage, Resources()))
    for key, value in dataclasses.asdict(profile.resources.get(stage, Resources())).items():
        if value is not None:
            chosen[key] = value
    gpus = chosen["gpus_per_node"] or 0
    nproc = chosen["nproc_per_node"] or gpus or 1
    found = JobResources(
        nodes=chosen["nodes"] or 1,
        nproc_per_node=nproc,
        gpus_per_node=gpus,
        cpus_per_task=chosen["cpus_per_task"] or nproc,
        mem_gb=chosen["mem_gb"],
        time_min=chosen["time_min"] or DEFAULT_TIME_MIN,
        elements=chosen["elements"] or 1,
    )
    per_job = slots(stage, found, profile)  # round up, so that every billed GPU has work
    return dataclasses.replace(found, elements=ceil(found.elements / per_job) * per_job)


def slots(stage: str, resources: JobResources, profile: Profile) -> int:
    """Return how many elements a job runs in parallel: one per GPU where the site bills whole nodes, else one."""
    whole = profile.executor == "slurm" and profile.slurm.cells_per_job == "node" and stage == "evaluate"
    return max(resources.gpus_per_node, resources.nproc_per_node) if whole else 1
