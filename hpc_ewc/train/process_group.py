"""The process group of a job, and what its ranks agree on."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from hpc_ewc.errors import StageError


def join(timeout_s: float) -> torch.device:
    """Join the job's process group, alone where no torchrun started us; the device of this rank.

    gloo for CPU tensors and NCCL for those of GPUs: flags and checkpoints travel beside training on gloo.

    Args:
        timeout_s: of a collective; longer than the watchdog, which says more.
    """
    gpu = torch.cuda.is_available()
    device = torch.device("cpu")
    if gpu:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    timeout = timedelta(seconds=timeout_s)
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(backend, timeout=timeout, store=HashStore(), rank=0, world_size=1)
    return device


LOST_PEER = ("connection closed by peer", "connection reset by peer", "broken pipe", "remote process has exited")
"""What gloo and NCCL say, in part, when the process at the other end is gone."""
PEER_GRACE_S = 3.0
"""How long a rank that lost another waits for that one's failed.json."""


@contextmanager
def report_lost_peer(failed: Path) -> Iterator[None]:
    """Where a collective fails in here since another rank ended, that rank's word comes first.

    Args:
        failed: where the rank that failed says why (failed.json); this one only noticed.

    Raises:
        StageError: another rank ended.
    """
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        if not any(words in str(error).lower() for words in LOST_PEER):
            raise
        until = time.monotonic() + PEER_GRACE_S
        while not failed.exists() and time.monotonic() < until:
            time.sleep(0.05)
        raise StageError(f"another rank of this job ended ({str(error).splitlines()[0][:200]})") from error


def any_rank(flags: Sequence[bool]) -> list[bool]:
    """For each flag, whether a rank has it set (all-reduce MAX). Every rank calls it."""
    tensor = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return [bool(value) for value in tensor.tolist()]
