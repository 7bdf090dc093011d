"""The learning rate equals transformers' schedules; AdamW's state is stored by name."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import transformers

from hpc_ewc.config import TrainConfig
from hpc_ewc.train.optimizer import (
    build_optimizer,
    learning_rate_at,
    optimizer_state,
    set_learning_rate,
    set_step_count,
)

CONFIG = TrainConfig(learning_rate=0.5, warmup_ratio=0.1)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.05, 0.1, 1.0])
@pytest.mark.parametrize("total", [1, 7, 100])
def test_the_learning_rate_equals_transformers(schedule: str, warmup_ratio: float, total: int) -> None:
    config = dataclasses.replace(CONFIG, schedule=schedule, warmup_ratio=warmup_ratio)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.learning_rate)
    warmup = transformers.TrainingArguments(
        output_dir="unused", warmup_steps=warmup_ratio if warmup_ratio < 1 else total, use_cpu=True
    ).get_warmup_steps(total)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    theirs = transformers.get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    for step in range(total):
        assert learning_rate_at(step, total, config) == pytest.approx(theirs.get_last_lr()[0], rel=1e-12, abs=1e-15)
        optimizer.step()
        theirs.step()


def test_state_loaded_into_a_new_optimizer_resumes_bit_for_bit() -> None:
    def steps(
        count: int, parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer, seed: int
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            for parameter in parameters.values():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            set_learning_rate(optimizer, 1e-2)
            optimizer.step()

    parameters = {name: torch.nn.Parameter(torch.full(shape, 0.3)) for name, shape in {"a": (3, 2), "b": (5,)}.items()}
    optimizer = build_optimizer(parameters, CONFIG)
    steps(4, parameters, optimizer, seed=1)
    copies = {name: torch.nn.Parameter(p.detach().clone()) for name, p in parameters.items()}
    fresh = build_optimizer(copies, CONFIG)
    saved = optimizer_state(optimizer, parameters)
    for moment, tensors in optimizer_state(fresh, copies).items():
        for name, tensor in tensors.items():
            assert not tensor.any()
            tensor.copy_(saved[moment][name])
    set_step_count(fresh, 4)
    steps(3, parameters, optimizer, seed=2)
    steps(3, copies, fresh, seed=2)
    for name in parameters:
        assert torch.equal(parameters[name], copies[name])
