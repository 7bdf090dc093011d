"""Slurm's words for why a job waits and how it ended, with what they mean for whoever submitted it."""

from __future__ import annotations

from hpc_ewc.launch.slurm.output import SlurmJob

REASONS = {
    "Dependency": "for what it reads",
    "JobArrayTaskLimit": "max_running are at work",
    "BeginTime": "requeued, Slurm holds it for two minutes",
    "Priority": "others go first",
    "Resources": "first in line for free nodes",
    "AssocGrpGRES": "the account's GPUs are all in use",
    "AssocMaxJobsLimit": "as many jobs as the account may run",
    "QOSMaxJobsPerUserLimit": "as many jobs as the qos lets one user run",
    "PartitionTimeLimit": "time_min is above the partition's limit: it will never start",
    "PartitionNodeLimit": "more nodes than the partition has: it will never start",
    "ReqNodeNotAvail": "nodes are down or reserved",
    "JobHeldUser": "held: scontrol release",
    "JobHeldAdmin": "held by the site",
    "launch failed requeued held": "it could not be started: hpc-ewc cancel it, then submit again",
    "DependencyNeverSatisfied": "what it needs did not end well",
}


def describe_reason(reason: str, job: SlurmJob, link: int = 0) -> str:
    """`Priority (others go first)`; Slurm's own word is what one looks up. `link`: its place in a chain."""
    word = reason.partition(",")[0]
    meaning = REASONS.get(word, "")
    if word == "BeginTime" and not job.restarts:
        meaning = "its time to start has not come"
    if word == "Dependency" and link:
        meaning = "for the job before it in the chain to end"
    return f"{reason} ({meaning})" if meaning else reason or "in the queue"


ENDS = {
    "TIMEOUT": "its time was over, and it could not save and go on: raise resources.*.time_min",
    "OUT_OF_MEMORY": "more memory than mem_gb",
    "NODE_FAIL": "its node was lost",
    "PREEMPTED": "made way for others",
    "CANCELLED": "taken out of the queue",
    "DEADLINE": "its deadline passed",
    "BOOT_FAIL": "its node did not start",
}


def describe_end(job: SlurmJob) -> str:
    """`TIMEOUT on node3 after 2 restarts (…)`."""
    words = job.state + (f" {job.exit_code}" if job.state == "FAILED" and job.exit_code else "")
    words += f" on {job.nodes}" if job.nodes else ""
    words += f" after {job.restarts} restart{'s' if job.restarts > 1 else ''}" if job.restarts else ""
    return words + (f" ({ENDS[job.state]})" if job.state in ENDS else "")
