"""The helper that spawns ranks: what it gives back, and whose word it raises."""

from __future__ import annotations

import os
import pickle
import time
from multiprocessing import Pipe

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import RankError, _collect, run_ranks


def sum_of_ranks(rank: int, world_size: int, offset: int) -> tuple[int, str | None]:
    total = torch.tensor(rank + offset)
    dist.all_reduce(total)
    return int(total), os.environ.get("RANKS_TEST")


def fail_on_rank_one(rank: int, world_size: int) -> None:
    if rank == 1:
        raise ValueError("rank one objects")
    dist.barrier()


def hang_on_rank_one(rank: int, world_size: int) -> None:
    if rank == 1:
        time.sleep(60)


def die_on_rank_one(rank: int, world_size: int) -> None:
    if rank == 1:
        os._exit(9)
    dist.barrier()


def test_ranks_share_a_group_and_the_tests_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKS_TEST", "seen")
    assert run_ranks(3, sum_of_ranks, 10) == (33, "seen")


def test_the_first_failure_is_raised_with_its_traceback() -> None:
    with pytest.raises(RankError, match=r"rank 1 failed:[\s\S]*fail_on_rank_one[\s\S]*rank one objects"):
        run_ranks(2, fail_on_rank_one)


@pytest.mark.parametrize(
    ("other", "said"),
    [((1.0, False, "the cause"), "rank 1 failed:\nthe cause"), (None, "rank 1 died without a word")],
)
def test_of_failures_that_are_found_together_the_first_is_raised(
    other: tuple[float, bool, str] | None, said: str
) -> None:
    pipes = {}
    for rank, report in enumerate([(2.0, False, "lost rank 1"), other]):
        here, there = Pipe(duplex=False)
        if report is not None:
            there.send_bytes(pickle.dumps(report))
        there.close()
        pipes[here] = rank
    with pytest.raises(RankError) as raised:
        _collect(pipes, time.monotonic() + 60)
    assert str(raised.value) == said
    for pipe in pipes:
        pipe.close()


def test_a_dead_rank_and_a_hanging_rank_are_errors() -> None:
    with pytest.raises(RankError, match="rank 1 died without a word"):
        run_ranks(2, die_on_rank_one)
    with pytest.raises(RankError, match="did not end in time"):
        run_ranks(2, hang_on_rank_one, timeout_s=1.0)
