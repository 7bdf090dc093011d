"""What holds the model: EWC's penalty, or for λ = 0 nothing but the distance to where training began."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from hpc_ewc.config import EwcConfig
from hpc_ewc.model.mesh import SHARD_AXIS

if TYPE_CHECKING:
    from hpc_ewc.ewc import EwcPenalty, OnePass

TILE = 1 << 24
"""Elements measured at a time: 64 MiB of fp32."""


class Held(NamedTuple):
    """penalty: λ/2 Σ F (θ−θ*)²; distance: ‖θ−θ*‖; largest_step: the largest lr·λ·F."""

    penalty: float
    distance: float
    largest_step: float


class Free:
    """λ = 0: adds nothing, measures ‖θ−θ*‖ to a copy of the parameters as they are now.

    The copy is bf16 where that loses nothing, as for a base model stored in bf16: 2 bytes a parameter, not 4.
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
    def measure(self, learning_rate: float) -> Held:
        """Every rank calls it; one all-reduce over the shard axis."""
        squared = torch.zeros((), dtype=torch.float64, device=next(iter(self._anchor.values())).device)
        for name, parameter in self._parameters.items():
            pairs = zip(torch.split(_local(parameter), TILE), torch.split(self._anchor[name], TILE), strict=True)
            for theta, anchor in pairs:
                delta = theta - anchor
                squared += torch.dot(delta, delta)
        first = next(iter(self._parameters.values()))
        if isinstance(first, DTensor):  # over the ranks that share the elements, not over replicas of them
            dist.all_reduce(squared, group=first.device_mesh.get_group(SHARD_AXIS))
        return Held(0.0, math.sqrt(float(squared)), 0.0)

    def in_one_pass(self, optimizer: torch.optim.Optimizer) -> None:
        """Nothing to add to AdamW."""

    def scale(self) -> dict[str, float]:
        """Nothing to say: there is no Fisher."""
        return {}

    def summary(self) -> dict[str, Any]:
        """Nothing to say: without a Fisher every parameter is free."""
        return {}


class Elastic:
    """λ > 0: an `EwcPenalty` in the words of the loop."""

    def __init__(self, penalty: EwcPenalty) -> None:
        self._penalty = penalty
        self.add_gradient_ = penalty.add_gradient_
        self.proximal_step_ = penalty.proximal_step_

    def measure(self, learning_rate: float) -> Held:
        """Every rank calls it; one all-reduce over the shard axis."""
        measures = self._penalty.measure()
        return Held(measures.value, measures.distance, self._penalty.largest_step(learning_rate))

    def scale(self) -> dict[str, float]:
        """The trace of F, and λ·tr F/P, the penalty's mean curvature: λ means nothing without the scale of its F."""
        trace, penalty = self._penalty.trace(), self._penalty
        return {"fisher_trace": trace, "scaled_mean": penalty.strength * trace / penalty.parameter_count}

    def in_one_pass(self, optimizer: torch.optim.Optimizer) -> OnePass | None:
        """Clipping, penalty and AdamW at once; None, and a warning, where the compiler does not work."""
        from hpc_ewc.ewc import OnePass

        made = OnePass(self._penalty, optimizer)
        return made if made.works else None

    def summary(self) -> dict[str, Any]:
        """The scale, and the parameters that no λ holds: their Fisher is zero. Every rank calls it; one all-reduce."""
        count, distance = self._penalty.free_parameters()
        return {"free_parameters": count, "free_distance": distance, **self.scale()}


def build_hold(
    model: Any, parameters: Mapping[str, torch.nn.Parameter], config: EwcConfig, fisher: str | None
) -> Free | Elastic:
    """What holds `model` in a run; before the first forward, and before a checkpoint is read into it.

    Args:
        model: with the base model's weights in it.
        parameters: its own, by name.
        config: [ewc].
        fisher: folder of the Fisher and the anchor; not needed at λ = 0.
    """
    if config.strength == 0.0:
        return Free(parameters)
    from hpc_ewc.errors import InputError
    from hpc_ewc.ewc import EwcPenalty, load_ewc_state

    if fisher is None:
        raise InputError(f"ewc.strength = {config.strength:g}: stage.json names no Fisher; submit the experiment again")
    state = load_ewc_state(fisher, model)
    return Elastic(EwcPenalty(model, state.anchor, state.fisher, config.strength, mode=cast(Any, config.mode)))


def wants_one_pass(config: EwcConfig, device: torch.device) -> bool:
    """Whether [ewc] `update` asks for one pass on this device: auto is one pass on a GPU, in mode "gradient"."""
    if config.update == "auto":
        return device.type == "cuda" and config.mode == "gradient"
    return config.update == "one_pass"


def _local(parameter: torch.Tensor) -> torch.Tensor:
    """This rank's elements, 1D; a view."""
    data = parameter.detach()
    return (data.to_local() if isinstance(data, DTensor) else data).view(-1)
