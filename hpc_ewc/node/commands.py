"""Command lines of workers, inside or outside a container."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from hpc_ewc.artefacts.artefact import REPORT, Element
from hpc_ewc.node.task import JobTask

WORKER = "hpc_ewc.worker"
REPORT_MODULE = "hpc_ewc.report"
STANDALONE = ("--standalone", "--local-addr=127.0.0.1")
"""torchrun on one machine: c10d on a free port, so that jobs that start at once do not meet."""
IGNORE_SIGNALS = (
    "import os,signal,sys;"
    "[signal.signal(n,signal.SIG_IGN) for n in(signal.SIGUSR2,signal.SIGCONT)];"
    "os.execv(sys.executable,[sys.executable,*sys.argv[1:]])"
)
"""Run first in a container: its runtime may have restored the signals that torchrun and its ranks are to ignore."""


def uses_torchrun(stage: str) -> bool:
    return stage in ("fisher", "train")


def worker_arguments(task: JobTask, element: Element) -> tuple[str, ...]:
    """Python's arguments for one worker. Always -m: run by path, `import evaluate` would find our own package."""
    if task.stage == REPORT:
        return ("-m", REPORT_MODULE, task.folder, "--out", task.out)
    return ("-m", WORKER, task.stage, task.folder, *element.arguments)


def torchrun_arguments(
    rendezvous: Sequence[str], nproc_per_node: int, program: Sequence[str], logs: Path | None = None
) -> tuple[str, ...]:
    """Python's arguments for torchrun on one node.

    Args:
        rendezvous: arguments by which the nodes find each other (rendezvous.py).
        nproc_per_node: ranks on this node.
        program: what every rank runs.
        logs: folder for what the ranks print; None: they print to torchrun's own streams.
    """
    redirect = () if logs is None else (f"--log-dir={logs}", "--redirects=3")
    ranks = (f"--nproc-per-node={nproc_per_node}", "--max-restarts=0")
    return ("-m", "torch.distributed.run", *rendezvous, *ranks, *redirect, *program)


def plain_command(task: JobTask, element: Element) -> tuple[str, ...]:
    """The command line of one worker without torchrun, or of the report."""
    return python_command(task, worker_arguments(task, element))


def torchrun_command(task: JobTask, element: Element, rendezvous: Sequence[str], logs: Path) -> tuple[str, ...]:
    """The command line of torchrun on one node; arguments as in `torchrun_arguments`."""
    logs.mkdir(parents=True, exist_ok=True)
    program = worker_arguments(task, element)
    return python_command(task, torchrun_arguments(rendezvous, task.nproc_per_node, program, logs))


def python_command(task: JobTask, arguments: Sequence[str]) -> tuple[str, ...]:
    """Python with these arguments, inside the profile's container if it has one."""
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
    # pyxis is a plugin of srun: a step inside the job, on this node alone, beside the launcher's own step
    mounts = ",".join(folder if ":" in folder else f"{folder}:{folder}" for folder in shown)
    step = ["srun", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={os.environ.get('SLURMD_NODENAME', '')}"]
    step += [f"--cpus-per-task={task.cpus_per_task}", "--export=ALL", *box.args]
    return (*step, f"--container-image={box.image}", f"--container-mounts={mounts}", *python)
