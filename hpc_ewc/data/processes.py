"""The processes that share the work of one job on one machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def available_cores() -> int:
    """Cores the process may run on: what Slurm or taskset bound it to, not what the machine has."""
    return len(os.sched_getaffinity(0))


def begin_child() -> None:
    """In a new process of a pool: leave signals to the parent, and end when it does.

    A pool's process waits for work on a pipe whose other end its siblings hold open, so it would outlive a parent that
    was killed, and a job's cgroup would never be empty.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="end with parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
