"""What `hpc-ewc doctor` looks at on this machine: Python of the jobs, cores, memory, GPUs; folders; what is fetched."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_ewc import hub, rundir, suites
from hpc_ewc.config import Experiment
from hpc_ewc.errors import HpcEwcError
from hpc_ewc.launch.doctor.findings import Finding, look, not_tried, ok, wrong
from hpc_ewc.launch.profile.keys import Profile
from hpc_ewc.launch.profile.resources import job_resources
from hpc_ewc.launch.submit.code import PACKAGE
from hpc_ewc.sweep import expand

STAGES = ("tokens", "fisher", "train", "evaluate")
LOOK_S = 180.0
"""A first import of torch from a cold shared file system takes minutes."""
LITTLE_BYTES, TIGHT_BYTES = 1 << 30, 20 << 30
LITTLE_FILES, TIGHT_FILES = 1_000, 50_000


def check_machine(profile: Profile, experiment: Experiment | None, quick: bool) -> Iterator[Finding]:
    """A local profile: the Python of the jobs, and whether this machine has what they ask for."""
    facts, trouble = look_here(profile.interpreter, profile.env)
    if trouble:
        yield wrong("python", trouble, "name another in `python` of the profile, or mend the installation")
        return
    yield from check_python([facts], None if quick else sys.executable)
    cpus, gpus = int(facts["cpus"]), len(facts["gpus"])
    text = f"{cpus} here, {profile.cpus} for jobs"
    yield ok("cores", text) if profile.cpus <= cpus else look("cores", text, f"lower local.cpus to {cpus}")
    yield check_memory(profile, experiment, float(facts["memory_gb"]))
    if profile.local.gpus:
        yield check_gpus([facts], profile.local.gpus, profile.env)
    elif gpus:
        yield look("GPUs", f"{gpus} here, none for jobs", f"set local.gpus = {gpus} to use them")


def look_here(python: str, environment: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """What a Python of this machine has (worker/probe.py), and what went wrong."""
    with tempfile.TemporaryDirectory() as name:
        own = os.environ | {"PYTHONPATH": str(PACKAGE.parent), "PYTHONSAFEPATH": "1", **environment}
        command = [python, "-m", "hpc_ewc.worker.probe", "look", "--out", name]
        try:
            done = subprocess.run(command, env=own, cwd=name, capture_output=True, text=True, timeout=LOOK_S)
        except OSError as error:
            return {}, f"{python}: {error.strerror}"
        except subprocess.TimeoutExpired:
            return {}, f"{python}: imported torch for more than {LOOK_S:g} s"
        files = list(Path(name).glob("look-*.json"))
        if not files:
            last = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
            return {}, f"{python}: {last[-1]}"
        return json.loads(files[0].read_text(encoding="utf-8")), ""


# ---------------------------------------------------------------------------------------------- findings of a look


def check_python(nodes: Sequence[Mapping[str, Any]], login: str | None) -> Iterator[Finding]:
    """Python, package and torch as seen on each node; `login` is this Python, None where it is no matter."""
    first = nodes[0]
    yield ok("python", f"{first['python']}, {first['interpreter']}; hpc_ewc {first['package']}")
    mine = ".".join(map(str, sys.version_info[:2]))
    theirs = str(first["python"]).rpartition(".")[0]
    if login is not None and theirs != mine:
        yield look("python", f"jobs have {theirs}, this command {mine}", "use the same: jobs are sent over as pickles")
    for node in nodes:
        if node["missing"]:
            names = " ".join(node["missing"])
            yield wrong(
                "packages", f"{names}: not there on {node['host']}", f"{first['interpreter']} -m pip install {names}"
            )
    without = [node for node in nodes if node["torch"] is None]
    if without:
        yield wrong("torch", f"{without[0]['host']}: {without[0]['torch_error']}", "install torch as your site advises")
    else:
        runtime = f", runtime {first['runtime']}" if first.get("runtime") else ", for CPUs"
        yield ok("torch", f"{first['torch']}{runtime}")


def check_gpus(nodes: Sequence[Mapping[str, Any]], wanted: int, environment: Mapping[str, str]) -> Finding:
    """Each node has as many as a job asks for, and torch can compute on them."""
    if environment.get("CUDA_VISIBLE_DEVICES") == "":
        return not_tried("GPUs", "env.CUDA_VISIBLE_DEVICES of the profile is empty: jobs use none")
    for node in nodes:
        seen = len(node["gpus"])
        if seen == wanted:
            continue
        error = f": {node['gpu_error']}" if node.get("gpu_error") else ""
        text = f"{node['host']}: torch {node['torch']} sees {seen} of {wanted}{error}"
        if not node.get("runtime"):
            return wrong("GPUs", text, "this torch is built for CPUs: install one for the GPUs of the nodes")
        driver = f" (driver: {node['driver']})" if node.get("driver") else " (no driver was found there)"
        return wrong(
            "GPUs", text + driver, "does torch fit the driver, and is the request (gpus_per_node, gres) granted?"
        )
    names = sorted({str(name) for node in nodes for name in node["gpus"]})
    return ok("GPUs", f"{wanted} × {', '.join(names)} on each node; {nodes[0].get('driver') or 'driver not told'}")


def check_memory(profile: Profile, experiment: Experiment | None, gb: float) -> Finding:
    """No job asks for more than there is."""
    asked = {stage: job_resources(stage, experiment, profile).mem_gb or 0 for stage in STAGES} if experiment else {}
    above = {stage: asked_gb for stage, asked_gb in asked.items() if asked_gb > gb}
    if above:
        stage, most = max(above.items(), key=lambda entry: entry[1])
        return look("memory", f"{gb:.0f} GB here, resources.{stage}.mem_gb = {most}", "a job may be killed for memory")
    return ok("memory", f"{gb:.0f} GB")


# ---------------------------------------------------------------------------------------------- folders


@dataclass(frozen=True)
class Room:
    """What a folder's file system has left for this user; None where it does not say."""

    free_bytes: int | None
    free_files: int | None
    whose: str = ""


def check_folders(runs: Path) -> Iterator[Finding]:
    """Run folders and cache: can be written, and have room."""
    for name, folder in (("runs", runs), ("cache", rundir.cache_dir())):
        trouble = write_trouble(folder)
        if trouble:
            fix = "name another in `runs` of the profile" if name == "runs" else "set HPC_EWC_CACHE to another folder"
            yield wrong(name, f"{folder}: {trouble}", fix)
        else:
            yield check_room(name, folder, room(folder))


def check_room(name: str, folder: Path, left: Room) -> Finding:
    said = [f"{left.free_bytes / 1e9:,.0f} GB" if left.free_bytes is not None else ""]
    said += [f"{left.free_files:,} files" if left.free_files is not None else ""]
    text = f"{folder}: {' and '.join(filter(None, said)) or 'room not told'} free{left.whose}"
    little = _under(left, LITTLE_BYTES, LITTLE_FILES)
    tight = _under(left, TIGHT_BYTES, TIGHT_FILES)
    if little:
        return wrong(name, text, "make room, or name another folder: jobs fail when it is full")
    return look(name, text, "a checkpoint of a 2B model takes 30 GB; see submit --dry-run") if tight else ok(name, text)


def _under(left: Room, size: int, files: int) -> bool:
    return (left.free_bytes is not None and left.free_bytes < size) or (
        left.free_files is not None and left.free_files < files
    )


def write_trouble(folder: Path) -> str:
    """Why nothing can be written there; "" where it can. A folder that is not there yet: the nearest above it."""
    place = nearest(folder)
    probe = place / f".hpc_ewc-{secrets.token_hex(4)}"
    try:
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
    except OSError as error:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
        return f"{place}: {error.strerror or error}"
    return ""


def nearest(folder: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def room(folder: Path) -> Room:
    """What is left: of the user's quota where one can be asked for, and of the file system."""
    place = nearest(folder)
    stat = os.statvfs(place)
    free_bytes: int | None = stat.f_bavail * stat.f_frsize
    free_files = stat.f_favail if stat.f_files else None  # some file systems count none
    limited = quota(place)
    if limited is None:
        return Room(free_bytes, free_files)
    parts = [value for value in (free_bytes, limited.free_bytes) if value is not None]
    counts = [value for value in (free_files, limited.free_files) if value is not None]
    return Room(min(parts, default=None), min(counts, default=None), limited.whose)


def quota(place: Path) -> Room | None:
    """The user's quota there, by `lfs quota` (Lustre) or `quota`; None where neither is here or knows of one."""
    user = str(os.getuid())
    for command in (["lfs", "quota", "-q", "-u", user, str(place)], ["quota", "-w", "-p", "-u", user]):
        if shutil.which(command[0]) is None:
            continue
        with suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, env=os.environ | {"LC_ALL": "C"})
            found = parse_quota(done.stdout, place)
            if found is not None:
                return found
    return None


def parse_quota(text: str, place: Path) -> Room | None:
    """`<file system> kbytes quota limit grace files quota limit grace`, as both commands print it.

    Where several file systems are told, the longest that the place is under; a limit of 0 is none.
    """
    best: tuple[int, Room] | None = None
    for line in re.sub(r"\n\s+(?=\d)", " ", text).splitlines():  # a long name stands on a line of its own
        fields = line.split()
        numbers = [field.rstrip("*") for field in fields[1:]]
        if len(numbers) < 7 or not (numbers[0].isdigit() and numbers[2].isdigit()):
            continue
        if fields[0].startswith("/") and not place.is_relative_to(fields[0]) and not fields[0].startswith("/dev/"):
            continue
        used_kb, limit_kb, files, files_limit = (_limit(numbers, i) for i in (0, 2, 4, 6))
        left = Room(
            max(0, limit_kb - used_kb) * 1024 if limit_kb else None,
            max(0, files_limit - files) if files_limit else None,
            " of your quota",
        )
        if (left.free_bytes is not None or left.free_files is not None) and (best is None or len(fields[0]) > best[0]):
            best = (len(fields[0]), left)
    return best[1] if best else None


def _limit(numbers: Sequence[str], index: int) -> int:
    return int(numbers[index]) if numbers[index].isdigit() else 0


# ---------------------------------------------------------------------------------------------- inputs


def check_inputs(sweep: Path | None, experiment: Experiment | None) -> Iterator[Finding]:
    """Everything that the experiment names lies on this machine."""
    if sweep is None or experiment is None:
        yield not_tried("inputs", "name an experiment to have its model, texts and benchmarks looked for")
        return
    from hpc_ewc.launch.fetch.prefetch import benchmark_cells
    from hpc_ewc.launch.inputs.resolver import Resolver

    points = [point.experiment for point in expand(experiment)]
    try:
        resolver = Resolver(str(sweep))
        for point in points:
            resolver.resolve(point)
    except HpcEwcError as error:
        yield wrong("inputs", str(error), "" if "prefetch" in str(error) else f"hpc-ewc prefetch {sweep}")
        return
    cells = [cell for cell in benchmark_cells(points) if cell.task in suites.TASKS]
    absent = {suites.TASKS[cell.task].sources[cell.language].path for cell in cells}
    absent = {path for path in absent if hub.pinned(path) is None}
    if absent:
        yield wrong("inputs", f"rows of {', '.join(sorted(absent))}: not here", f"hpc-ewc prefetch {sweep}")
    else:
        yield ok("inputs", f"model, texts and {len(cells)} benchmarks of {sweep} are here")
