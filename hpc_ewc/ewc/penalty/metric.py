"""The diagonal metric of an optimizer's last step, in which the proximal step of the penalty is taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hpc_ewc.errors import InputError
from hpc_ewc.ewc.sharding.shards import local_flat


@dataclass(frozen=True)
class Metric:
    """The metric sqrt(second_moment / bias_correction) + eps, and the learning rate, for one parameter.

    Attributes:
        lr: learning rate of its group.
        second_moment: Adam's v, this rank's elements, 1D; None: zero.
        bias_correction: 1 − β₂^step.
        eps: added to the root; 1 for SGD, whose metric is the identity.
    """

    lr: float
    second_moment: Tensor | None
    bias_correction: float
    eps: float


def optimizer_metrics(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Metric]:
    """Returns the metric of each of `parameters`, by name, in the last step of `optimizer`. No collective.

    Raises:
        InputError: the optimizer is neither Adam-like nor SGD, or lacks one of the parameters.
    """
    groups: dict[int, dict[str, Any]] = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in parameters.items():
        if id(parameter) not in groups:
            raise InputError(
                f"the optimizer does not hold parameter '{name}' of the penalty; build both from the same sharded model"
            )
    steps = _step_counts(optimizer, list(parameters.values()))
    return {name: _metric(optimizer, groups[id(p)], p, steps) for name, p in parameters.items()}


def _metric(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: nn.Parameter, steps: dict[int, float]
) -> Metric:
    lr = float(group["lr"])
    if isinstance(optimizer, torch.optim.SGD):
        return Metric(lr, None, 1.0, 1.0)
    if "betas" not in group or "eps" not in group:
        raise InputError(
            f"the proximal step needs Adam's second moments, and {type(optimizer).__name__} keeps none; "
            f"use Adam, AdamW or SGD, or mode 'gradient'"
        )
    if id(parameter) not in steps:  # it has had no gradient yet, so Adam has not moved it either
        return Metric(lr, None, 1.0, float(group["eps"]))
    state = optimizer.state[parameter]
    second = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
    return Metric(lr, local_flat(second), 1.0 - group["betas"][1] ** steps[id(parameter)], float(group["eps"]))


def _step_counts(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> dict[int, float]:
    """Returns each parameter's number of steps, by its id; copied at once, as a fused Adam keeps them on the device."""
    states = {id(parameter): optimizer.state.get(parameter, {}) for parameter in parameters}
    counters = {key: torch.as_tensor(state["step"]) for key, state in states.items() if "exp_avg_sq" in state}
    if not counters:
        return {}
    values = torch.stack([counter.detach().reshape(()).double() for counter in counters.values()]).tolist()
    return dict(zip(counters, values, strict=True))
