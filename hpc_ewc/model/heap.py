"""The C heap of a process that computes on CPUs."""

from __future__ import annotations

import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""malloc.h's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD; glibc reads the variables below in their place."""
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
LARGEST = 2**31 - 1
"""mallopt takes an int."""


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed, for the next tensor of that size; False where that is not done.

    Otherwise every tensor above 32 MiB is mapped anew, and the kernel clears its pages fault by fault, at every step:
    benchmarks/page_faults.py has what that costs under a vocabulary of 262,144. In return the process holds, until it
    ends, what it held at its peak and a quarter more. Right where steps are alike; evaluation, whose batches are not,
    held half as much again. Not done under another C library, nor where the environment sets glibc's heap. GPUs have an
    allocator of their own.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in VARIABLES):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(option, LARGEST) == 1 for option in (MMAP_THRESHOLD, TRIM_THRESHOLD))
