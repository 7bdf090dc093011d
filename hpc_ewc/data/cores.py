"""How many cores this process may use."""

from __future__ import annotations

import os


def available_cores() -> int:
    """Cores the process may run on: what Slurm or taskset bound it to, not what the machine has."""
    return len(os.sched_getaffinity(0))
