"""Checks of `hpc-ewc doctor` that need no scheduler: the jobs' Python, cores, memory, GPUs and inputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpc_ewc import hub, suites
from hpc_ewc.config import Experiment
from hpc_ewc.errors import HpcEwcError
from hpc_ewc.launch.doctor.findings import Finding, fail, ok, skipped, warn
from hpc_ewc.launch.profile.keys import Profile
from hpc_ewc.launch.profile.resources import job_resources
from hpc_ewc.launch.submit.code import PACKAGE
from hpc_ewc.sweep import expand

JOB_STAGES = ("tokens", "fisher", "train", "evaluate")
PROBE_TIMEOUT_S = 180.0
"""The first import of torch from a shared file system takes minutes."""


def check_machine(profile: Profile, experiment: Experiment | None, *, quick: bool) -> Iterator[Finding]:
    """Check the Python of a local profile, and whether this machine has the resources of its jobs."""
    facts, error = probe_machine(profile.interpreter, profile.env)
    if error:
        yield fail("python", error, "set `python` of the profile to another, or repair the installation")
        return
    yield from check_python([facts], None if quick else sys.executable)
    cpus, gpus = int(facts["cpus"]), len(facts["gpus"])
    text = f"{cpus} available, jobs may use {profile.cpus}"
    yield ok("cores", text) if profile.cpus <= cpus else warn("cores", text, f"lower local.cpus to {cpus}")
    yield check_memory(profile, experiment, float(facts["memory_gb"]))
    if profile.local.gpus:
        yield check_gpus([facts], profile.local.gpus, profile.env)
    elif gpus:
        yield warn("GPUs", f"{gpus} available, jobs use none", f"set local.gpus = {gpus} to use them")


def probe_machine(python: str, environment: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """The facts that worker/probe.py finds when run by a Python of this machine, and an error or ""."""
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"PYTHONPATH": str(PACKAGE.parent), "PYTHONSAFEPATH": "1", **environment}
        command = [python, "-m", "hpc_ewc.worker.probe", "node", "--out", folder]
        try:
            done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S)
        except OSError as error:
            return {}, f"{python}: {error.strerror}"
        except subprocess.TimeoutExpired:
            return {}, f"{python}: importing torch took more than {PROBE_TIMEOUT_S:g} s"
        files = list(Path(folder).glob("node-*.json"))
        if not files:
            last = [line for line in done.stderr.splitlines() if line.strip()] or ["it printed nothing"]
            return {}, f"{python}: {last[-1]}"
        return json.loads(files[0].read_text(encoding="utf-8")), ""


# ---------------------------------------------------------------------------------------------- facts of nodes


def check_python(nodes: Sequence[Mapping[str, Any]], login: str | None) -> Iterator[Finding]:
    """Check Python, packages and torch of each node.

    Args:
        nodes: facts of worker/probe.py.
        login: this Python, whose version must be the jobs'; None: it may differ.
    """
    first = nodes[0]
    yield ok("python", f"{first['python']}, {first['interpreter']}; hpc_ewc {first['package']}")
    ours = ".".join(map(str, sys.version_info[:2]))
    theirs = str(first["python"]).rpartition(".")[0]
    if login is not None and theirs != ours:
        yield warn("python", f"jobs use {theirs}, this command {ours}", "use one version: tasks are pickled")
    for node in nodes:
        if node["missing"]:
            names = " ".join(node["missing"])
            fix = f"{first['interpreter']} -m pip install {names}"
            yield fail("packages", f"{names}: not installed on {node['host']}", fix)
    without = [node for node in nodes if node["torch"] is None]
    if without:
        yield fail("torch", f"{without[0]['host']}: {without[0]['torch_error']}", "install torch as your site advises")
    else:
        yield ok("torch", f"{first['torch']}" + (f", runtime {first['runtime']}" if first.get("runtime") else ", CPU"))


def check_gpus(nodes: Sequence[Mapping[str, Any]], wanted: int, environment: Mapping[str, str]) -> Finding:
    """Check that torch can compute on the GPUs that a job requests, on each node."""
    if environment.get("CUDA_VISIBLE_DEVICES") == "":
        return skipped("GPUs", "env.CUDA_VISIBLE_DEVICES of the profile is empty: jobs use none")
    for node in nodes:
        if len(node["gpus"]) == wanted:
            continue
        error = f": {node['gpu_error']}" if node.get("gpu_error") else ""
        text = f"{node['host']}: torch {node['torch']} sees {len(node['gpus'])} of {wanted}{error}"
        if not node.get("runtime"):
            return fail("GPUs", text, "this torch is built for CPUs: install one for the nodes' GPUs")
        text += f" (driver: {node['driver']})" if node.get("driver") else " (no driver found)"
        return fail("GPUs", text, "check that torch fits the driver, and the request (gpus_per_node, gres)")
    names = sorted({str(name) for node in nodes for name in node["gpus"]})
    return ok("GPUs", f"{wanted} × {', '.join(names)} on each node; {nodes[0].get('driver') or 'driver unknown'}")


def check_memory(profile: Profile, experiment: Experiment | None, available_gb: float) -> Finding:
    """Check that no job requests more memory than this machine has."""
    requests = [(job_resources(stage, experiment, profile).mem_gb or 0, stage) for stage in JOB_STAGES if experiment]
    most, stage = max(requests, default=(0, ""))
    if most > available_gb:
        text = f"{available_gb:.0f} GB available, resources.{stage}.mem_gb = {most}"
        return warn("memory", text, "jobs may run out of memory")
    return ok("memory", f"{available_gb:.0f} GB")


# ---------------------------------------------------------------------------------------------- inputs


def check_inputs(sweep: Path | None, experiment: Experiment | None) -> Iterator[Finding]:
    """Check that the model, texts and benchmarks of an experiment are on this machine."""
    if sweep is None or experiment is None:
        yield skipped("inputs", "name an experiment to check its model, texts and benchmarks")
        return
    from hpc_ewc.launch.fetch.prefetch import benchmark_cells
    from hpc_ewc.launch.inputs.resolver import Resolver

    points = [point.experiment for point in expand(experiment)]
    try:
        resolver = Resolver(str(sweep))
        for point in points:
            resolver.resolve(point)
    except HpcEwcError as error:
        yield fail("inputs", str(error), "" if "prefetch" in str(error) else f"hpc-ewc prefetch {sweep}")
        return
    cells = [cell for cell in benchmark_cells(points) if cell.task in suites.TASKS]
    paths = {suites.TASKS[cell.task].sources[cell.language].path for cell in cells}
    missing = sorted(path for path in paths if hub.pinned_commit(path) is None)
    if missing:
        yield fail("inputs", f"rows of {', '.join(missing)} are not in the cache", f"hpc-ewc prefetch {sweep}")
    else:
        yield ok("inputs", f"the model, texts and {len(cells)} benchmarks of {sweep} are in the cache")
