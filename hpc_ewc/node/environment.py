"""Environments of workers: what the login node gives them, what a node adds, and caches on the node's own disk."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hpc_ewc import records, rundir
from hpc_ewc.errors import StageError

SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN", "WANDB_API_KEY")
"""Variables that no job gets: jobs work offline, and sooner or later a log shows an environment."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
CACHES = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor", "TMPDIR": "tmp"}
"""Caches that go to a node's own disk: their files are locked, and many elements would write them at once."""


def worker_environment(
    code: Path, profile_env: Mapping[str, str], threads: int, *, one_node: bool = True
) -> dict[str, str]:
    """Variables that `submit` adds to a worker's environment.

    Args:
        code: folder with the copy of the package made at submission.
        profile_env: the profile's `env`, which wins over the rest.
        threads: OMP_NUM_THREADS; ranks times threads never exceed the job's cores.
        one_node: gloo needs no network; otherwise it takes the interface of the host's name, or the profile's.
    """
    path = [str(code), *filter(None, [os.environ.get("PYTHONPATH")])]
    code_json = records.read_json(code / "code.json")
    return {
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HPC_EWC_CACHE": str(rundir.cache_dir()),
        # for manifests: `<commit>`, `<commit>+dirty` if the package's files differ from it, "" without git
        "HPC_EWC_COMMIT": f"{code_json['commit'] or ''}{'+dirty' if code_json['dirty'] else ''}",
        **({"GLOO_SOCKET_IFNAME": "lo"} if one_node else {}),
        **OFFLINE,
        **profile_env,
    }


def node_environment(added: Mapping[str, str], job_id: str, stop_file: Path) -> dict[str, str]:
    """The environment of an attempt's workers: this process's without tokens, then `added`."""
    named = {"HPC_EWC_JOB_ID": job_id, "HPC_EWC_STOP_FILE": str(stop_file)}
    return without_secrets(os.environ) | named | dict(added)


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in SECRETS}


@contextmanager
def replaced_environment(environment: Mapping[str, str]) -> Iterator[None]:
    """Give this process another environment inside."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def node_folder(scratch: str, name: str) -> Iterator[Path | None]:
    """Make a folder for this attempt under the profile's `scratch`, and remove it at the end; None without scratch.

    Raises:
        StageError: the folder cannot be made on this node.
    """
    if not scratch:
        yield None
        return
    base = Path(os.path.expandvars(scratch)).expanduser()
    folder = base / f"hpc_ewc-{os.getuid()}-{name}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StageError(
            f"slurm.scratch = {scratch!r} is {base} on {socket.gethostname()}: {error}; name a folder that exists on "
            "every node, or remove the key"
        ) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def node_caches(folder: Path, stage: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that move a worker's caches into `folder`."""
    caches = {}
    for name, subfolder in CACHES.items():
        (folder / subfolder).mkdir(exist_ok=True)
        caches[name] = str(folder / subfolder)
    if stage == "evaluate":
        caches["HF_DATASETS_CACHE"] = str(link_datasets(environment, folder / "datasets"))
    return caches


def link_datasets(environment: Mapping[str, str], target: Path) -> Path:
    """Fill `target` with links to the prepared data sets, so that their locks and derived files stay on this node."""
    home = Path(
        environment.get("HF_HOME") or f"{environment.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    ).expanduser()
    source = Path(environment.get("HF_DATASETS_CACHE") or home / "datasets").expanduser()
    if source.is_dir() and not target.exists():
        leave_out = shutil.ignore_patterns("*.lock", "*.incomplete*", "cache-*.arrow")
        shutil.copytree(source, target, ignore=leave_out, copy_function=os.symlink, symlinks=True)
    target.mkdir(parents=True, exist_ok=True)
    return target
