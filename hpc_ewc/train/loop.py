"""One optimizer step: gradients of the global mean loss, EWC's, clipping, AdamW.

    L(θ) = (1/N) Σ_tokens −log p_θ(token) + λ/2 Σ_i F_i (θ_i − θ*_i)²          Kirkpatrick et al. 2017, eq. 3

N counts the scored tokens of the whole step over all ranks, so a token weighs the same wherever it stands. FSDP2
averages gradients over ranks: each backward is of loss_sum · world_size / N.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from hpc_ewc.config import EwcConfig, TrainConfig
from hpc_ewc.errors import InputError, StageError
from hpc_ewc.train import collective
from hpc_ewc.train.anchor import Elastic, Free
from hpc_ewc.train.batches import Microbatch
from hpc_ewc.train.optimizer import set_learning_rate


class NonFiniteLossError(StageError):
    """The loss or its gradient became infinite or NaN; the optimizer was not touched. `samples` names the culprits."""

    def __init__(self, message: str, samples: Sequence[int]) -> None:
        super().__init__(message)
        self.samples = list(samples)


@dataclass
class Trainer:
    """What a step needs; the same objects from the first step to the last.

    `parameters` are the sharded ones, taken before the first forward: after it, the root's `parameters()` are
    unsharded plain tensors.
    """

    model: Any
    parameters: Mapping[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    hold: Free | Elastic
    ewc: EwcConfig
    config: TrainConfig
    device: torch.device

    def step(self, step: int, microbatches: Sequence[Microbatch], learning_rate: float) -> dict[str, float]:
        """Make optimizer step `step` (from 1). Every rank calls it, with equally many microbatches.

        Returns:
            loss (mean over the step's scored tokens, nats), tokens (of the step, scored), grad_norm (before clipping).

        Raises:
            NonFiniteLossError: before the optimizer was touched.
        """
        self.optimizer.zero_grad(set_to_none=True)
        (scored,) = collective.total([sum(batch.scored() for batch in microbatches)])
        if scored == 0:
            raise InputError(f"step {step}: its samples have no token to learn; the corpus holds empty sequences")
        loss = self._gradients(step, microbatches, scored)
        grad_norm = self._apply_penalty_and_clip()
        if not math.isfinite(grad_norm):
            samples = _all_samples(microbatches)
            raise NonFiniteLossError(
                f"step {step}: the loss is {loss:.6g} and its gradient is not finite; stopped before the optimizer, "
                f"the last checkpoint is good. Samples of this step: {_listed(samples)}",
                samples,
            )
        set_learning_rate(self.optimizer, learning_rate)
        self.optimizer.step()
        if self.ewc.mode == "proximal":
            self.hold.proximal_step_(self.optimizer)
        return {"loss": loss, "tokens": scored, "grad_norm": grad_norm}

    def _gradients(self, step: int, microbatches: Sequence[Microbatch], scored: float) -> float:
        """Back-propagate the step's mean loss and return it."""
        world_size = dist.get_world_size()
        losses = []
        for batch in microbatches:
            ids = batch.input_ids.to(self.device, non_blocking=True)
            labels = batch.labels.to(self.device, non_blocking=True)
            loss = self.model(input_ids=ids, loss_labels=labels)
            (loss * (world_size / scored)).backward()
            losses.append(loss.detach())
        sums = torch.stack(losses).double().cpu()
        (total,) = collective.total([float(sums.sum())])
        if not math.isfinite(total):
            self._stop_at_bad_samples(step, microbatches, total)
        return total / scored

    def _apply_penalty_and_clip(self) -> float:
        """EWC's gradient before or after clipping; the norm before clipping."""
        explicit = self.ewc.mode == "gradient"
        if explicit and self.ewc.clip == "total":
            self.hold.add_gradient_()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm)
        if explicit and self.ewc.clip == "task":
            self.hold.add_gradient_()
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    @torch.no_grad()
    def _stop_at_bad_samples(self, step: int, microbatches: Sequence[Microbatch], total: float) -> None:
        """Run each sample alone to find those whose loss is not finite, and raise. Every rank calls it."""
        bad: list[int] = []
        rows = max(int(n) for n in _gather([max(len(batch.input_ids) for batch in microbatches)]))
        for batch in microbatches:
            for row in range(rows):  # every forward is a collective: equally many on every rank
                at = min(row, len(batch.input_ids) - 1)
                ids, labels = batch.input_ids[at : at + 1], batch.labels[at : at + 1]
                loss = self.model(input_ids=ids.to(self.device), loss_labels=labels.to(self.device))
                if not math.isfinite(float(loss)) and row < len(batch.samples):
                    bad.append(batch.samples[row])
        bad = sorted(_gather(bad))
        named = bad or _all_samples(microbatches)
        which = "whose loss alone is not finite" if bad else "of the step (each alone is finite)"
        raise NonFiniteLossError(
            f"step {step}: the loss is {total}; stopped before the optimizer, the last checkpoint is good. "
            f"Samples {which}: {_listed(named)}",
            named,
        )


def _all_samples(microbatches: Sequence[Microbatch]) -> list[int]:
    return sorted(_gather([sample for batch in microbatches for sample in batch.samples]))


def _gather(values: list[int]) -> list[int]:
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, values)
    return [value for part in parts for value in part]


def _listed(samples: Sequence[int]) -> str:
    return ", ".join(map(str, samples[:16])) + (", …" if len(samples) > 16 else "")
