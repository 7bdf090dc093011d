"""The environment of a node's workers, and the node's own disk."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hpc_ewc.errors import StageError
from hpc_ewc.node.task import SlurmContext, SlurmTask

SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN", "WANDB_API_KEY")
"""Variables that no job gets: jobs work offline, and a log shows an environment sooner or later."""
CACHES = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor", "TMPDIR": "tmp"}
"""What is put on a node's own disk: files that are locked, and that many elements would write at once."""


@contextmanager
def node_folder(scratch: str, name: str) -> Iterator[Path | None]:
    """A folder of this attempt under the profile's `scratch`, removed at the end; None where there is no such key.

    Raises:
        StageError: the folder cannot be made on this node.
    """
    if not scratch:
        yield None
        return
    base = Path(os.path.expandvars(scratch)).expanduser()
    place = base / f"hpc_ewc-{os.getuid()}-{name}"
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StageError(
            f"slurm.scratch = {scratch!r} is {base} on {socket.gethostname()}: {error}; name a folder that every node "
            "has, or take it out"
        ) from None
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def node_environment(task: SlurmTask, here: SlurmContext, stop_file: Path, scratch: Path | None) -> dict[str, str]:
    """Of the workers: this process's, which sbatch was given as a list, and what the task adds.

    Args:
        task: of the job.
        here: this node.
        stop_file: of this attempt.
        scratch: what `node_folder` gave.
    """
    named = {"HPC_EWC_JOB_ID": here.job_id, "HPC_EWC_STOP_FILE": str(stop_file)}
    inherited = {name: value for name, value in os.environ.items() if name not in SECRETS}
    environment = inherited | named | task.environment
    return environment if scratch is None else environment | node_caches(scratch, task.stage, environment)


def node_caches(place: Path, stage: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Environment that puts a worker's caches into `place`."""
    found = {}
    for name, folder in CACHES.items():
        (place / folder).mkdir(exist_ok=True)
        found[name] = str(place / folder)
    if stage == "evaluate":
        found["HF_DATASETS_CACHE"] = str(mirror_datasets(environment, place / "datasets"))
    return found


def mirror_datasets(environment: Mapping[str, str], target: Path) -> Path:
    """A folder of links to the prepared data sets: their locks and what is derived from them stay on this node."""
    home = Path(environment.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    source = Path(environment.get("HF_DATASETS_CACHE") or home / "datasets").expanduser()
    if source.is_dir() and not target.exists():
        leave_out = shutil.ignore_patterns("*.lock", "*.incomplete*", "cache-*.arrow")
        shutil.copytree(source, target, ignore=leave_out, copy_function=os.symlink, symlinks=True)
    target.mkdir(parents=True, exist_ok=True)
    return target
