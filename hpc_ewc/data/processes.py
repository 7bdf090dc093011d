"""The processes that share the work of one job on one machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from hpc_ewc.errors import StageError

POLL_S = 0.2


class Stopped(Exception):  # noqa: N818 - no error: the stage was asked to stop
    """Work was left half-way because the stage was asked to stop."""


def available_cores() -> int:
    """Cores the process may run on: what Slurm or taskset bound it to, not what the machine has."""
    return len(os.sched_getaffinity(0))


@contextmanager
def start_pool(
    processes: int, stop: Callable[[], bool], begin: Callable[..., None], *arguments: Any
) -> Iterator[ProcessPoolExecutor]:
    """A pool of spawned processes, each of which has called `begin(*arguments)`; they are gone afterwards.

    Raises:
        StageError: one of them was killed.
        Stopped: one of them was killed, and `stop` says that this was to be.
    """
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), begin, arguments) as pool:
        try:
            yield pool
        except BrokenProcessPool:
            time.sleep(POLL_S)  # a TERM to all processes of the job may reach this one last
            if stop():
                raise Stopped from None
            raise StageError(
                "a process of the tokens stage was killed, most often for memory; "
                "raise mem_gb or lower cpus_per_task in [resources.tokens]"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def begin_child() -> None:
    """In a new process of a pool: leave signals to the parent, and end when it does.

    TERM still ends it: that is how a pool that lost one process gets rid of the others. Where a scheduler sends TERM
    to all of them, the parent finds a broken pool and a wish to stop.

    A pool's process waits for work on a pipe whose other end its siblings hold open, so it would outlive a parent that
    was killed, and a job's cgroup would never be empty.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="end with parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
