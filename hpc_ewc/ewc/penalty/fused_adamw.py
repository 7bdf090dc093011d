"""Clipping, the penalty's gradient and AdamW in one pass over memory, compiled: λF(θ−θ*) never reaches `.grad`.

Memory bandwidth alone limits an update. Bytes an element, F and θ* in fp32 (in bf16):

    clip      penalty, norm, clipping and AdamW apart    in one pass
    total     20 + 4 + 8 + 28 = 60 (56)                  16 + 36 = 52 (44): the norm is of the sum, so F is read twice
    task      60 (56)                                    4 + 36 = 40 (36)

Equal up to rounding to `EwcPenalty.add_gradient_` followed by torch's AdamW, whose state it uses.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hpc_ewc.errors import InputError
from hpc_ewc.ewc.penalty.kernels import compile_kernel, ones_like, penalty_gradient
from hpc_ewc.ewc.penalty.penalty import EwcPenalty
from hpc_ewc.ewc.sharding.shards import local_flat, reduce_elements

MOMENTS = ("exp_avg", "exp_avg_sq")


class FusedAdamW:
    """AdamW's steps under a penalty of mode "gradient", in place of `optimizer.step()` and `penalty.add_gradient_()`.

    Args:
        penalty: with λ > 0.
        optimizer: AdamW over the penalty's parameters, in one group.

    Raises:
        InputError: another mode, or another optimizer.
    """

    def __init__(self, penalty: EwcPenalty, optimizer: torch.optim.Optimizer) -> None:
        if penalty.mode != "gradient":
            raise InputError(
                f"the update in one pass adds the penalty's gradient: mode 'gradient', not '{penalty.mode}'"
            )
        plain = isinstance(optimizer, torch.optim.AdamW) and len(optimizer.param_groups) == 1
        if not plain or optimizer.param_groups[0]["amsgrad"] or optimizer.param_groups[0]["maximize"]:
            raise InputError(
                f"the update in one pass is AdamW's with one group of parameters, without amsgrad and maximize; this "
                f"is {type(optimizer).__name__} with {len(optimizer.param_groups)}"
            )
        optimized = {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
        if optimized != {id(shard.parameter) for shard in penalty.shards}:
            raise InputError("the optimizer and the penalty hold other parameters; build both from the same model")
        self._penalty, self._optimizer = penalty, optimizer
        dtypes = [(shard.anchor.dtype, shard.fisher.dtype) for shard in penalty.shards]
        self._device = penalty.shards[0].anchor.device
        self._squares = compile_kernel(_squares_formula, _squares_example, dtypes, self._device)
        self._adamw = compile_kernel(_adamw_formula, _adamw_example, dtypes, self._device)

    @property
    def works(self) -> bool:
        """Whether both kernels compiled; where they did not, a warning has given the reason."""
        return self._squares is not None and self._adamw is not None

    @torch.no_grad()
    def norm(self) -> Tensor:
        """Returns ‖g + λF(θ−θ*)‖ over the whole model, on the device; leaves the gradients as they are.

        Every rank calls it; one all-reduce over the shard axis.
        """
        assert self._squares is not None, "a kernel that did not compile is used"
        rows = torch.zeros(len(self._penalty.shards), 1, device=self._device)
        strength = torch.tensor(self._penalty.strength, dtype=torch.float32, device=self._device)
        for row, shard in zip(rows, self._penalty.shards, strict=True):
            theta, grad = local_flat(shard.parameter), local_flat(_gradient(shard.parameter))
            if theta.numel():  # a rank's shard may be empty
                row.copy_(self._squares(theta, grad, shard.anchor, shard.fisher, strength))
        return reduce_elements(rows, [shard.parameter for shard in self._penalty.shards]).sum().sqrt()

    @torch.no_grad()
    def step_(self, task_factor: float, penalty_factor: float) -> None:
        """Makes one step of AdamW along task_factor · g + penalty_factor · λF(θ−θ*). No collective.

        Args:
            task_factor: clips the task's gradient.
            penalty_factor: clips the penalty's gradient: `task_factor` with clip = "total", 1 with "task".
        """
        assert self._adamw is not None, "a kernel that did not compile is used"
        states = [adamw_state(self._optimizer, shard.parameter) for shard in self._penalty.shards]
        torch._foreach_add_([state["step"] for state in states], 1)
        scalars = self._scalars(int(states[0]["step"].item()), task_factor, penalty_factor)
        for shard, state in zip(self._penalty.shards, states, strict=True):
            theta, grad = local_flat(shard.parameter), local_flat(_gradient(shard.parameter))
            moments = local_flat(state["exp_avg"]), local_flat(state["exp_avg_sq"])
            if theta.numel():
                self._adamw(theta, grad, shard.anchor, shard.fisher, *moments, scalars)

    def _scalars(self, step: int, task_factor: float, penalty_factor: float) -> Tensor:
        """Returns the kernel's settings in fp32, computed in float64: 1 − β₂^step has few digits in fp32."""
        group = self._optimizer.param_groups[0]
        (beta1, beta2), rate = group["betas"], float(group["lr"])
        first, second = 1.0 - beta1**step, math.sqrt(1.0 - beta2**step)
        values = [self._penalty.strength, task_factor, penalty_factor]
        values += [1 - beta1, beta2, 1 - beta2, second, group["eps"], 1.0 - rate * group["weight_decay"], rate / first]
        return torch.tensor(values, dtype=torch.float32).to(self._device)


def adamw_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """Returns the state of a parameter, with zeros where the optimizer has made no step yet. No collective."""
    state: dict[str, Tensor] = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)  # where fused AdamW needs it
        for moment in MOMENTS:
            state[moment] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return state


def _gradient(parameter: Any) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    gradient: Tensor = parameter.grad
    return gradient


def _squares_formula(theta: Tensor, grad: Tensor, anchor: Tensor, fisher: Tensor, strength: Tensor) -> Tensor:
    return (grad + penalty_gradient(theta, anchor, fisher, strength)).square().sum()


def _adamw_formula(
    theta: Tensor, grad: Tensor, anchor: Tensor, fisher: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, scalars: Tensor
) -> None:
    strength, task, pull, new1, old2, new2, root, eps, kept, rate = scalars.unbind()
    gradient = grad * task + penalty_gradient(theta, anchor, fisher, strength) * pull
    first = exp_avg + new1 * (gradient - exp_avg)
    second = exp_avg_sq * old2 + new2 * gradient * gradient
    theta.copy_(theta * kept - rate * first / (second.sqrt() / root + eps))
    exp_avg.copy_(first)
    exp_avg_sq.copy_(second)


def _squares_example(anchor: Tensor, fisher: Tensor) -> list[Tensor]:
    return [ones_like(anchor), ones_like(anchor), anchor, fisher, torch.ones((), device=anchor.device)]


def _adamw_example(anchor: Tensor, fisher: Tensor) -> list[Tensor]:
    moments = [torch.zeros_like(anchor, dtype=torch.float32) for _ in range(2)]
    scalars = torch.tensor([1.0, 0.5, 1.0, 0.1, 0.9, 0.1, 0.5, 1e-8, 0.9, 0.1], device=anchor.device)
    return [ones_like(anchor), ones_like(anchor), anchor, fisher, *moments, scalars]
