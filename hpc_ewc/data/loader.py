"""A rank's microbatches for each optimizer step, read ahead by a thread so that the step never waits for them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
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
    """What one rank computes in one optimizer step."""

    step: int
    samples: npt.NDArray[np.int64]
    """[global_batch_size]: of this step over all ranks, in order."""
    scored_tokens: int
    """Labels of this step over all ranks that are not -100, after the shift: what the sum of losses is divided by."""
    microbatches: tuple[dict[str, Tensor], ...]
    """As many, of the same shapes, on every rank. input_ids, labels [B, T] int64 (labels stand under their tokens,
    -100 not scored: padding, and whole rows that only even out the ranks); position_ids [B, T] where attention must
    not cross documents."""


class StepLoader:
    """Iterates over the steps of a rank.

    Args:
        dataset: the samples.
        seed: of the order.
        global_batch_size: samples of a step, over all ranks.
        local_batch_size: at most so many in a microbatch; the rest is accumulation.
        rank: of this process, in data parallelism.
        world_size: ranks.
        start_step: first step, the position of a run that goes on.
        steps: number of the step to end before.
        ahead: steps read before they are asked for; 0 reads in `next`.
        attend_across_documents: False adds `position_ids` that begin anew at each document.
        pin_memory: put the tensors where a GPU can fetch them asynchronously.

    Use it as a context manager, or `close` it: its thread ends there.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        *,
        seed: int,
        global_batch_size: int,
        local_batch_size: int,
        rank: int,
        world_size: int,
        start_step: int,
        steps: int,
        ahead: int = 2,
        attend_across_documents: bool = True,
        pin_memory: bool = False,
    ) -> None:
        self.waited_s = 0.0
        """Seconds that `next` has waited for a step, in all."""
        self._dataset = dataset
        self._seed = seed
        self._global_batch_size = global_batch_size
        self._local_batch_size = local_batch_size
        self._rank, self._world_size = rank, world_size
        self._steps = range(start_step, steps)
        self._attend_across_documents = attend_across_documents
        self._pin_memory = pin_memory
        self._ahead = ahead
        self._ready: queue.Queue[StepBatch | BaseException | None] = queue.Queue(max(1, ahead))
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def __iter__(self) -> Iterator[StepBatch]:
        if self._ahead == 0:
            for step in self._steps:
                begun = time.perf_counter()
                batch = self.read(step)
                self.waited_s += time.perf_counter() - begun
                yield batch
            return
        assert self._thread is None, "a loader is iterated once"
        self._thread = threading.Thread(target=self._read_ahead, name="read tokens", daemon=True)
        self._thread.start()
        try:
            while True:
                begun = time.perf_counter()
                found = self._ready.get()
                self.waited_s += time.perf_counter() - begun
                if found is None:
                    return
                if isinstance(found, BaseException):
                    raise found
                yield found
        finally:
            self.close()

    def __enter__(self) -> StepLoader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        while self._thread is not None and self._thread.is_alive():
            try:
                self._ready.get_nowait()  # it may be waiting for room
            except queue.Empty:
                self._thread.join(0.01)

    def read(self, step: int) -> StepBatch:
        """The batch of any step."""
        samples = batch_indices(self._seed, step, self._global_batch_size, len(self._dataset))
        scored = int(np.maximum(self._dataset.lengths(samples) - 1, 0).sum())
        mine = samples[self._rank :: self._world_size]
        # Every rank runs the same number of forwards of the same shapes: under FSDP each of them is a collective.
        rows = -(-len(samples) // self._world_size)
        is_filler = np.arange(rows) >= len(mine)
        mine = np.concatenate([mine, np.repeat(samples[:1], rows - len(mine))])
        count = -(-rows // self._local_batch_size)
        cuts = np.array_split(np.arange(rows), count)
        return StepBatch(step, samples, scored, tuple(self._microbatch(mine[cut], is_filler[cut]) for cut in cuts))

    def _microbatch(self, indices: npt.NDArray[np.int64], is_filler: npt.NDArray[np.bool_]) -> dict[str, Tensor]:
        import torch

        ids, lengths = self._dataset.batch(indices)
        hidden = np.arange(ids.shape[1])[None, :] >= np.where(is_filler, 0, lengths)[:, None]
        batch = {"input_ids": ids, "labels": np.where(hidden, IGNORED, ids)}
        if not self._attend_across_documents:
            batch["position_ids"] = positions_in_document(ids, self._dataset.bos_id)
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        return {name: tensor.pin_memory() for name, tensor in tensors.items()} if self._pin_memory else tensors

    def _read_ahead(self) -> None:
        last: BaseException | None = None
        try:
            for step in self._steps:
                batch = self.read(step)
                if not self._offer(batch):
                    return
        except BaseException as error:  # raised again where the step is asked for
            last = error
        self._offer(last)

    def _offer(self, item: StepBatch | BaseException | None) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False


def positions_in_document(ids: npt.NDArray[np.int64], bos_id: int) -> npt.NDArray[np.int64]:
    """[B, T] int64: how far each token stands behind the last BOS of its row, or behind the row's begin."""
    at = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int64), ids.shape)
    begins = np.maximum.accumulate(np.where(ids == bos_id, at, 0), axis=1)
    return at - begins
