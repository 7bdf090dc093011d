"""The microbatches of a rank for each optimizer step, read in advance by a thread."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hpc_ewc.data.dataset import TokenDataset
from hpc_ewc.data.order import batch_indices

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
"""Label of a token that is not scored."""


@dataclass(frozen=True)
class StepBatch:
    """The samples that one rank computes in one optimizer step."""

    step: int
    samples: npt.NDArray[np.int64]
    """[global_batch_size]: the indices of this step's samples over all ranks, in order."""
    scored_tokens: int
    """Number of labels over all ranks that are not -100, after the shift: the divisor of the summed loss."""
    microbatches: tuple[dict[str, Tensor], ...]
    """The same number, of the same shapes, on every rank. input_ids, labels [B, T] int64: labels are aligned with their
    tokens; -100 (padding, and the filler rows that give every rank the same number of rows) is not scored.
    position_ids [B, T] if attention must not cross documents."""


@dataclass(eq=False)
class StepLoader:
    """Iterate over the steps of a rank, once. Use it as a context manager, or call `close`, to end its thread."""

    dataset: TokenDataset
    _: KW_ONLY
    seed: int
    """Seed of the sample order."""
    global_batch_size: int
    """Samples of a step over all ranks."""
    local_batch_size: int
    """Largest number of samples in a microbatch; the rest is accumulation."""
    rank: int
    """Data-parallel rank of this process."""
    world_size: int
    start_step: int
    """First step; the current step of a training that resumes."""
    steps: int
    """Number of steps of the training; the last one is `steps - 1`."""
    ahead: int = 3
    """Number of steps that are read in advance."""
    attend_across_documents: bool = True
    """If False, microbatches have `position_ids` that restart at each document."""
    pin_memory: bool = False
    """Put the tensors into page-locked memory, for asynchronous copies to a GPU."""
    waited_s: float = field(default=0.0, init=False)
    """Total seconds that `next` has waited for a step."""

    def __post_init__(self) -> None:
        self._reader = ThreadPoolExecutor(1, "read tokens")

    def __iter__(self) -> Iterator[StepBatch]:
        steps = iter(range(self.start_step, self.steps))
        pending = deque(self._reader.submit(self.read, step) for step in islice(steps, self.ahead))
        try:
            while True:
                pending.extend(self._reader.submit(self.read, step) for step in islice(steps, 1))
                if not pending:
                    return
                begin = time.perf_counter()
                batch = pending.popleft().result()
                self.waited_s += time.perf_counter() - begin
                yield batch
        finally:
            self.close()

    def __enter__(self) -> StepLoader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the thread."""
        self._reader.shutdown(cancel_futures=True)

    def read(self, step: int) -> StepBatch:
        """Return the batch of any step."""
        samples = batch_indices(self.seed, step, self.global_batch_size, len(self.dataset))
        scored = int(np.maximum(self.dataset.lengths(samples) - 1, 0).sum())
        mine = samples[self.rank :: self.world_size]
        # Every rank runs the same number of forwards of the same shapes: under FSDP each is a collective operation.
        rows = -(-len(samples) // self.world_size)
        is_filler = np.arange(rows) >= len(mine)
        mine = np.concatenate([mine, np.repeat(samples[:1], rows - len(mine))])
        count = -(-rows // self.local_batch_size)
        cuts = np.array_split(np.arange(rows), count)
        return StepBatch(step, samples, scored, tuple(self._microbatch(mine[cut], is_filler[cut]) for cut in cuts))

    def _microbatch(self, indices: npt.NDArray[np.int64], is_filler: npt.NDArray[np.bool_]) -> dict[str, Tensor]:
        import torch

        ids, lengths = self.dataset.batch(indices)
        is_unscored = np.arange(ids.shape[1])[None, :] >= np.where(is_filler, 0, lengths)[:, None]
        batch = {"input_ids": ids, "labels": np.where(is_unscored, IGNORED, ids)}
        if not self.attend_across_documents:
            batch["position_ids"] = positions_in_document(ids, self.dataset.bos_id)
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        return {name: tensor.pin_memory() for name, tensor in tensors.items()} if self.pin_memory else tensors


def positions_in_document(ids: npt.NDArray[np.int64], bos_id: int) -> npt.NDArray[np.int64]:
    """Return the distance of each token from the last BOS of its row, or from the start of the row: [B, T] int64."""
    at = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int64), ids.shape)
    begins = np.maximum.accumulate(np.where(ids == bos_id, at, 0), axis=1)
    return at - begins
