"""Freed memory is kept for the next tensor on CPUs, unless the environment says how the heap is to be."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

FAULTS_OF_THE_NEXT_TENSOR = """
import resource, torch
from hpc_ewc.model.heap import keep_freed_memory
kept = keep_freed_memory()
torch.ones(32 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(32 << 20)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the heap of glibc")
@pytest.mark.parametrize("environment", [{}, {"MALLOC_MMAP_THRESHOLD_": "65536"}])
def test_the_second_tensor_of_a_size_takes_the_pages_of_the_first(environment: dict[str, str]) -> None:
    command = [sys.executable, "-c", FAULTS_OF_THE_NEXT_TENSOR]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | environment
    found = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout.split()
    pages = 4 * (32 << 20) // os.sysconf("SC_PAGESIZE")
    kept, faults = found[0] == "True", int(found[1])
    assert kept is (not environment)
    assert (faults < pages / 10) is kept  # a huge page would be one fault for 512; torch does not ask for them
