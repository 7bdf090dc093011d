"""The process group of a job, and agreement between its ranks."""

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
from hpc_ewc.stage import Stage
from hpc_ewc.train.watchdog import Watchdog

LOST_PEER = ("connection closed by peer", "connection reset by peer", "broken pipe", "remote process has exited")
"""Parts of the messages of gloo and NCCL when the process at the other end has ended."""
PEER_GRACE_S = 3.0
"""How long a rank that lost another waits for that one's failed.json."""


@contextmanager
def distributed_job(stage: Stage) -> Iterator[tuple[torch.device, Watchdog]]:
    """Joins the job's process group and watches its progress; every rank enters it.

    Yields:
        The device of this rank, and the watchdog, whose `beat` must be called within `train.watchdog_s`.
    """
    timeout_s = stage.config.train.watchdog_s
    watchdog = Watchdog(timeout_s, lambda message: stage.fail(TimeoutError(message)))
    try:
        with report_lost_peer(stage.dir.failed):
            yield join(2 * timeout_s + 60), watchdog
            dist.destroy_process_group()
    finally:
        watchdog.close()


def join(timeout_s: float) -> torch.device:
    """Joins the job's process group, or one of this process alone without torchrun; returns the device of this rank.

    gloo serves CPU tensors and NCCL those of GPUs: flags and checkpoints travel on gloo beside training.

    Args:
        timeout_s: of a collective; longer than the watchdog's, whose message says more.
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


@contextmanager
def report_lost_peer(failed: Path) -> Iterator[None]:
    """Lets the rank that failed first report its error, if a collective inside fails because that rank ended.

    Args:
        failed: failed.json, which the other rank writes.

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
    """Returns, for each flag, whether it is set on any rank. Every rank calls it; one all-reduce."""
    tensor = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return [bool(value) for value in tensor.tolist()]
