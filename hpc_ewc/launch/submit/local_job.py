"""One job on this machine, started by submitit without tokens and out of reach of the terminal's signals."""

from __future__ import annotations

import os
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import submitit

from hpc_ewc.artefacts.artefact import Element
from hpc_ewc.errors import SubmitError
from hpc_ewc.node.environment import SECRETS
from hpc_ewc.node.local_attempt import LocalTask
from hpc_ewc.process import Process

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
    try:
        with _terminal_signals_ignored(), _job_environment(task.environment):
            return executor.submit(task)
    except OSError as error:
        raise SubmitError(f"{task.name}: this machine did not start the job: {error}") from error


@contextmanager
def _terminal_signals_ignored() -> Iterator[None]:
    """Make jobs started inside ignore INT and HUP.

    A terminal sends them to the whole foreground process group at once, and submitit's controller would kill its task a
    second later. Only `submit` handles them, and writes stop files.
    """
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _job_environment(values: dict[str, str]) -> Iterator[None]:
    """Set `values` and remove tokens inside: LocalExecutor hands this process's environment to the job."""
    before = dict(os.environ)
    for name in SECRETS:
        os.environ.pop(name, None)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
