r"""The EWC penalty on shards: its gradient, its value and its proximal step, at the cost of reading memory once.

    penalty(θ)  = λ/2 Σ_i F_i (θ_i − θ*_i)²                        Kirkpatrick et al. 2017, eq. 3
    gradient_i  = λ F_i (θ_i − θ*_i)

Each rank works on its own shard alone. The gradient is added to the sharded `.grad`, which already is the mean over
ranks, so it is *not* divided by the world size. Only the logged scalars need a collective.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hpc_ewc.errors import InputError
from hpc_ewc.ewc.penalty.kernels import (
    add_gradient_,
    compiled_gradient,
    compiled_measure,
    compiled_proximal,
    is_moderate,
    measure_sums,
    proximal_,
)
from hpc_ewc.ewc.penalty.metric import optimizer_metrics
from hpc_ewc.ewc.sharding.shards import (
    check_layout,
    find_bad_entries,
    local_flat,
    reduce_elements,
    trainable_parameters,
)
from hpc_ewc.ewc.sharding.tiles import tiles

Mode = Literal["gradient", "proximal"]
MAX_STRENGTH = 1e30
_COMPILE_ABOVE = 1 << 16
"""Shards below this many elements take the plain kernel: a compiled call's guards cost more than their memory."""


class PenaltyMeasures(NamedTuple):
    """Scalars of the whole model, for a log.

    Attributes:
        value: λ/2 Σ F (θ−θ*)².
        distance: ‖θ − θ*‖.
        free_parameters: the number of parameters whose Fisher is zero: no λ pulls them to the anchor.
        free_distance: ‖θ − θ*‖ over these alone.
    """

    value: float
    distance: float
    free_parameters: int
    free_distance: float


@dataclass(frozen=True)
class ParameterShard:
    """One parameter with its anchor and Fisher: this rank's elements, 1D, in the dtype they were given in."""

    name: str
    parameter: nn.Parameter
    anchor: Tensor
    fisher: Tensor


class EwcPenalty:
    """The penalty λ/2 Σ F (θ−θ*)² of a model, plain or `fully_shard`-ed.

    Build it before the first forward: after one, the root's parameters are unsharded plain tensors. Every rank builds
    it (three all-reduces). It keeps references to the parameters, the anchor and the Fisher, copies nothing, and its
    buffers have a fixed size, whatever the model's.

    Args:
        model: its trainable parameters must be fp32 masters: in bf16 an update of θ smaller than 0.4 % is lost.
        anchor: θ*, {fqn: tensor} laid out as the parameters; any floating dtype (cast in the kernel).
        fisher: F ≥ 0, {fqn: tensor} laid out as the parameters; any floating dtype.
        strength: λ in [0, 1e30]. At 0 every method leaves the training bitwise as it is without a penalty.
        mode: "gradient" (the paper's) adds to `.grad`; "proximal" moves θ after the optimizer's step.
        compile: True fuses the kernels by `torch.compile`; False runs them tile by tile in eager mode; "auto" is True
            on CUDA alone, as starting the compiler on a CPU takes longer than it saves in most runs. Without a
            working compiler the kernels are eager.

    Attributes:
        strength: λ.
        mode: as given.
        shards: each parameter with this rank's elements of θ* and F.
        parameter_count: P, the number of trainable parameters of the whole model.
        trace: tr F = Σ F_i over the whole model; λ means nothing without it.

    Raises:
        InputError: a tensor missing, of another shape or layout, negative or not finite; `strength` out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        anchor: Mapping[str, Tensor],
        fisher: Mapping[str, Tensor],
        strength: float,
        mode: Mode = "gradient",
        *,
        compile: bool | Literal["auto"] = "auto",
    ) -> None:
        if not (math.isfinite(strength) and 0.0 <= strength <= MAX_STRENGTH):
            raise InputError(f"strength is {strength}; allowed are finite numbers in [0, {MAX_STRENGTH:g}]")
        if mode not in ("gradient", "proximal"):
            raise InputError(f"mode is '{mode}'; allowed are 'gradient' and 'proximal'")
        parameters = trainable_parameters(model)
        if not parameters:
            raise InputError("the model has no trainable parameter; the penalty would be zero")
        check_layout("anchor", anchor, parameters)
        check_layout("Fisher", fisher, parameters)
        for name, parameter in parameters.items():
            if parameter.dtype not in (torch.float32, torch.float64):
                raise InputError(
                    f"parameter '{name}' is {parameter.dtype}; the penalty needs fp32 masters: load the model in "
                    f"float32 and compute in bfloat16 by MixedPrecisionPolicy(param_dtype=torch.bfloat16)"
                )
        if bad := find_bad_entries(fisher, anchor):
            raise InputError(f"{bad}; estimate the Fisher again")
        self.strength = float(strength)
        self.mode: Mode = mode
        self.shards = [
            ParameterShard(name, parameter, local_flat(anchor[name]), local_flat(fisher[name]))
            for name, parameter in parameters.items()
        ]
        self.parameter_count = sum(parameter.numel() for parameter in parameters.values())
        self._device = self.shards[0].anchor.device
        self.trace, self._zeros, self._largest = self._read_fisher()
        self._moderate = is_moderate(self.strength, self._largest)
        wanted = self._device.type == "cuda" if compile == "auto" else compile
        wanted = wanted and self.strength > 0.0 and any(_worth_fusing(p) for p in map(local_flat, parameters.values()))
        dtypes = [(shard.anchor.dtype, shard.fisher.dtype) for shard in self.shards]
        self._fused_gradient = compiled_gradient(dtypes, self._device) if wanted and mode == "gradient" else None
        self._fused_proximal = compiled_proximal(dtypes, self._device) if wanted and mode == "proximal" else None
        self._fused_measure = compiled_measure(dtypes, self._device) if wanted else None

    def add_gradient_(self) -> None:
        """Adds λF(θ−θ*) to each `.grad`, once per optimizer step: after the last backward, before or after clipping.

        A parameter without a gradient gets one. No collective. At λ = 0, and only there, nothing is touched.
        """
        self._require("gradient", "add_gradient_")
        if self.strength == 0.0:
            return
        strength = torch.tensor(self.strength, dtype=torch.float32, device=self._device)
        with torch.no_grad():
            for shard in self.shards:
                if shard.parameter.grad is None:
                    shard.parameter.grad = torch.zeros_like(shard.parameter)
                theta, grad = local_flat(shard.parameter), local_flat(shard.parameter.grad)
                if self._fused_gradient is not None and _worth_fusing(theta):
                    self._fused_gradient(theta, grad, shard.anchor, shard.fisher, strength)
                else:
                    add_gradient_(theta, grad, shard.anchor, shard.fisher, self.strength, moderate=self._moderate)

    def proximal_step_(self, optimizer: torch.optim.Optimizer) -> None:
        """Moves each θ towards θ*, in the metric of the optimizer that has just stepped; exact at θ* as λ → ∞.

            a_i = lr λ F_i / (sqrt(v̂_i) + eps),    θ_i ← θ*_i + (θ_i − θ*_i) / (1 + a_i)

        This is argmin_θ' Σ (sqrt(v̂)+eps)/(2 lr) (θ'−θ)² + λ/2 F (θ'−θ*)²: an implicit step, stable at any λ. In the
        plain metric (a = lr λ F) it would be another objective, since Adam's own step is preconditioned.
        Call it after `optimizer.step()` and before the schedule's step, so that lr is the one just used. No
        collective.

        Args:
            optimizer: Adam or AdamW (any variant) over the model's parameters, or SGD, whose metric is 1.

        Raises:
            InputError: an optimizer without Adam's second moments, or one that lacks a parameter.
        """
        self._require("proximal", "proximal_step_")
        if self.strength == 0.0:
            return
        metrics = optimizer_metrics(optimizer, {shard.name: shard.parameter for shard in self.shards})
        # one small copy to the device for each parameter group, not for each parameter
        scalars: dict[tuple[float, float, float], Tensor] = {}
        with torch.no_grad():
            for shard in self.shards:
                theta, metric = local_flat(shard.parameter), metrics[shard.name]
                key = (metric.lr * self.strength, metric.bias_correction, metric.eps)
                if key not in scalars:
                    scalars[key] = torch.tensor(key, dtype=theta.dtype, device=theta.device)
                second = metric.second_moment
                if second is None:
                    second = theta.new_zeros(1).expand(theta.numel())
                fused = self._fused_proximal if metric.second_moment is not None and _worth_fusing(theta) else None
                (fused or proximal_)(theta, shard.anchor, shard.fisher, second, scalars[key])

    def measure(self) -> PenaltyMeasures:
        """Returns value and distances in one pass. Every rank calls it; one all-reduce over the shard axis."""
        rows = torch.zeros(len(self.shards), 3, dtype=torch.float64, device=self._device)
        with torch.no_grad():
            for row, shard, zeros in zip(rows, self.shards, self._zeros, strict=True):
                theta = local_flat(shard.parameter)
                if self._fused_measure is not None and _worth_fusing(theta):
                    row.copy_(self._fused_measure(theta, shard.anchor, shard.fisher))
                else:
                    row.copy_(measure_sums(theta, shard.anchor, shard.fisher, zeros=zeros > 0))
        sums = reduce_elements(rows, [shard.parameter for shard in self.shards]).sum(0)
        weighted, squared, free = sums.tolist()
        # the value is 0 at λ = 0 even for an infinite distance; halved last: half of the smallest λ is 0, and 0·∞ NaN
        value = self.strength * weighted * 0.5 if self.strength else 0.0
        return PenaltyMeasures(value, math.sqrt(squared), sum(self._zeros), math.sqrt(free))

    def largest_step(self, lr: float) -> float:
        """Returns max_i lr·λ·F_i: above 2, plain gradient descent on the penalty diverges. No collective."""
        return lr * self.strength * self._largest

    def _read_fisher(self) -> tuple[float, list[int], float]:
        """Returns the trace, the number of zeros of each parameter's F, and the largest entry. Two all-reduces."""
        sums = torch.zeros(len(self.shards), 2, dtype=torch.float64, device=self._device)
        largest = torch.zeros(len(self.shards), 1, dtype=torch.float64, device=self._device)
        with torch.no_grad():
            for row, top, shard in zip(sums, largest, self.shards, strict=True):
                for (fisher,) in tiles(shard.fisher):
                    row[0] += fisher.sum(dtype=torch.float64)
                    row[1] += (fisher == 0).sum()
                    torch.maximum(top, fisher.max().double(), out=top)
        parameters = [shard.parameter for shard in self.shards]
        reduce_elements(sums, parameters)
        reduce_elements(largest, parameters, op=dist.ReduceOp.MAX)
        return float(sums[:, 0].sum()), [int(count) for count in sums[:, 1].tolist()], float(largest.max())

    def _require(self, mode: Mode, method: str) -> None:
        if self.mode != mode:
            raise InputError(f"{method} belongs to mode '{mode}'; this penalty was built with mode '{self.mode}'")


def _worth_fusing(theta: Tensor) -> bool:
    return theta.dtype == torch.float32 and theta.numel() >= _COMPILE_ABOVE
