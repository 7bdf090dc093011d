"""Slurm's words for why a job waits and how it ended, with their meaning for the user."""

from __future__ import annotations

from hpc_ewc.launch.slurm.output import SlurmJob

REASONS = {
    "Dependency": "for its inputs",
    "JobArrayTaskLimit": "max_running elements are running",
    "BeginTime": "requeued; Slurm delays it by two minutes",
    "Priority": "other jobs go first",
    "Resources": "first in line for free nodes",
    "AssocGrpGRES": "the account's GPUs are all in use",
    "AssocMaxJobsLimit": "the account runs as many jobs as it may",
    "QOSMaxJobsPerUserLimit": "you run as many jobs as the qos allows",
    "PartitionTimeLimit": "time_min is above the partition's limit: it will never start",
    "PartitionNodeLimit": "more nodes than the partition has: it will never start",
    "ReqNodeNotAvail": "nodes are down or reserved",
    "JobHeldUser": "held: scontrol release",
    "JobHeldAdmin": "held by the site",
    "launch failed requeued held": "it could not be started: cancel it with hpc-ewc cancel, then submit again",
    "DependencyNeverSatisfied": "an input failed",
}


def describe_reason(reason: str, job: SlurmJob, link: int = 0) -> str:
    """Return Slurm's word, which one can look up, and its meaning: `Priority (other jobs go first)`.

    Args:
        reason: Slurm's word.
        job: the job that waits.
        link: its place in a chain of successors, from 0.
    """
    word = reason.partition(",")[0]
    meaning = REASONS.get(word, "")
    if word == "BeginTime" and not job.restarts:
        meaning = "its start time has not come"
    if word == "Dependency" and link:
        meaning = "for the job before it in the chain to end"
    return f"{reason} ({meaning})" if meaning else reason or "in the queue"


ENDS = {
    "TIMEOUT": "it reached its time limit and could not be requeued: raise resources.*.time_min",
    "OUT_OF_MEMORY": "it needed more memory than mem_gb",
    "NODE_FAIL": "its node failed",
    "PREEMPTED": "preempted by other jobs",
    "CANCELLED": "removed from the queue",
    "DEADLINE": "its deadline passed",
    "BOOT_FAIL": "its node did not start",
}


def describe_end(job: SlurmJob) -> str:
    """Return how a job ended: `TIMEOUT on node3 after 2 restarts (…)`."""
    words = job.state + (f" {job.exit_code}" if job.state == "FAILED" and job.exit_code else "")
    words += f" on {job.nodes}" if job.nodes else ""
    words += f" after {job.restarts} restart{'s' if job.restarts > 1 else ''}" if job.restarts else ""
    return words + (f" ({ENDS[job.state]})" if job.state in ENDS else "")
