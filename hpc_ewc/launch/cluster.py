"""What `hpc-ewc doctor` looks at on a cluster: the scheduler, what it grants, and one small job on its nodes."""

from __future__ import annotations

import dataclasses
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpc_ewc import records
from hpc_ewc.config import Experiment, build_experiment
from hpc_ewc.errors import ArtefactError
from hpc_ewc.launch import code, scheduler
from hpc_ewc.launch.findings import Finding, look, not_tried, ok, wrong
from hpc_ewc.launch.graph import REPORT, Element
from hpc_ewc.launch.machine import STAGES, check_gpus, check_python, write_trouble
from hpc_ewc.launch.outcome import last_lines
from hpc_ewc.launch.probe_job import ProbeTask
from hpc_ewc.launch.profile import JobResources, Profile, job_resources
from hpc_ewc.launch.scheduler import SchedulerError
from hpc_ewc.launch.slurm_refusal import FIXES
from hpc_ewc.launch.slurm_script import Script, build_script, check_paths, clean_environment
from hpc_ewc.launch.torchrun import worker_environment
from hpc_ewc.rundir import RunDir

WAIT_S = 600.0
"""For the job to start and end; then it is taken back."""
POLL_S = 3.0
SKEW_S = 5.0
SLOW_GB_S = 1.0
"""An all-reduce between GPUs slower than this went over plain Ethernet."""
JOB_MIN = 10
EXAMPLE = {"model": {"path": "miniature"}, "data": {"source": "miniature"}}


def check_cluster(profile: Profile, experiment: Experiment | None, runs: Path, quick: bool) -> Iterator[Finding]:
    """Everything between `submit` and the ranks, in the order in which a submit meets it."""
    try:
        started = time.monotonic()
        version, settings = scheduler.version(), scheduler.settings()
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
        scheduler.accounted(names=["hpc-ewc doctor"], since=time.time() - 60)
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
        text = scheduler.tell("-o", "show", "partition", name)
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
            said = scheduler.call(["sbatch", "--test-only", str(path)], environment={"LC_ALL": "C"}, errors_too=True)
    except SchedulerError as error:
        words = str(error).split('"', 1)[-1].rstrip('"')
        fix = next((fix for pattern, fix in FIXES if re.search(pattern, words, re.IGNORECASE)), "mend the profile")
        return wrong(stages, f"{asked}: {words}", fix.format(stage=stage))
    when = re.search(r"to start at (\S+)", said)
    return ok(stages, f"{asked}: granted" + (f", as things are at {when[1]}" if when else ""))


def script_of(root: RunDir, stage: str, token: str, resources: JobResources, profile: Profile) -> Script:
    return build_script(
        root=root,
        stage=stage,
        run="",
        token=token,
        resources=resources,
        profile=profile,
        code=code.PACKAGE.parent,
        array=None,
        dependency="",
    )


def describe(resources: JobResources) -> str:
    """`2 nodes, 4 GPUs and 16 cores each, 60 min`."""
    gpus = f"{plural(resources.gpus_per_node, 'GPU')} and " if resources.gpus_per_node else ""
    memory = f", {resources.mem_gb} GB" if resources.mem_gb else ""
    each = f"{gpus}{plural(resources.cpus_per_task, 'core')}{memory}{' each' if resources.nodes > 1 else ''}"
    return f"{plural(resources.nodes, 'node')}, {each}, {resources.time_min} min"


def plural(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def node_resources(asked: list[tuple[str, str, JobResources]], profile: Profile) -> tuple[str, JobResources]:
    """Of the stage that asks for the most nodes and GPUs: as that, on two nodes at most, for a few minutes."""
    _, stage, most = max(asked, key=lambda entry: (entry[2].nodes, entry[2].gpus_per_node))
    needed = -(-(profile.slurm.signal_delay_s + 180) // 60)
    nodes, minutes = min(2, most.nodes), max(min(most.time_min, JOB_MIN), needed)
    return stage, dataclasses.replace(most, nodes=nodes, time_min=minutes)


# ---------------------------------------------------------------------------------------------- one job


@contextmanager
def scratch_run(runs: Path) -> Iterator[RunDir | None]:
    """A run folder of doctor's own, where the real ones would be; removed afterwards. None: nothing can be written."""
    before = runs.is_dir()
    if write_trouble(runs):
        yield None
        return
    runs.mkdir(parents=True, exist_ok=True)
    root = RunDir(Path(tempfile.mkdtemp(prefix="doctor-", dir=runs)))
    try:
        check_paths(root)
        yield root
    finally:
        shutil.rmtree(root.root, ignore_errors=True)
        if not before and not any(runs.iterdir()):
            runs.rmdir()


def check_nodes(root: RunDir, profile: Profile, chosen: tuple[str, JobResources]) -> Iterator[Finding]:
    """Submit one small job, wait for it, and tell what it saw."""
    stage, resources = chosen
    out, nonce = root.root / "found", root.root / "nonce"
    nonce.write_text(secrets.token_hex(8), encoding="utf-8")
    try:
        job_id = start(root, stage, resources, profile, out, nonce)
    except SchedulerError as error:
        yield wrong("nodes", str(error), "see the requests above")
        return
    try:
        trouble, waited = wait(job_id)
    finally:
        take_back(job_id)
    nodes = read_findings(out)
    if trouble and len(nodes) < resources.nodes:
        log = job_log(root, job_id)
        yield wrong("nodes", f"job {job_id}, {describe(resources)}: {trouble}{log}", "see its last words, or try again")
        return
    yield ok("nodes", f"job {job_id} ran on {', '.join(str(node['host']) for node in nodes)} after {waited:.0f} s")
    yield check_shared(nodes, root, nonce.read_text(encoding="utf-8"))
    yield from check_python(nodes, sys.executable)
    if resources.gpus_per_node:
        yield check_gpus(nodes, resources.gpus_per_node, profile.env)
    yield check_clocks(nodes, root)
    if resources.nodes * resources.nproc_per_node > 1:
        yield check_all_reduce(out, resources, f"{trouble}{job_log(root, job_id)}")


def start(root: RunDir, stage: str, resources: JobResources, profile: Profile, out: Path, nonce: Path) -> str:
    """Submit the probe; its job id."""
    package = code.snapshot(root)
    threads = max(1, resources.cpus_per_task // resources.nproc_per_node)
    slurm = profile.slurm
    task = ProbeTask(
        name=f"{root.name}/{stage}",
        stage=stage,
        folder=str(out),
        jobs=str(root.jobs),
        token="probe",  # noqa: S106  # a folder's name
        elements=((Element("0"),),),
        python=profile.interpreter,
        environment=worker_environment(package, profile.env, threads, one_node=resources.nodes == 1),
        nodes=resources.nodes,
        nproc_per_node=resources.nproc_per_node,
        gpus_per_node=resources.gpus_per_node,
        cpus_per_task=resources.cpus_per_task,
        host_suffix=slurm.host_suffix,
        scratch=slurm.scratch,
        container=profile.container,
        nonce=str(nonce),
    )
    script = script_of(root, stage, "probe", resources, profile)
    script = dataclasses.replace(script, parameters={**script.parameters, "comment": "hpc-ewc doctor"})
    script.write(task)
    with clean_environment():
        said = scheduler.call(["sbatch", "--parsable", str(script.folder / "submission.sh")], 60.0)
    return said.strip().partition(";")[0]


def wait(job_id: str) -> tuple[str, float]:
    """Wait for a job's end: what went wrong, "" if nothing did, and how long it waited for nodes."""
    started = time.monotonic()
    waited, told = 0.0, ""
    while time.monotonic() - started < WAIT_S:
        time.sleep(POLL_S)
        try:
            job = next(iter(scheduler.look_up([job_id]).get(job_id, [])), None)
        except SchedulerError as error:
            told = str(error)
            continue
        if job is None:
            continue
        if job.waits:
            waited, told = time.monotonic() - started, f"still {job.state}: {job.reason}"
        elif job.ended:
            return ("" if job.state == "COMPLETED" else f"{job.state} {job.exit_code} on {job.nodes}"), waited
    return f"not over after {WAIT_S / 60:.0f} min, taken back ({told or 'it runs'})", waited


def take_back(job_id: str) -> None:
    """Take the job back, if it is still there; also on Ctrl-C."""
    try:
        scheduler.cancel([job_id])
    except SchedulerError as error:
        sys.stderr.write(f"job {job_id} may still be there: {error}\n")


def read_findings(out: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted(out.glob("look-*.json")):
        try:
            found.append(records.read_json(path))
        except (FileNotFoundError, ArtefactError):
            continue
    return found


def job_log(root: RunDir, job_id: str) -> str:
    """The last words of the batch script, the launcher and the workers."""
    files = [*root.job("probe").glob("*_batch.out"), *root.job(job_id).glob("*_log.err")]
    files += root.job(job_id).rglob("stderr.log")
    words = [line for path in sorted(files) for line in last_lines(path, 20).splitlines() if line.strip()]
    telling = [line for line in words if re.search(r"error|denied|not found|cannot|no such", line, re.IGNORECASE)]
    return f"; its log: {' / '.join((telling or words)[-3:])}" if words else ""


# ---------------------------------------------------------------------------------------------- what it saw


def check_shared(nodes: list[dict[str, Any]], root: RunDir, nonce: str) -> Finding:
    blind = [str(node["host"]) for node in nodes if node.get("nonce") != nonce]
    where = root.root.parent
    if blind:
        return wrong("shared folder", f"{where} is another one on {', '.join(blind)}", "set `runs` to a shared folder")
    return ok("shared folder", f"{where} is the same on every node")


def check_clocks(nodes: list[dict[str, Any]], root: RunDir) -> Finding:
    """Each clock against the file server's."""
    mark = root.root / "clock"
    mark.touch()
    here = time.time() - mark.stat().st_mtime
    skews = {str(node["host"]): float(node["clock"]) - float(node["file_clock"]) - here for node in nodes}
    host, most = max(skews.items(), key=lambda entry: abs(entry[1]))
    text = f"{most:+.1f} s on {host} against this machine"
    return (
        look("clocks", text, "tell the site: times in logs will not fit") if abs(most) > SKEW_S else ok("clocks", text)
    )


def check_all_reduce(out: Path, resources: JobResources, trouble: str) -> Finding:
    ranks = resources.nodes * resources.nproc_per_node
    try:
        facts = records.read_json(out / "all-reduce.json")
    except (FileNotFoundError, ArtefactError):
        fix = "is env.NCCL_SOCKET_IFNAME (GLOO_SOCKET_IFNAME) the nodes' network, and slurm.host_suffix what it needs?"
        return wrong("all-reduce", f"{ranks} ranks on {resources.nodes} nodes did not meet: {trouble}", fix)
    text = f"{facts['bus_gb_s']:.2f} GB/s over {facts['backend']}, {ranks} ranks on {', '.join(facts['hosts'])}"
    if not facts["right"]:
        return wrong("all-reduce", f"{text}: the sum is wrong", "tell the site: this network or library is broken")
    if facts["backend"] == "nccl" and resources.nodes > 1 and facts["bus_gb_s"] < SLOW_GB_S:
        return look("all-reduce", text, "slow: set env.NCCL_SOCKET_IFNAME, and look for NET/ in NCCL_DEBUG=INFO")
    return ok("all-reduce", text)
