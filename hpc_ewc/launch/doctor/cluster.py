"""What `hpc-ewc doctor` looks at on a cluster: the scheduler and what it grants (its one small job: node_check.py)."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hpc_ewc.artefacts.artefact import REPORT
from hpc_ewc.config import Experiment, build_experiment
from hpc_ewc.launch.doctor.findings import Finding, look, not_tried, ok, wrong
from hpc_ewc.launch.doctor.machine import STAGES
from hpc_ewc.launch.doctor.node_check import check_nodes, describe, scratch_run, script_of
from hpc_ewc.launch.profile.keys import Profile
from hpc_ewc.launch.profile.resources import JobResources, job_resources
from hpc_ewc.launch.slurm import client
from hpc_ewc.launch.slurm.script import clean_environment
from hpc_ewc.launch.submit.refusal import FIXES
from hpc_ewc.node.slurm_command import SchedulerError
from hpc_ewc.rundir import RunDir

JOB_MIN = 10
EXAMPLE = {"model": {"path": "miniature"}, "data": {"source": "miniature"}}


def check_cluster(profile: Profile, experiment: Experiment | None, runs: Path, quick: bool) -> Iterator[Finding]:
    """Everything between `submit` and the ranks, in the order in which a submit meets it."""
    try:
        started = time.monotonic()
        version, settings = client.version(), client.settings()
    except SchedulerError as error:
        yield wrong("Slurm", str(error), "run this on a login node of the cluster")
        return
    yield ok("Slurm", f"{version}; its controller answers in {time.monotonic() - started:.1f} s")
    yield check_accounting(settings)
    yield from check_limits(profile, settings)
    asked = requests(profile, experiment)
    granted = True
    with scratch_run(runs) as root:
        if root is None:
            yield not_tried("requests", f"nothing can be written to {runs}")
            return
        for stages, stage, resources in asked:
            finding = check_request(root, stages, stage, resources, profile)
            granted = granted and finding.state != "wrong"
            yield finding
        if quick or not granted:
            yield not_tried("nodes", "--quick: no job" if quick else "first put the requests right")
            return
        yield from check_nodes(root, profile, node_resources(asked, profile))


def check_accounting(settings: Mapping[str, str]) -> Finding:
    """Whether sacct answers: status counts GPU-hours by it, and tells how old jobs ended."""
    kind = settings.get("AccountingStorageType", "")
    meanwhile = "status tells from the queue and from files, and counts no GPU-hours"
    if kind.endswith("none"):
        return look("accounting", "this cluster keeps none", meanwhile)
    try:
        client.accounted(names=["hpc-ewc doctor"], since=time.time() - 60)
    except SchedulerError as error:
        return look("accounting", str(error), meanwhile)
    return ok("accounting", kind.rpartition("/")[2] or "answers")


def check_limits(profile: Profile, settings: Mapping[str, str]) -> Iterator[Finding]:
    """What the profile says of the cluster against what the cluster says of itself."""
    slurm = profile.slurm
    most = settings.get("MaxArraySize", "")
    if most.isdigit() and slurm.max_array_size > int(most):
        yield wrong(
            "arrays",
            f"slurm.max_array_size = {slurm.max_array_size}, the cluster's MaxArraySize is {most}",
            f"set slurm.max_array_size = {most}",
        )
    for partition in dict.fromkeys(slurm.of(stage).partition for stage in STAGES):
        if partition:
            yield from check_partition(partition, slurm.grace_time_s)
    wait = settings.get("KillWait", "")
    yield ok("limits", f"arrays to {most or '?'}; a job told to end has {wait or '?'} (KillWait) to save in")


def check_partition(name: str, grace_time_s: int) -> Iterator[Finding]:
    """It is there, up, and preempts with no more grace than the profile knows of."""
    try:
        text = client.scontrol("-o", "show", "partition", name)
    except SchedulerError as error:
        if "," not in name:  # of several, each job takes the first that is free: sbatch alone can tell
            yield wrong("partition", str(error), "set slurm.partition (sinfo lists them)")
        return
    state = re.search(r"\bState=(\w+)", text)
    if state and state[1] != "UP":
        yield look("partition", f"{name} is {state[1]}: jobs wait until it is UP", "choose another, or wait")
    grace = re.search(r"\bGraceTime=(\d+)", text)
    if grace and int(grace[1]) > grace_time_s:
        fix = f"set slurm.grace_time_s = {grace[1]}: a job that has saved must outlive it to be requeued"
        yield wrong("partition", f"{name}: GraceTime = {grace[1]} s, slurm.grace_time_s = {grace_time_s}", fix)


# ---------------------------------------------------------------------------------------------- requests


def requests(profile: Profile, experiment: Experiment | None) -> list[tuple[str, str, JobResources]]:
    """What jobs ask for, each distinct request once: names of its stages, one of them, resources."""
    whole = experiment or build_experiment(EXAMPLE, "doctor")
    found: dict[Any, tuple[list[str], JobResources]] = {}
    for stage in (*STAGES, REPORT):
        resources = job_resources(stage, whole, profile)
        key = (dataclasses.replace(resources, elements=1), repr(profile.slurm.of(stage)))
        found.setdefault(key, ([], resources))[0].append(stage)
    return [(", ".join(stages), stages[0], resources) for stages, resources in found.values()]


def check_request(root: RunDir, stages: str, stage: str, resources: JobResources, profile: Profile) -> Finding:
    """Whether sbatch would take such a job."""
    path = root.root / "request.sh"
    path.write_text(script_of(root, stage, "request", resources, profile).render(), encoding="utf-8")
    asked = describe(resources)
    try:
        with clean_environment():
            said = client.call(["sbatch", "--test-only", str(path)], environment={"LC_ALL": "C"}, errors_too=True)
    except SchedulerError as error:
        words = str(error).split('"', 1)[-1].rstrip('"')
        fix = next((fix for pattern, fix in FIXES if re.search(pattern, words, re.IGNORECASE)), "mend the profile")
        return wrong(stages, f"{asked}: {words}", fix.format(stage=stage))
    when = re.search(r"to start at (\S+)", said)
    return ok(stages, f"{asked}: granted" + (f", as things are at {when[1]}" if when else ""))


def node_resources(asked: list[tuple[str, str, JobResources]], profile: Profile) -> tuple[str, JobResources]:
    """Of the stage that asks for the most nodes and GPUs: as that, on two nodes at most, for a few minutes."""
    _, stage, most = max(asked, key=lambda entry: (entry[2].nodes, entry[2].gpus_per_node))
    needed = -(-(profile.slurm.signal_delay_s + 180) // 60)
    nodes, minutes = min(2, most.nodes), max(min(most.time_min, JOB_MIN), needed)
    return stage, dataclasses.replace(most, nodes=nodes, time_min=minutes)
