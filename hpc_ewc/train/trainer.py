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
from hpc_ewc.ewc.sharding.ranks import gather_objects
from hpc_ewc.model.mesh import SHARD_AXIS
from hpc_ewc.train.optimizer import set_learning_rate
from hpc_ewc.train.regularizer import EwcRegularizer, NoPenalty

NAMED_SAMPLES = 8


class NonFiniteLossError(StageError):
    """The loss or its gradient is not finite; the optimizer was not touched.

    Attributes:
        samples: the samples with such a loss, or all of the step.
    """

    def __init__(self, message: str, samples: Sequence[int]) -> None:
        super().__init__(message)
        self.samples = list(samples)


@dataclass
class Trainer:
    """Makes optimizer steps; every rank builds one.

    Attributes:
        model: from `load_model`, whose forward takes `loss_labels` and returns the summed loss.
        parameters: {fqn: parameter}, taken before the first forward: after it, those of the root are unsharded.
        optimizer: over these parameters.
        regularizer: from `build_regularizer`.
        ewc: [ewc].
        config: [train].
        device: of this rank.
        describe: returns the origin of a sample, for messages.
        fused_adamw: clips, adds the penalty and steps in place of `optimizer.step()`; None: these are apart.
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
        """Makes one optimizer step. Every rank calls it with its own part of the same step.

        Collectives: those of forward and backward, an all-reduce of the loss, and one of the norm.

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
        # the only point where the host waits for the device; all of the above is queued by now
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
        """Clips the gradients and adds the penalty's, in the order of [ewc] clip; returns their norm before."""
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
        """Moves the parameters; `norm` is that of the gradients, as `_clip` returned it."""
        if self.fused_adamw is not None:
            factor = min(1.0, self.config.max_grad_norm / (norm + 1e-6))
            self.fused_adamw.step_(factor, factor if self.ewc.clip == "total" else 1.0)
            return
        self.optimizer.step()
        if self.ewc.mode == "proximal":
            self.regularizer.proximal_step_(self.optimizer)

    def _add_gradients(self, batch: StepBatch) -> torch.Tensor:
        """Back-propagates the step's mean loss; returns the sum of its losses over all ranks, fp64 on the device."""
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
        """Runs each sample alone to find those whose loss is not finite, and raises. Every rank calls it."""
        own = [int(sample) for sample in batch.samples[dist.get_rank() :: dist.get_world_size()]]
        rows = (
            {name: tensor[row : row + 1] for name, tensor in microbatch.items()}
            for microbatch in batch.microbatches
            for row in range(len(microbatch["input_ids"]))
        )
        finite = [math.isfinite(float(self._loss_sum(row))) for row in rows]  # each is a collective: as many everywhere
        mine = [sample for sample, fine in zip(own, finite, strict=False) if not fine]
        bad = sorted(sample for samples in gather_objects(mine) for sample in samples)
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
    """Scales the gradients in place to at most `max_norm`; returns their norm before, on the device.

    Every rank calls it; one all-reduce over the shard axis. It does on local shards what torch's clip_grad_norm_ does
    through DTensor's dispatch, which leaves a GPU waiting.
    """
    parameters = list(parameters)
    norm = global_norm(parameters)
    torch._foreach_mul_(_local_gradients(parameters), (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


@torch.no_grad()
def global_norm(parameters: Iterable[torch.nn.Parameter]) -> torch.Tensor:
    """Returns the norm of all gradients together, on the device. Every rank calls it; one all-reduce over shards.

    Replicas hold the same gradients, so nothing is reduced over them.
    """
    parameters = list(parameters)
    squared = torch.stack(torch._foreach_norm(_local_gradients(parameters))).square().sum()
    if isinstance(parameters[0], DTensor):
        dist.all_reduce(squared, group=parameters[0].device_mesh.get_group(SHARD_AXIS))
    return squared.sqrt()


def _local_gradients(parameters: Iterable[torch.nn.Parameter]) -> list[torch.Tensor]:
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return [grad.to_local() if isinstance(grad, DTensor) else grad for grad in grads]
