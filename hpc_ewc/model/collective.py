"""Errors that all ranks raise together, where one alone would leave the others waiting in the next collective."""

from __future__ import annotations

import torch.distributed as dist

from hpc_ewc.errors import StageError


def raise_together(error: BaseException | None) -> None:
    """Raises on every rank if any rank has an error; returns otherwise. Every rank calls it; one object all-gather.

    Raises:
        StageError: with the lowest failing rank's error as message; its own traceback on the rank that has one.
    """
    message = None
    if error is not None:
        message = f"{error}" if isinstance(error, StageError) else f"{type(error).__name__}: {error}"
    messages: list[str | None] = [message]
    if dist.is_initialized() and dist.get_world_size() > 1:
        messages = [None] * dist.get_world_size()
        dist.all_gather_object(messages, message)
    failed = [(rank, text) for rank, text in enumerate(messages) if text is not None]
    if not failed:
        return
    if isinstance(error, StageError):
        raise error
    rank, text = failed[0]
    raise StageError(f"{text} (rank {rank})") from error
