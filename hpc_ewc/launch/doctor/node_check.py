"""The one small job of `hpc-ewc doctor`, and what it saw on the nodes."""

from __future__ import annotations

import dataclasses
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hpc_ewc import records
from hpc_ewc.artefacts.artefact import Element
from hpc_ewc.artefacts.job_logs import last_lines
from hpc_ewc.errors import ArtefactError
from hpc_ewc.launch.doctor.findings import Finding, look, ok, wrong
from hpc_ewc.launch.doctor.machine import check_gpus, check_python, write_trouble
from hpc_ewc.launch.profile.keys import Profile
from hpc_ewc.launch.profile.resources import JobResources
from hpc_ewc.launch.slurm import client
from hpc_ewc.launch.slurm.script import Script, build_script, check_paths, clean_environment
from hpc_ewc.launch.submit import code
from hpc_ewc.node.environment import worker_environment
from hpc_ewc.node.probe_task import ProbeTask
from hpc_ewc.node.slurm_command import SchedulerError
from hpc_ewc.rundir import RunDir

WAIT_S = 600.0
"""For the job to start and end; then it is taken back."""
POLL_S = 3.0
LATE_S = 40.0
SKEW_S = 5.0
SLOW_GB_S = 1.0
"""An all-reduce between GPUs slower than this went over plain Ethernet."""


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
    nodes = read_findings(out, 0 if trouble else resources.nodes)
    if not trouble and len(nodes) < resources.nodes:
        text = f"job {job_id} ended well, and what it wrote to {out} is not seen here"
        yield wrong("shared folder", text, "set `runs` to a folder that nodes and this machine share")
        return
    if len(nodes) < resources.nodes:
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
    try:
        with clean_environment():
            said = client.call(["sbatch", "--parsable", str(script.folder / "submission.sh")], 60.0)
    except KeyboardInterrupt:  # Slurm may have taken the job and not told its id; its name is of this call alone
        with suppress(SchedulerError):
            client.call(["scancel", f"--name={script.parameters['job_name']}"])
        raise
    return said.strip().partition(";")[0]


def wait(job_id: str) -> tuple[str, float]:
    """Wait for a job's end: what went wrong, "" if nothing did, and how long it waited for nodes."""
    started = time.monotonic()
    waited, told = 0.0, ""
    while time.monotonic() - started < WAIT_S:
        time.sleep(POLL_S)
        try:
            job = next(iter(client.look_up([job_id]).get(job_id, [])), None)
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
        client.cancel([job_id])
    except SchedulerError as error:
        sys.stderr.write(f"job {job_id} may still be there: {error}\n")


def read_findings(out: Path, wanted: int) -> list[dict[str, Any]]:
    """What the nodes wrote; a network file system may show so many files half a minute late."""
    deadline = time.monotonic() + LATE_S
    while len(list(out.glob("look-*.json"))) < wanted and time.monotonic() < deadline:
        time.sleep(1.0)
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
