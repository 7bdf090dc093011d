"""One job on this machine, started by submitit without tokens and out of reach of the terminal's signals."""

from __future__ import annotations

import os
import shlex
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import submitit

from hpc_ewc.artefacts.artefact import Element
from hpc_ewc.errors import SubmitError
from hpc_ewc.node.environment import replaced_environment, without_secrets
from hpc_ewc.node.local_attempt import LocalTask
from hpc_ewc.process import Process, signal_handler

NO_LIMIT_MIN = 60 * 24 * 365
"""submitit ends a local job after `timeout_min`; time limits are for clusters, and a job here has none."""


@dataclass
class LiveJob:
    """A running job."""

    token: str
    element: Element
    folder: Path
    handle: Any
    process: Process
    cpus: int
    gpus: tuple[int, ...]
    started: float = field(default_factory=time.monotonic)


def start(task: LocalTask, gpus: tuple[int, ...]) -> Any:
    """Start a job that sees these GPUs, and return submitit's handle of it.

    Raises:
        SubmitError: this machine started no process.
    """
    executor = submitit.LocalExecutor(folder=task.job(task.token), python=shlex.quote(task.python))
    executor.update_parameters(timeout_min=NO_LIMIT_MIN, gpus_per_node=len(gpus), visible_gpus=gpus)
    # A terminal sends INT and HUP to the whole foreground process group at once, and submitit's controller would kill
    # its task a second later; the job inherits that it ignores them. Only `submit` handles them, and writes stop files.
    ignored = signal_handler(signal.SIG_IGN, signal.SIGINT, signal.SIGHUP)
    try:
        # LocalExecutor hands this process's environment to the job
        with ignored, replaced_environment(without_secrets(os.environ) | task.environment):
            return executor.submit(task)
    except OSError as error:
        raise SubmitError(f"{task.name}: this machine did not start the job: {error}") from error
