"""The command lines of a node's workers, inside or outside of a container."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from hpc_ewc.artefacts.artefact import REPORT, Element
from hpc_ewc.node.task import SlurmTask
from hpc_ewc.node.torchrun import REPORT_MODULE, WORKER

IGNORE_SIGNALS = (
    "import os,signal,sys;"
    "[signal.signal(n,signal.SIG_IGN) for n in(signal.SIGUSR2,signal.SIGCONT)];"
    "os.execv(sys.executable,[sys.executable,*sys.argv[1:]])"
)
"""In a container: the runtime's own program may have set the signals back that torchrun and its ranks are to ignore."""


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
    python = (box.python, "-c", IGNORE_SIGNALS, *arguments)
    if box.runtime in ("apptainer", "singularity"):
        gpu = ("--nv",) if task.gpus_per_node and not box.args else ()
        binds = [part for folder in shown for part in ("--bind", folder)]
        return (box.runtime, "exec", *gpu, *box.args, *binds, box.image, *python)
    # pyxis is a plugin of srun: a step inside the job, on this node alone, beside the launcher's own
    mounts = ",".join(folder if ":" in folder else f"{folder}:{folder}" for folder in shown)
    step = ["srun", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={os.environ.get('SLURMD_NODENAME', '')}"]
    step += [f"--cpus-per-task={task.cpus_per_task}", "--export=ALL", *box.args]
    return (*step, f"--container-image={box.image}", f"--container-mounts={mounts}", *python)
