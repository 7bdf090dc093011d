"""One optimizer step: gradients of the global mean loss, EWC's, clipping, AdamW.

    L(θ) = (1/N) Σ_tokens −log p_θ(token) + λ/2 Σ_i F_i (θ_i − θ*_i)²          Kirkpatrick et al. 2017, eq. 3

N counts the scored tokens of the whole step over all ranks, so a token weighs the same wherever it stands. FSDP2
averages gradients over ranks: each backward is of loss_sum · world_size / N.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from hpc_ewc.config import EwcConfig, TrainConfig
from hpc_ewc.data.loader import StepBatch
from hpc_ewc.errors import InputError, StageError
from hpc_ewc.ewc import FusedAdamW
from hpc_ewc.model.mesh import SHARD_AXIS
from hpc_ewc.train.optimizer import set_learning_rate
from hpc_ewc.train.regularizer import EwcRegularizer, NoPenalty

NAMED_SAMPLES = 8


class NonFiniteLossError(StageError):
    """The loss or its gradient became infinite or NaN; the optimizer was not touched. `samples` names the culprits."""

    def __init__(self, message: str, samples: Sequence[int]) -> None:
        super().__init__(message)
        self.samples = list(samples)


@dataclass
class Trainer:
    """What a step needs; the same objects from the first step to the last.

    `parameters` are the sharded ones, taken before the first forward: after it, the root's `parameters()` are
    unsharded plain tensors. `describe` says where a sample comes from. `fused_adamw`, where
    there is one, clips, adds the penalty and steps.
    """

    model: Any
    parameters: Mapping[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    regularizer: NoPenalty | EwcRegularizer
    ewc: EwcConfig
    config: TrainConfig
    device: torch.device
    describe: Callable[[int], str] = str
    fused_adamw: FusedAdamW | None = None

    def step(self, batch: StepBatch, learning_rate: float) -> tuple[float, float]:
        """Make one optimizer step. Every rank calls it with its own part of the same step.

        Returns:
            The mean loss over the step's scored tokens, in nats, and the gradient's norm before clipping.

        Raises:
            NonFiniteLossError: before the optimizer was touched.
        """
        self.optimizer.zero_grad(set_to_none=True)
        if batch.scored_tokens == 0:
            raise InputError(f"step {batch.step + 1}: its samples have no token to learn; all are empty documents")
        loss_sum = self._add_gradients(batch)
        norm = self._clip()
        # The one point where the host waits for the device: all of the above is queued by now.
        total, grad_norm = torch.stack([loss_sum, norm.double()]).tolist()
        if not math.isfinite(total):
            self._raise_at_samples(batch, total)
        loss = total / batch.scored_tokens
        if not math.isfinite(grad_norm):
            samples = sorted(int(sample) for sample in batch.samples)
            raise NonFiniteLossError(
                f"step {batch.step + 1}: the loss is {loss:.6g} and its gradient is not finite; stopped before the "
                f"optimizer, the last checkpoint is good. Samples of this step: {self._listed(samples)}",
                samples,
            )
        set_learning_rate(self.optimizer, learning_rate)
        self._update(grad_norm)
        return loss, grad_norm

    def _clip(self) -> torch.Tensor:
        """Ready the gradients for the update; their norm before clipping, on the device."""
        explicit, total = self.ewc.mode == "gradient", self.ewc.clip == "total"
        if self.fused_adamw is not None:
            return self.fused_adamw.norm() if total else global_norm(self.parameters.values())
        if explicit and total:
            self.regularizer.add_gradient_()
        norm = clip_(self.parameters.values(), self.config.max_grad_norm)
        if explicit and not total:
            self.regularizer.add_gradient_()
        return norm

    def _update(self, norm: float) -> None:
        """Move the parameters. Args: norm: of the gradients, as `_clip` gave it."""
        if self.fused_adamw is not None:
            factor = min(1.0, self.config.max_grad_norm / (norm + 1e-6))
            self.fused_adamw.step_(factor, factor if self.ewc.clip == "total" else 1.0)
            return
        self.optimizer.step()
        if self.ewc.mode == "proximal":
            self.regularizer.proximal_step_(self.optimizer)

    def _add_gradients(self, batch: StepBatch) -> torch.Tensor:
        """Back-propagate the step's mean loss; the sum of its losses over all ranks, float64 on the device."""
        scale = dist.get_world_size() / batch.scored_tokens
        losses = []
        for microbatch in batch.microbatches:
            loss = self._loss_sum(microbatch)
            (loss * scale).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        total = torch.stack(losses).double().sum()
        dist.all_reduce(total)
        return total

    def _loss_sum(self, microbatch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        on_device = {name: tensor.to(self.device, non_blocking=True) for name, tensor in microbatch.items()}
        labels = on_device.pop("labels")
        loss: torch.Tensor = self.model(**on_device, loss_labels=labels)
        return loss

    @torch.no_grad()
    def _raise_at_samples(self, batch: StepBatch, total: float) -> None:
        """Run each sample alone to find those whose loss is not finite, and raise. Every rank calls it."""
        own = [int(sample) for sample in batch.samples[dist.get_rank() :: dist.get_world_size()]]
        rows = (
            {name: tensor[row : row + 1] for name, tensor in microbatch.items()}
            for microbatch in batch.microbatches
            for row in range(len(microbatch["input_ids"]))
        )
        finite = [math.isfinite(float(self._loss_sum(row))) for row in rows]  # each is a collective: as many everywhere
        bad = sorted(_gather([sample for sample, fine in zip(own, finite, strict=False) if not fine]))
        named = bad or sorted(int(sample) for sample in batch.samples)
        which = "whose loss alone is not finite" if bad else "of the step (each alone is finite)"
        raise NonFiniteLossError(
            f"step {batch.step + 1}: the loss is {total}; stopped before the optimizer, the last checkpoint is good. "
            f"Samples {which}: {self._listed(named)}",
            named,
        )

    def _listed(self, samples: Sequence[int]) -> str:
        named = [f"{sample} ({self.describe(sample)})" for sample in samples[:NAMED_SAMPLES]]
        return ", ".join(named) + (f" and {len(samples) - NAMED_SAMPLES} more" if len(samples) > NAMED_SAMPLES else "")


@torch.no_grad()
def clip_(parameters: Iterable[torch.nn.Parameter], max_norm: float) -> torch.Tensor:
    """Scale the gradients in place to at most this norm; the norm before, on the device. Every rank calls it.

    As torch's clip_grad_norm_, on local shards: there each gradient passes through DTensor's dispatch, which leaves a
    GPU waiting. One all-reduce over the shard axis; replicas hold the same gradients.
    """
    parameters = list(parameters)
    norm = global_norm(parameters)
    torch._foreach_mul_(_local_gradients(parameters), (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


@torch.no_grad()
def global_norm(parameters: Iterable[torch.nn.Parameter]) -> torch.Tensor:
    """The norm of all gradients together, on the device. Every rank calls it."""
    parameters = list(parameters)
    squared = torch.stack(torch._foreach_norm(_local_gradients(parameters))).square().sum()
    if isinstance(parameters[0], DTensor):
        dist.all_reduce(squared, group=parameters[0].device_mesh.get_group(SHARD_AXIS))
    return squared.sqrt()


def _local_gradients(parameters: Iterable[torch.nn.Parameter]) -> list[torch.Tensor]:
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return [grad.to_local() if isinstance(grad, DTensor) else grad for grad in grads]


def _gather(values: list[int]) -> list[int]:
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, values)
    return [value for part in parts for value in part]
