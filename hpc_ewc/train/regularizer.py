"""The term that pulls the weights to θ*: EWC's penalty, or for λ = 0 none, where only ‖θ−θ*‖ is measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from hpc_ewc.config import EwcConfig
from hpc_ewc.errors import InputError
from hpc_ewc.ewc import EwcPenalty, FusedAdamW, load_ewc_state
from hpc_ewc.model.mesh import SHARD_AXIS
from hpc_ewc.schemas import EwcSummary

TILE = 1 << 24
"""Elements measured at a time: 64 MiB of fp32."""


class PenaltyStats(NamedTuple):
    """The regularizer's part of a log line.

    Attributes:
        penalty: λ/2 Σ F (θ−θ*)².
        distance: ‖θ−θ*‖.
        largest_step: the largest lr·λ·F.
    """

    penalty: float
    distance: float
    largest_step: float


class NoPenalty:
    """λ = 0: adds nothing, and measures ‖θ−θ*‖ to a copy of the parameters as they are when it is built.

    The copy is bf16 where that loses nothing, as for a base model stored in bf16: 2 bytes a parameter instead of 4.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        self._parameters = parameters
        self._anchor = {}
        for name, parameter in parameters.items():
            local = _local(parameter)
            half = local.bfloat16()
            self._anchor[name] = half if torch.equal(half.float(), local) else local.clone()

    def add_gradient_(self) -> None:
        """Adds nothing."""

    def proximal_step_(self, optimizer: torch.optim.Optimizer) -> None:
        """Moves nothing."""

    @torch.no_grad()
    def measure(self, learning_rate: float) -> PenaltyStats:
        """Returns the distance. Every rank calls it; one all-reduce over the shard axis."""
        squared = torch.zeros((), dtype=torch.float64, device=next(iter(self._anchor.values())).device)
        for name, parameter in self._parameters.items():
            pairs = zip(torch.split(_local(parameter), TILE), torch.split(self._anchor[name], TILE), strict=True)
            for theta, anchor in pairs:
                delta = theta - anchor
                squared += torch.dot(delta, delta)
        first = next(iter(self._parameters.values()))
        if isinstance(first, DTensor):  # over the ranks that share the elements, not over replicas of them
            dist.all_reduce(squared, group=first.device_mesh.get_group(SHARD_AXIS))
        return PenaltyStats(0.0, math.sqrt(float(squared)), 0.0)

    def fused_adamw(self, optimizer: torch.optim.Optimizer) -> None:
        """Returns None: AdamW has no penalty to add."""

    def scale(self) -> dict[str, float]:
        """Returns nothing: there is no Fisher."""
        return {}

    def summary(self) -> EwcSummary:
        """Returns nothing: there is no Fisher."""
        return {}


class EwcRegularizer:
    """λ > 0: an `EwcPenalty` with the interface of `NoPenalty`."""

    def __init__(self, penalty: EwcPenalty) -> None:
        self.penalty = penalty
        self.add_gradient_ = penalty.add_gradient_
        self.proximal_step_ = penalty.proximal_step_

    def measure(self, learning_rate: float) -> PenaltyStats:
        """Returns the penalty, the distance and the largest step. Every rank calls it; one all-reduce."""
        measures = self.penalty.measure()
        return PenaltyStats(measures.value, measures.distance, self.penalty.largest_step(learning_rate))

    def fused_adamw(self, optimizer: torch.optim.Optimizer) -> FusedAdamW | None:
        """Returns clipping, penalty and AdamW as one kernel; None, with a warning, where the compiler does not work."""
        fused = FusedAdamW(self.penalty, optimizer)
        return fused if fused.works else None

    def scale(self) -> dict[str, float]:
        """Returns tr F and λ·tr F/P, the penalty's mean curvature: λ means nothing without the scale of its Fisher."""
        trace, penalty = self.penalty.trace, self.penalty
        return {"fisher_trace": trace, "scaled_mean": penalty.strength * trace / penalty.parameter_count}

    def summary(self) -> EwcSummary:
        """Returns the scale, and number and distance of parameters with F = 0. Every rank calls it; one all-reduce."""
        measures, scale = self.penalty.measure(), self.scale()
        return {
            "free_parameters": measures.free_parameters,
            "free_distance": measures.free_distance,
            "fisher_trace": scale["fisher_trace"],
            "scaled_mean": scale["scaled_mean"],
        }


def build_regularizer(
    model: Any, parameters: Mapping[str, torch.nn.Parameter], config: EwcConfig, fisher: str | None
) -> NoPenalty | EwcRegularizer:
    """Returns the regularizer of a run. Every rank calls it before the first forward and before it resumes.

    Args:
        model: with the base model's weights.
        parameters: the model's parameters, by fully qualified name.
        config: [ewc].
        fisher: folder of the Fisher and the anchor; not needed at λ = 0.
    """
    if config.strength == 0.0:
        return NoPenalty(parameters)
    if fisher is None:
        raise InputError(f"ewc.strength = {config.strength:g}: stage.json names no Fisher; submit the experiment again")
    state = load_ewc_state(fisher, model)
    return EwcRegularizer(EwcPenalty(model, state.anchor, state.fisher, config.strength, mode=cast(Any, config.mode)))


def updates_in_one_pass(config: EwcConfig, device: torch.device) -> bool:
    """Returns whether [ewc] `update` means one pass on this device: auto does on a GPU, in mode "gradient"."""
    if config.update == "auto":
        return device.type == "cuda" and config.mode == "gradient"
    return config.update == "one_pass"


def _local(parameter: torch.Tensor) -> torch.Tensor:
    """Returns this rank's elements, 1D; a view."""
    data = parameter.detach()
    return (data.to_local() if isinstance(data, DTensor) else data).view(-1)
