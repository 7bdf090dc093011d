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
from hpc_ewc.ewc.kernels import (
    add_gradient_,
    compiled_gradient,
    compiled_measure,
    compiled_proximal,
    is_moderate,
    measure_sums,
    proximal_,
    tiles,
)
from hpc_ewc.ewc.metric import optimizer_metric
from hpc_ewc.ewc.shards import check_layout, local_flat, reduce_elements, trainable_parameters

Mode = Literal["gradient", "proximal"]
MAX_STRENGTH = 1e30
_COMPILE_ABOVE = 1 << 16
"""Shards below this many elements take the plain kernel: a compiled call's guards cost more than their memory."""


class FreeParameters(NamedTuple):
    """The parameters whose Fisher is zero: nothing holds them at the anchor.

    Attributes:
        number: how many.
        distance: ‖θ − θ*‖ over them alone.
    """

    number: int
    distance: float


class Measures(NamedTuple):
    """What one pass over the shards tells. Attributes: the penalty's value, ‖θ − θ*‖, and that of free parameters."""

    value: float
    distance: float
    free_distance: float


@dataclass(frozen=True)
class Part:
    """One parameter. `anchor` and `fisher` are this rank's elements, 1D, in the dtype they were given in."""

    name: str
    parameter: nn.Parameter
    anchor: Tensor
    fisher: Tensor


class EwcPenalty:
    """The penalty λ/2 Σ F (θ−θ*)² of a model, plain or `fully_shard`-ed.

    Built before the first forward: after one, the root's parameters are unsharded plain tensors. Every rank builds it
    (two all-reduces). It keeps references to the parameters, the anchor and the Fisher, copies nothing, and its
    buffers have a fixed size, whatever the model's.

    Args:
        model: its trainable parameters must be fp32 masters: in bf16 an update of θ smaller than 0.4 % is lost.
        anchor: θ*, {fqn: tensor} laid out as the parameters; any floating dtype (cast in the kernel).
        fisher: F ≥ 0, likewise.
        strength: λ in [0, 1e30]. At 0 every method leaves the training bitwise as it is without a penalty.
        mode: "gradient" (the paper's) adds to `.grad`; "proximal" moves θ after the optimizer's step.
        compile: True: fused by `torch.compile`; False: tile by tile in eager mode; "auto": True on CUDA alone, as
            the compiler's start on a CPU takes longer than it saves in most runs. Without a working compiler, eager.

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
        compile: bool | Literal["auto"] = "auto",
    ) -> None:
        if not (math.isfinite(strength) and 0.0 <= strength <= MAX_STRENGTH):
            raise InputError(f"strength is {strength}; allowed are finite numbers in [0, {MAX_STRENGTH:g}]")
        if mode not in ("gradient", "proximal"):
            raise InputError(f"mode is '{mode}'; allowed are 'gradient' and 'proximal'")
        parameters = trainable_parameters(model)
        if not parameters:
            raise InputError("the model has no trainable parameter; a penalty would hold nothing")
        check_layout("anchor", anchor, parameters)
        check_layout("Fisher", fisher, parameters)
        for name, parameter in parameters.items():
            if parameter.dtype not in (torch.float32, torch.float64):
                raise InputError(
                    f"parameter '{name}' is {parameter.dtype}; the penalty needs fp32 masters: load the model in "
                    f"float32 and compute in bfloat16 by MixedPrecisionPolicy(param_dtype=torch.bfloat16)"
                )
        self.strength = float(strength)
        self.mode: Mode = mode
        self._parts = [
            Part(name, parameter, local_flat(anchor[name]), local_flat(fisher[name]))
            for name, parameter in parameters.items()
        ]
        self._device = self._parts[0].anchor.device
        self.parameter_count = sum(parameter.numel() for parameter in parameters.values())
        self._trace, self._zeros, self._largest = self._read_fisher()
        self._moderate = is_moderate(self.strength, self._largest)
        wanted = self._device.type == "cuda" if compile == "auto" else compile
        wanted = wanted and self.strength > 0.0 and any(_worth_fusing(p) for p in map(local_flat, parameters.values()))
        dtypes = [(part.anchor.dtype, part.fisher.dtype) for part in self._parts]
        self._fused_gradient = compiled_gradient(dtypes, self._device) if wanted and mode == "gradient" else None
        self._fused_proximal = compiled_proximal(dtypes, self._device) if wanted and mode == "proximal" else None
        self._fused_measure = compiled_measure(dtypes, self._device) if wanted else None

    @property
    def parts(self) -> list[Part]:
        """Each parameter with its elements of θ* and F on this rank."""
        return self._parts

    def add_gradient_(self) -> None:
        """Adds λF(θ−θ*) to each `.grad`, once per optimizer step: after the last backward, before or after clipping.

        A parameter without a gradient gets one. No collective. At λ = 0, and only there, nothing is touched.
        """
        self._require("gradient", "add_gradient_")
        if self.strength == 0.0:
            return
        strength = torch.tensor(self.strength, dtype=torch.float32, device=self._device)
        with torch.no_grad():
            for part in self._parts:
                if part.parameter.grad is None:
                    part.parameter.grad = torch.zeros_like(part.parameter)
                theta, grad = local_flat(part.parameter), local_flat(part.parameter.grad)
                if self._fused_gradient is not None and _worth_fusing(theta):
                    self._fused_gradient(theta, grad, part.anchor, part.fisher, strength)
                else:
                    add_gradient_(theta, grad, part.anchor, part.fisher, self.strength, self._moderate)

    def proximal_step_(self, optimizer: torch.optim.Optimizer) -> None:
        """Moves each θ towards θ*, in the metric of the optimizer that has just stepped; exact at θ* as λ → ∞.

            a_i = lr λ F_i / (sqrt(v̂_i) + eps),    θ_i ← θ*_i + (θ_i − θ*_i) / (1 + a_i)

        This is argmin_θ' Σ (sqrt(v̂)+eps)/(2 lr) (θ'−θ)² + λ/2 F (θ'−θ*)²: an implicit step, stable at any λ. In the
        plain metric (a = lr λ F) it would be another objective, since Adam's own step is preconditioned.
        Called after `optimizer.step()` and before the schedule's step, so that lr is the one just used. No collective.

        Args:
            optimizer: Adam or AdamW (any variant) over the model's parameters, or SGD, whose metric is 1.

        Raises:
            InputError: an optimizer without Adam's second moments, or one that lacks a parameter.
        """
        self._require("proximal", "proximal_step_")
        if self.strength == 0.0:
            return
        metrics = optimizer_metric(optimizer, {part.name: part.parameter for part in self._parts})
        scalars: dict[tuple[float, float, float], Tensor] = {}  # one small copy to the device for each group, not part
        with torch.no_grad():
            for part in self._parts:
                theta, metric = local_flat(part.parameter), metrics[part.name]
                key = (metric.lr * self.strength, metric.bias_correction, metric.eps)
                if key not in scalars:
                    scalars[key] = torch.tensor(key, dtype=theta.dtype, device=theta.device)
                second = metric.second_moment
                if second is None:
                    second = theta.new_zeros(1).expand(theta.numel())
                fused = self._fused_proximal if metric.second_moment is not None and _worth_fusing(theta) else None
                (fused or proximal_)(theta, part.anchor, part.fisher, second, scalars[key])

    def value(self) -> float:
        """λ/2 Σ F (θ−θ*)² over the whole model. Every rank calls it; one all-reduce over the shard axis."""
        return self.measure().value

    def distance(self) -> float:
        """‖θ − θ*‖ over the whole model. Every rank calls it; one all-reduce over the shard axis."""
        return self.measure().distance

    def free_parameters(self) -> FreeParameters:
        """How many parameters have F = 0, and how far those moved. Every rank calls it; one all-reduce."""
        return FreeParameters(sum(self._zeros), self.measure().free_distance)

    def measure(self) -> Measures:
        """Value, distance and free distance in one pass. Every rank calls it; one all-reduce over the shard axis."""
        rows = torch.zeros(len(self._parts), 3, dtype=torch.float64, device=self._device)
        with torch.no_grad():
            for row, part, zeros in zip(rows, self._parts, self._zeros, strict=True):
                theta = local_flat(part.parameter)
                if self._fused_measure is not None and _worth_fusing(theta):
                    row.copy_(self._fused_measure(theta, part.anchor, part.fisher))
                else:
                    row.copy_(measure_sums(theta, part.anchor, part.fisher, zeros > 0))
        half, squared, free = reduce_elements(rows, [part.parameter for part in self._parts]).sum(0).tolist()
        # λ last: at λ = 0 an unbounded distance still has the value 0; the half last: of the least λ it would be 0 · ∞
        return Measures(self.strength * half * 0.5 if self.strength else 0.0, math.sqrt(squared), math.sqrt(free))

    def largest_step(self, lr: float) -> float:
        """max_i lr·λ·F_i: above 2, plain gradient descent on the penalty diverges. No collective."""
        return lr * self.strength * self._largest

    def trace(self) -> float:
        """The trace tr F = Σ F_i over the whole model: λ means nothing without it. No collective."""
        return self._trace

    def _read_fisher(self) -> tuple[float, list[int], float]:
        """Trace, number of zeros of each part and largest entry of F; raises where F or θ* is not what it must be."""
        sums = torch.zeros(len(self._parts), 4, dtype=torch.float64, device=self._device)
        largest = torch.zeros(len(self._parts), 1, dtype=torch.float64, device=self._device)
        with torch.no_grad():
            for row, top, part in zip(sums, largest, self._parts, strict=True):
                for fisher, anchor in tiles(part.fisher, part.anchor):
                    row[0] += fisher.sum(dtype=torch.float64)
                    row[1] += (fisher == 0).sum()
                    row[2] += (~((fisher >= 0) & fisher.isfinite())).sum()
                    row[3] += (~anchor.isfinite()).sum()
                    torch.maximum(top, fisher.max().double(), out=top)
        parameters = [part.parameter for part in self._parts]
        reduce_elements(sums, parameters)
        for part, (_, _, bad_fisher, bad_anchor) in zip(self._parts, sums.tolist(), strict=True):
            if bad_fisher:
                raise InputError(
                    f"the Fisher of '{part.name}' has {int(bad_fisher)} entries that are negative or not finite; "
                    f"it is a mean of squares, so this one is damaged: estimate it again"
                )
            if bad_anchor:
                raise InputError(f"the anchor of '{part.name}' has {int(bad_anchor)} entries that are not finite")
        reduce_elements(largest, parameters, op=dist.ReduceOp.MAX)
        return float(sums[:, 0].sum()), [int(count) for count in sums[:, 1].tolist()], float(largest.max())

    def _require(self, mode: Mode, method: str) -> None:
        if self.mode != mode:
            raise InputError(f"{method} belongs to mode '{mode}'; this penalty was built with mode '{self.mode}'")


def _worth_fusing(theta: Tensor) -> bool:
    return theta.dtype == torch.float32 and theta.numel() >= _COMPILE_ABOVE
