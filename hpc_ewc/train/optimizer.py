"""AdamW over shards, its learning rate as a function of the step alone, and its state by parameter name."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from hpc_ewc.config import TrainConfig
from hpc_ewc.ewc.penalty.fused_adamw import MOMENTS, adamw_state


def build_optimizer(parameters: Mapping[str, torch.nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """Returns AdamW over the parameters. It is fused: one pass over memory for each tensor, on a GPU and on a CPU."""
    return torch.optim.AdamW(
        list(parameters.values()),
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate_at(step: int, total: int, config: TrainConfig) -> float:
    """Returns the learning rate of step `step` (from 0) of `total`: linear warm-up from 0, then the schedule.

    It equals transformers' get_cosine_schedule_with_warmup and its siblings, so that the first step has rate 0 where
    there is a warm-up, and runs compare with those of the paper's Trainer. As a function of the step alone, it needs no
    checkpoint.
    """
    warmup = math.ceil(config.warmup_ratio * total)
    if step < warmup:
        return config.learning_rate * step / max(1, warmup)
    progress = (step - warmup) / max(1, total - warmup)
    if config.schedule == "cosine":
        return config.learning_rate * max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
    if config.schedule == "linear":
        return config.learning_rate * max(0.0, 1.0 - progress)
    return config.learning_rate


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]
) -> dict[str, dict[str, torch.Tensor]]:
    """Returns AdamW's moments for a checkpoint: {moment: {fqn: tensor}}, laid out as the parameters.

    Moments that do not exist yet are made, as zeros, so that a checkpoint can be read into them. torch's
    get_optimizer_state_dict would step a new optimizer to make them.
    """
    states = {name: adamw_state(optimizer, parameter) for name, parameter in parameters.items()}
    return {moment: {name: state[moment] for name, state in states.items()} for moment in MOMENTS}


def set_step_count(optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Sets the number of steps of every parameter, for AdamW's bias correction."""
    for state in optimizer.state.values():
        state["step"].fill_(float(steps))
