"""Exchanges between all ranks of the default process group; without a group, each function acts as the only rank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist

from hpc_ewc.errors import ArtefactError, HpcEwcError

T = TypeVar("T")


def rank_and_world_size() -> tuple[int, int]:
    """Returns this process's rank and the world size, (0, 1) without a process group. No collective."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gather_objects(value: T) -> list[T]:
    """Returns the `value` of every rank, in order of rank. Every rank calls it; one object all-gather."""
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return [value]
    values: list[T] = [value] * world_size
    dist.all_gather_object(values, value)
    return values


def wait_for_all_ranks() -> None:
    """Returns when every rank has called it: a barrier that needs no device, unlike `dist.barrier` under NCCL."""
    gather_objects(None)


def max_over_ranks(numbers: list[int], device: torch.device) -> list[int]:
    """Returns the largest of each number over all ranks. Every rank calls it; one all-reduce."""
    return _all_reduce(numbers, device, dist.ReduceOp.MAX)


def sum_over_ranks(numbers: list[int], device: torch.device) -> list[int]:
    """Returns the sum of each number over all ranks. Every rank calls it; one all-reduce."""
    return _all_reduce(numbers, device, dist.ReduceOp.SUM)


def _all_reduce(numbers: list[int], device: torch.device, op: dist.ReduceOp.RedOpType) -> list[int]:
    if rank_and_world_size()[1] == 1:
        return numbers
    tensor = torch.tensor(numbers, dtype=torch.int64, device=device)
    dist.all_reduce(tensor, op=op)
    return [int(number) for number in tensor.tolist()]


@contextmanager
def raise_on_every_rank() -> Iterator[None]:
    """Raises on every rank, as an ArtefactError, the error of this package that the lowest failing rank met inside.

    Without it, the ranks that met no error would wait for the others in the next collective. Every rank enters it;
    one object all-gather.
    """
    message: str | None = None
    try:
        yield
    except HpcEwcError as error:
        message = str(error)
    for other in gather_objects(message):
        if other is not None:
            raise ArtefactError(other)
