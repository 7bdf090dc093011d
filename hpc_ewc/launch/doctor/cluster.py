"""Checks of `hpc-ewc doctor` on a cluster: the scheduler, its limits, and whether it accepts the jobs' requests."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hpc_ewc.artefacts.artefact import REPORT
from hpc_ewc.config import Experiment, build_experiment
from hpc_ewc.launch.doctor.findings import Finding, fail, ok, skipped, warn
from hpc_ewc.launch.doctor.machine import JOB_STAGES
from hpc_ewc.launch.doctor.node_check import check_nodes, describe_resources, single_job_script, temporary_run
from hpc_ewc.launch.profile.keys import Profile
from hpc_ewc.launch.profile.resources import JobResources, job_resources
from hpc_ewc.launch.slurm import client
from hpc_ewc.launch.slurm.script import clean_environment
from hpc_ewc.launch.submit.refusal import FIXES
from hpc_ewc.node.slurm_command import SchedulerError, call, scontrol
from hpc_ewc.rundir import RunDir

PROBE_MIN = 10
EXAMPLE = {"model": {"path": "model"}, "data": {"source": "files", "files": ["corpus.jsonl"]}}


@dataclasses.dataclass(frozen=True)
class Request:
    """Resources that the jobs of one or several stages request."""

    stages: tuple[str, ...]
    resources: JobResources


def check_cluster(profile: Profile, experiment: Experiment | None, runs: Path, *, quick: bool) -> Iterator[Finding]:
    """Check everything between `submit` and the ranks, in the order of a submit."""
    try:
        started = time.monotonic()
        version, settings = client.version(), client.settings()
    except SchedulerError as error:
        yield fail("Slurm", str(error), "run this on a login node of the cluster")
        return
    yield ok("Slurm", f"{version}; the controller answered in {time.monotonic() - started:.1f} s")
    yield check_accounting(settings)
    yield from check_limits(profile, settings)
    requests = distinct_requests(profile, experiment)
    accepted = True
    with temporary_run(runs) as root:
        if root is None:
            yield skipped("requests", f"{runs} cannot be written")
            return
        for request in requests:
            finding = check_request(root, request, profile)
            accepted = accepted and finding.state != "fail"
            yield finding
        if quick or not accepted:
            yield skipped("nodes", "--quick: no job" if quick else "fix the requests first")
            return
        yield from check_nodes(root, profile, *probe_request(requests, profile))


def check_accounting(settings: Mapping[str, str]) -> Finding:
    """Check whether sacct answers; status needs it for GPU-hours and for how old jobs ended."""
    kind = settings.get("AccountingStorageType", "")
    effect = "status uses the queue and the files, without GPU-hours"
    if kind.endswith("none"):
        return warn("accounting", "this cluster keeps none", effect)
    try:
        client.accounted(names=["hpc-ewc doctor"], since=time.time() - 60)
    except SchedulerError as error:
        return warn("accounting", str(error), effect)
    return ok("accounting", kind.rpartition("/")[2] or "answers")


def check_limits(profile: Profile, settings: Mapping[str, str]) -> Iterator[Finding]:
    """Check the profile's limits against the cluster's own settings."""
    slurm = profile.slurm
    most = settings.get("MaxArraySize", "")
    if most.isdigit() and slurm.max_array_size > int(most):
        text = f"slurm.max_array_size = {slurm.max_array_size}, the cluster's MaxArraySize is {most}"
        yield fail("arrays", text, f"set slurm.max_array_size = {most}")
    for partition in dict.fromkeys(slurm.of(stage).partition for stage in JOB_STAGES):
        if partition:
            yield from check_partition(partition, slurm.grace_time_s)
    wait = settings.get("KillWait", "")
    yield ok("limits", f"MaxArraySize {most or 'unknown'}; jobs have {wait or 'unknown time'} (KillWait) to save")


def check_partition(name: str, grace_time_s: int) -> Iterator[Finding]:
    """Check that a partition exists, is up, and has no longer GraceTime than the profile says."""
    try:
        text = scontrol("-o", "show", "partition", name)
    except SchedulerError as error:
        if "," not in name:  # from a list, Slurm takes the partition that is free first; only sbatch can check it
            yield fail("partition", str(error), "set slurm.partition (sinfo lists them)")
        return
    state = re.search(r"\bState=(\w+)", text)
    if state and state[1] != "UP":
        yield warn("partition", f"{name} is {state[1]}: jobs wait until it is UP", "choose another, or wait")
    grace = re.search(r"\bGraceTime=(\d+)", text)
    if grace and int(grace[1]) > grace_time_s:
        fix = f"set slurm.grace_time_s = {grace[1]}: a job that has saved must outlive it to be requeued"
        yield fail("partition", f"{name}: GraceTime = {grace[1]} s, slurm.grace_time_s = {grace_time_s}", fix)


# ---------------------------------------------------------------------------------------------- requests


def distinct_requests(profile: Profile, experiment: Experiment | None) -> list[Request]:
    """The requests of all stages, those that are equal as one."""
    experiment = experiment or build_experiment(EXAMPLE, "doctor")
    found: dict[Any, Request] = {}
    for stage in (*JOB_STAGES, REPORT):
        resources = job_resources(stage, experiment, profile)
        key = (dataclasses.replace(resources, elements=1), repr(profile.slurm.of(stage)))
        same = found.get(key)
        found[key] = Request((*same.stages, stage), same.resources) if same else Request((stage,), resources)
    return list(found.values())


def check_request(root: RunDir, request: Request, profile: Profile) -> Finding:
    """Check whether sbatch would accept such a job; submits nothing."""
    name, stage = ", ".join(request.stages), request.stages[0]
    path = root.root / "request.sh"
    path.write_text(single_job_script(root, stage, "request", request.resources, profile).render(), encoding="utf-8")
    resources = describe_resources(request.resources)
    try:
        with clean_environment():
            answer = call(["sbatch", "--test-only", str(path)], environment={"LC_ALL": "C"}, include_stderr=True)
    except SchedulerError as error:
        refusal = str(error).split('"', 1)[-1].rstrip('"')
        fix = next((fix for pattern, fix in FIXES if re.search(pattern, refusal, re.IGNORECASE)), "correct the profile")
        return fail(name, f"{resources}: {refusal}", fix.format(stage=stage))
    start = re.search(r"to start at (\S+)", answer)
    return ok(name, f"{resources}: accepted" + (f", would start at {start[1]}" if start else ""))


def probe_request(requests: list[Request], profile: Profile) -> tuple[str, JobResources]:
    """The largest request's stage, and its resources for a short job on at most two nodes."""
    largest = max(requests, key=lambda request: (request.resources.nodes, request.resources.gpus_per_node))
    needed = -(-(profile.slurm.signal_delay_s + 180) // 60)
    minutes = max(min(largest.resources.time_min, PROBE_MIN), needed)
    nodes = min(2, largest.resources.nodes)
    return largest.stages[0], dataclasses.replace(largest.resources, nodes=nodes, time_min=minutes)
