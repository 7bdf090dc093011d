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


class Stopped(Exception):  # noqa: N818 - not an error
    """The work was interrupted because the stage was asked to stop."""


def available_cores() -> int:
    """Return the number of cores this process may run on: the ones Slurm or taskset bound it to."""
    return len(os.sched_getaffinity(0))


@contextmanager
def start_pool(
    processes: int, stop: Callable[[], bool], begin: Callable[..., None], *arguments: Any
) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of spawned processes, each of which has called `begin(*arguments)`; end them afterwards.

    Raises:
        StageError: one of them was killed.
        Stopped: one of them was killed, and `stop` returns True.
    """
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), begin, arguments) as pool:
        try:
            yield pool
        except BrokenProcessPool:
            time.sleep(POLL_S)  # a TERM sent to all processes of the job may reach this one last
            if stop():
                raise Stopped from None
            raise StageError(
                "a process of the tokens stage was killed, most often for memory; "
                "raise mem_gb or lower cpus_per_task in [resources.tokens]"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def begin_child() -> None:
    """Prepare a new process of a pool: leave signals to the parent, and end when the parent does.

    TERM still ends it: the pool uses TERM to end the other processes after one was killed. If a scheduler sends TERM to
    all processes, the parent finds a broken pool and a request to stop.

    A process of a pool waits for work on a pipe whose other end its siblings keep open, so without this it would
    outlive a parent that was killed, and the job's cgroup would never be empty.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="end with parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
