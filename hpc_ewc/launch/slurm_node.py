"""What a node of a job starts, and where: command lines in or out of a container, environment, the node's own disk."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from hpc_ewc.errors import StageError
from hpc_ewc.launch.graph import REPORT, Element
from hpc_ewc.launch.profile import SECRETS
from hpc_ewc.launch.slurm_task import Here, SlurmTask
from hpc_ewc.launch.torchrun import REPORT_MODULE, WORKER

CACHES = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor", "TMPDIR": "tmp"}
"""What is put on a node's own disk: files that are locked, and that many elements would write at once."""
DEAF = (
    "import os,signal,sys;"
    "[signal.signal(n,signal.SIG_IGN) for n in(signal.SIGUSR2,signal.SIGCONT)];"
    "os.execv(sys.executable,[sys.executable,*sys.argv[1:]])"
)
"""In a container: the runtime's own program may have set the signals back that torchrun and its ranks are to ignore."""


# ---------------------------------------------------------------------------------------------- command lines


def plain_command(task: SlurmTask, element: Element) -> tuple[str, ...]:
    """The command line of one worker, or of the report."""
    if task.stage == REPORT:
        return in_container(task, ("-m", REPORT_MODULE, task.folder, "--out", task.out))
    return in_container(task, ("-m", WORKER, task.stage, task.folder, *element.arguments))


def torchrun_command(task: SlurmTask, element: Element, meeting: Sequence[str], logs: Path) -> tuple[str, ...]:
    """The command line of torchrun on one node.

    Args:
        task: of the job.
        element: its only one.
        meeting: arguments by which the nodes find each other (rendezvous.py).
        logs: folder for what the ranks print.
    """
    logs.mkdir(parents=True, exist_ok=True)
    own = ("-m", "torch.distributed.run", *meeting, f"--nproc-per-node={task.nproc_per_node}", "--max-restarts=0")
    worker = ("-m", WORKER, task.stage, task.folder, *element.arguments)
    return in_container(task, (*own, f"--log-dir={logs}", "--redirects=3", *worker))


def in_container(task: SlurmTask, arguments: tuple[str, ...]) -> tuple[str, ...]:
    """Python with these arguments, inside the image where the profile has one."""
    box = task.container
    if not box.runtime:
        return (task.python, *arguments)
    cache = task.environment.get("HPC_EWC_CACHE")
    shown = [str(Path(task.jobs).parent), *([cache] if cache else []), *box.binds]
    python = (box.python, "-c", DEAF, *arguments)
    if box.runtime in ("apptainer", "singularity"):
        gpu = ("--nv",) if task.gpus_per_node and not box.args else ()
        binds = [part for folder in shown for part in ("--bind", folder)]
        return (box.runtime, "exec", *gpu, *box.args, *binds, box.image, *python)
    # pyxis is a plugin of srun: a step inside the job, on this node alone, beside the launcher's own
    mounts = ",".join(folder if ":" in folder else f"{folder}:{folder}" for folder in shown)
    step = ["srun", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={os.environ.get('SLURMD_NODENAME', '')}"]
    step += [f"--cpus-per-task={task.cpus_per_task}", "--export=ALL", *box.args]
    return (*step, f"--container-image={box.image}", f"--container-mounts={mounts}", *python)


# ---------------------------------------------------------------------------------------------- the node's own disk


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


def node_environment(task: SlurmTask, here: Here, stop_file: Path, scratch: Path | None) -> dict[str, str]:
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
