"""The one small job of `hpc-ewc doctor`, and the checks of what it reports from the nodes."""

from __future__ import annotations

import dataclasses
import re
import secrets
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
from hpc_ewc.launch.doctor.findings import Finding, fail, ok, warn
from hpc_ewc.launch.doctor.free_space import write_error
from hpc_ewc.launch.doctor.machine import check_gpus, check_python
from hpc_ewc.launch.profile.keys import Profile
from hpc_ewc.launch.profile.resources import JobResources
from hpc_ewc.launch.slurm import client
from hpc_ewc.launch.slurm.script import Script, build_script, check_paths, clean_environment
from hpc_ewc.launch.submit import code
from hpc_ewc.node.environment import worker_environment
from hpc_ewc.node.probe_task import ProbeTask
from hpc_ewc.node.slurm_command import SchedulerError, call
from hpc_ewc.rundir import RunDir

JOB_TIMEOUT_S = 600.0
"""For the job to start and end; then it is cancelled."""
POLL_S = 3.0
FILE_DELAY_S = 40.0
"""A network file system may show new files half a minute late."""
MAX_SKEW_S = 5.0
SLOW_GB_S = 1.0
"""An all-reduce between GPUs slower than this uses plain Ethernet."""


def single_job_script(root: RunDir, stage: str, token: str, resources: JobResources, profile: Profile) -> Script:
    """The batch script of one job with a stage's resources."""
    where, package = {"stage": stage, "run": "", "token": token}, code.PACKAGE.parent
    return build_script(
        root=root, **where, resources=resources, profile=profile, code=package, array=None, dependency=""
    )


def describe_resources(resources: JobResources) -> str:
    """`2 nodes, 4 GPUs and 16 cores each, 60 min`."""

    def count(n: int, what: str) -> str:
        return f"{n} {what}{'' if n == 1 else 's'}"

    gpus = f"{count(resources.gpus_per_node, 'GPU')} and " if resources.gpus_per_node else ""
    memory = f", {resources.mem_gb} GB" if resources.mem_gb else ""
    each = f"{gpus}{count(resources.cpus_per_task, 'core')}{memory}{' each' if resources.nodes > 1 else ''}"
    return f"{count(resources.nodes, 'node')}, {each}, {resources.time_min} min"


# ---------------------------------------------------------------------------------------------- one job


@contextmanager
def temporary_run(runs: Path) -> Iterator[RunDir | None]:
    """A run folder beside the real ones, removed afterwards; None if it cannot be written."""
    existed = runs.is_dir()
    if write_error(runs):
        yield None
        return
    runs.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="doctor-", dir=runs, ignore_cleanup_errors=True) as folder:
            check_paths(RunDir(Path(folder)))
            yield RunDir(Path(folder))
    finally:
        if not existed:
            with suppress(OSError):  # another process has put a run there
                runs.rmdir()


def check_nodes(root: RunDir, profile: Profile, stage: str, resources: JobResources) -> Iterator[Finding]:
    """Submit one small job, wait for it, and check what its nodes report."""
    out, nonce = root.root / "found", root.root / "nonce"
    nonce.write_text(secrets.token_hex(8), encoding="utf-8")
    try:
        job_id = submit_probe(root, stage, resources, profile, out, nonce)
    except SchedulerError as error:
        yield fail("nodes", str(error), "see the requests above")
        return
    try:
        trouble, queued_s = wait_for_job(job_id)
    finally:
        cancel_job(job_id)
    nodes = read_reports(out, 0 if trouble else resources.nodes)
    if len(nodes) < resources.nodes and not trouble:
        text = f"job {job_id} ended well, but this machine does not see its files in {out}"
        yield fail("shared folder", text, "set `runs` to a folder that nodes and this machine share")
        return
    if len(nodes) < resources.nodes:
        text = f"job {job_id}, {describe_resources(resources)}: {trouble}{log_excerpt(root, job_id)}"
        yield fail("nodes", text, "fix what its log says, or try again")
        return
    yield ok("nodes", f"job {job_id} ran on {', '.join(str(node['host']) for node in nodes)} after {queued_s:.0f} s")
    yield check_shared(nodes, root, nonce.read_text(encoding="utf-8"))
    yield from check_python(nodes, sys.executable)
    if resources.gpus_per_node:
        yield check_gpus(nodes, resources.gpus_per_node, profile.env)
    yield check_clocks(nodes, root)
    if resources.nodes * resources.nproc_per_node > 1:
        yield check_all_reduce(out, resources, f"{trouble}{log_excerpt(root, job_id)}")


def submit_probe(root: RunDir, stage: str, resources: JobResources, profile: Profile, out: Path, nonce: Path) -> str:
    """Submit the job; returns its id."""
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
    script = single_job_script(root, stage, "probe", resources, profile)
    script = dataclasses.replace(script, parameters={**script.parameters, "comment": "hpc-ewc doctor"})
    script.write(task)
    try:
        with clean_environment():
            answer = call(["sbatch", "--parsable", str(script.folder / "submission.sh")], 60.0)
    except KeyboardInterrupt:  # Slurm may have accepted the job before it returned the id; the name is unique
        with suppress(SchedulerError):
            call(["scancel", f"--name={script.parameters['job_name']}"])
        raise
    return answer.strip().partition(";")[0]


def wait_for_job(job_id: str) -> tuple[str, float]:
    """Wait until a job ends; returns its error ("" if it succeeded) and the seconds it was queued."""
    started = time.monotonic()
    queued_s, last = 0.0, "it runs"
    while time.monotonic() - started < JOB_TIMEOUT_S:
        time.sleep(POLL_S)
        try:
            job = next(iter(client.look_up([job_id]).get(job_id, [])), None)
        except SchedulerError as error:
            last = str(error)
            continue
        if job is not None and job.waits:
            queued_s, last = time.monotonic() - started, f"still {job.state}: {job.reason}"
        elif job is not None and job.ended:
            return ("" if job.state == "COMPLETED" else f"{job.state} {job.exit_code} on {job.nodes}"), queued_s
    return f"did not end within {JOB_TIMEOUT_S / 60:.0f} min, cancelled ({last})", queued_s


def cancel_job(job_id: str) -> None:
    """Cancel the job if it has not ended, also after Ctrl-C."""
    try:
        client.cancel([job_id])
    except SchedulerError as error:
        sys.stderr.write(f"job {job_id} may still be queued or running: {error}\n")


def read_reports(out: Path, wanted: int) -> list[dict[str, Any]]:
    """The files that the nodes wrote; waits for `wanted` of them."""
    deadline = time.monotonic() + FILE_DELAY_S
    while len(list(out.glob("node-*.json"))) < wanted and time.monotonic() < deadline:
        time.sleep(1.0)
    found = []
    for path in sorted(out.glob("node-*.json")):
        with suppress(FileNotFoundError, ArtefactError):
            found.append(records.read_json(path))
    return found


def log_excerpt(root: RunDir, job_id: str) -> str:
    """The last lines that batch script, launcher and workers printed, those with an error first choice."""
    files = [*root.job("probe").glob("*_batch.out"), *root.job(job_id).glob("*_log.err")]
    files += root.job(job_id).rglob("stderr.log")
    lines = [line for path in sorted(files) for line in last_lines(path, 20).splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"error|denied|not found|cannot|no such", line, re.IGNORECASE)]
    return f"; its log: {' / '.join((errors or lines)[-3:])}" if lines else ""


# ---------------------------------------------------------------------------------------------- node reports


def check_shared(nodes: list[dict[str, Any]], root: RunDir, nonce: str) -> Finding:
    """Check that all nodes see the same folder as this machine."""
    others = [str(node["host"]) for node in nodes if node.get("nonce") != nonce]
    runs = root.root.parent
    if others:
        text = f"{runs} is a different folder on {', '.join(others)}"
        return fail("shared folder", text, "set `runs` to a shared folder")
    return ok("shared folder", f"{runs} is the same on every node")


def check_clocks(nodes: list[dict[str, Any]], root: RunDir) -> Finding:
    """Check the nodes' clocks against this machine's, each compared with the file server's."""
    mark = root.root / "clock"
    mark.touch()
    offset = time.time() - mark.stat().st_mtime
    skews = {str(node["host"]): float(node["clock"]) - float(node["file_clock"]) - offset for node in nodes}
    host, skew = max(skews.items(), key=lambda entry: abs(entry[1]))
    text = f"{skew:+.1f} s on {host} relative to this machine"
    if abs(skew) > MAX_SKEW_S:
        return warn("clocks", text, "report it to the site: times in logs will not match")
    return ok("clocks", text)


def check_all_reduce(out: Path, resources: JobResources, error: str) -> Finding:
    """Check the sum over all ranks and its speed."""
    try:
        facts = records.read_json(out / "all-reduce.json")
    except (FileNotFoundError, ArtefactError):
        ranks = resources.nodes * resources.nproc_per_node
        fix = "set env.NCCL_SOCKET_IFNAME (GLOO_SOCKET_IFNAME) to the nodes' network, and check slurm.host_suffix"
        return fail("all-reduce", f"{ranks} ranks on {resources.nodes} nodes did not connect: {error}", fix)
    ranks = facts["world_size"]
    text = f"{facts['bus_gb_s']:.2f} GB/s over {facts['backend']}, {ranks} ranks on {', '.join(facts['hosts'])}"
    if not facts["correct"]:
        return fail("all-reduce", f"{text}: the sum is wrong", "report it to the site: a broken network or library")
    if facts["backend"] == "nccl" and resources.nodes > 1 and facts["bus_gb_s"] < SLOW_GB_S:
        return warn("all-reduce", text, "slow: set env.NCCL_SOCKET_IFNAME, and look for NET/ in NCCL_DEBUG=INFO")
    return ok("all-reduce", text)
