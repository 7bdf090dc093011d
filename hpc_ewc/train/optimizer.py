"""AdamW over shards, its learning rate as a function of the step alone, and its state by parameter name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from hpc_ewc.config import TrainConfig

MOMENTS = ("exp_avg", "exp_avg_sq")


def build_optimizer(parameters: Mapping[str, torch.nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over parameters by name. Fused: one pass over memory for each tensor, on a GPU and on a CPU."""
    return torch.optim.AdamW(
        list(parameters.values()),
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate_at(step: int, total: int, config: TrainConfig) -> float:
    """Learning rate of optimizer step `step` (from 0) of `total`: linear warm-up from 0, then the schedule.

    As transformers' get_cosine_schedule_with_warmup and its siblings, so that the first step has rate 0 where there
    is a warm-up, and runs compare with those of the paper's Trainer. A function of the step: nothing to checkpoint.
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
    """Give every group this rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]
) -> dict[str, dict[str, torch.Tensor]]:
    """AdamW's moments by moment and parameter name, laid out as the parameters: what a checkpoint holds.

    Written by hand: torch's get_optimizer_state_dict steps a fresh optimizer to find out what its state looks like.
    Moments of an optimizer that has made no step are made, as zeros, so that a checkpoint can be read into them.
    """
    for parameter in parameters.values():
        state = optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=_step_device(parameter))
            for moment in MOMENTS:
                state[moment] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return {moment: {n: optimizer.state[p][moment] for n, p in parameters.items()} for moment in MOMENTS}


def set_step_count(optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Say how many steps each parameter has seen, for AdamW's bias correction: all of them, always."""
    for state in optimizer.state.values():
        state["step"].fill_(float(steps))


def _step_device(parameter: Any) -> torch.device:
    return torch.device(parameter.device)  # the fused kernel wants it beside the parameter
