"""One job of this machine: submitit starts it, deaf to the terminal and without tokens."""

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
"""submitit ends a local job after `timeout_min`; time limits are a cluster's, and a job here has none."""


@dataclass
class LiveJob:
    """One job that runs."""

    token: str
    element: Element
    folder: Path
    handle: Any
    process: Process
    cpus: int
    gpus: tuple[int, ...]
    started: float = field(default_factory=time.monotonic)


def start(task: LocalTask, node: str, python: str, gpus: tuple[int, ...]) -> Any:
    """Submitit's handle of a job that was just started.

    Args:
        task: what it runs, in the folder it names.
        node: id of what it makes, for errors.
        python: interpreter of submitit's own side of it.
        gpus: those that it sees.

    Raises:
        SubmitError: this machine started no process.
    """
    executor = submitit.LocalExecutor(folder=task.folder, python=shlex.quote(python))
    executor.update_parameters(timeout_min=NO_LIMIT_MIN, gpus_per_node=len(gpus), visible_gpus=gpus)
    try:
        with _deaf_to_the_terminal(), _environment(task.environment):
            return executor.submit(task)
    except OSError as error:
        raise SubmitError(f"{node}: this machine did not start the job: {error}") from error


@contextmanager
def _deaf_to_the_terminal() -> Iterator[None]:
    """Jobs started inside inherit that INT and HUP are ignored.

    A terminal sends them to the whole foreground group at once, and submitit's controller would kill its task a second
    later. `submit` alone takes them, and makes stop files of them.
    """
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """LocalExecutor passes on this process's environment: inside, with `values`, and without tokens."""
    before = dict(os.environ)
    for name in SECRETS:
        os.environ.pop(name, None)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
