"""Real gloo ranks for tests: `run_ranks(world_size, fn, *args)`.

Ranks are forked from one server that has imported torch and transformers once, so a rank costs milliseconds and not
the seconds of an import. The server is started by the first test that asks and ends with the test process.
"""

from __future__ import annotations

import ctypes
import faulthandler
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing import connection
from pathlib import Path
from typing import Any

_PRELOAD = [
    "torch",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "transformers.models.gemma2.modeling_gemma2",
    "transformers.models.gemma3.modeling_gemma3",
]
_PR_SET_PDEATHSIG = 1


class RankError(AssertionError):
    """A rank raised or died; the message holds its traceback."""


def run_ranks(world_size: int, fn: Callable[..., Any], *args: Any, timeout_s: float = 200.0) -> Any:
    """What `fn(0, world_size, *args)` returns, run as `world_size` gloo ranks on this machine.

    Args:
        world_size: number of processes; each has one torch thread and the process group of all of them.
        fn: a function at module level of the test file; its arguments and result are pickled.
        args: passed on to every rank.
        timeout_s: after this long the ranks' stacks are printed, and all are killed.

    Raises:
        RankError: with the traceback of the rank that failed first.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    payload = pickle.dumps((fn, args))
    processes, pipes = [], {}
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        store = str(Path(folder) / "store")
        try:
            for rank in range(world_size):
                here, there = context.Pipe(duplex=False)
                process = context.Process(
                    target=_rank_main,
                    args=(rank, world_size, store, payload, dict(os.environ), list(sys.path), timeout_s, there),
                )
                process.start()
                there.close()
                processes.append(process)
                pipes[here] = rank
            return _collect(pipes, time.monotonic() + timeout_s + 2.0)
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                process.join()
                process.close()
            for pipe in pipes:
                pipe.close()


def _collect(pipes: dict[connection.Connection, int], deadline: float) -> Any:
    """Rank 0's result once every rank has reported; raises at the first rank that failed or hung."""
    waiting, result = dict(pipes), None
    while waiting:
        ready = connection.wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise RankError(f"ranks {sorted(waiting.values())} did not end in time; their stacks are on stderr")
        failures = []
        for pipe in ready:
            rank = waiting.pop(pipe)
            try:
                at, ok, value = pickle.loads(pipe.recv_bytes())
            except EOFError:  # a dead rank is a cause: others only lose it
                at, ok, value = 0.0, False, ""
            if not ok:
                failures.append((at, f"rank {rank} failed:\n{value}" if at else f"rank {rank} died without a word"))
            elif rank == 0:
                result = value
        # On a busy machine the word of the rank that failed and of one that lost it are found together.
        if failures:
            raise RankError(min(failures)[1])
    return result


def _rank_main(
    rank: int,
    world_size: int,
    store: str,
    payload: bytes,
    environment: dict[str, str],
    path: list[str],
    timeout_s: float,
    pipe: connection.Connection,
) -> None:
    # The server forked us: if it goes, because the test process was killed, no rank may stay behind.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    faulthandler.dump_traceback_later(timeout_s, exit=False)
    os.environ.clear()  # the server has the environment of the moment it started, not of this test
    os.environ.update(environment)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), GLOO_SOCKET_IFNAME="lo")
    sys.path[:] = path
    try:
        import torch
        import torch.distributed as dist

        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
        fn, args = pickle.loads(payload)
        value = fn(rank, world_size, *args)
        dist.barrier()
        dist.destroy_process_group()
        report = (time.monotonic(), True, value if rank == 0 else None)
    except BaseException:  # a rank says what stopped it, whatever that was; the test process raises it
        report = (time.monotonic(), False, traceback.format_exc())
    pipe.send_bytes(pickle.dumps(report))
    pipe.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # gloo's threads would otherwise be joined, which can hang after a failure
