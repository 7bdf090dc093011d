"""Build the training engine on random weights and random tokens, for the scripts that measure it."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models import BATCH, CONFIGS, DTYPE, config_of


@dataclass(frozen=True)
class Choice:
    """Settings of the engine, named as the keys of [model] and [train]."""

    attention: str = "auto"
    loss: str = "chunked"
    activation_checkpointing: str = "none"
    compile: bool = False
    dtype: str | None = None
    """None: the dtype of the model size."""
    layers: int | None = None
    """None: all layers of the model size."""


USUAL = Choice()


def build_engine(size: str, strength: float, like: Any = None, choice: Choice = USUAL) -> Any:
    """Return a `Trainer` whose weights were made in shards; every rank calls it.

    Args:
        size: name of the model size.
        strength: λ; 0 trains without a Fisher.
        like: another trainer of this size, whose model and process group are reused; train only one of them at a time.
        choice: settings of the engine.
    """
    import torch

    from hpc_ewc.config import EwcConfig, TrainConfig
    from hpc_ewc.ewc import EwcPenalty
    from hpc_ewc.model.layers import prepare_layers
    from hpc_ewc.train import process_group
    from hpc_ewc.train.optimizer import build_optimizer
    from hpc_ewc.train.regularizer import EwcRegularizer, NoPenalty
    from hpc_ewc.train.trainer import Trainer

    if like is None:
        place = process_group.join(600)
        model, parameters = build_sharded(size, place, choice)
        prepare_layers(model, choice.activation_checkpointing, compile_layers=choice.compile)
        optimizer = build_optimizer(parameters, TrainConfig())
    else:
        place, model, parameters, optimizer = like.device, like.model, like.parameters, like.optimizer
    regularizer: Any = NoPenalty(parameters)
    if strength:
        # as loaded from files: θ* in bf16 where that is exact, F stored in bf16
        anchor = {name: p.detach().bfloat16() for name, p in parameters.items()}
        fisher = {name: torch.full_like(a, 1e-6) for name, a in anchor.items()}
        regularizer = EwcRegularizer(EwcPenalty(model, anchor, fisher, strength))
    return Trainer(model, parameters, optimizer, regularizer, EwcConfig(strength), TrainConfig(), place)


def build_sharded(size: str, place: Any, choice: Choice = USUAL) -> tuple[Any, dict[str, Any]]:
    """Return the model and its parameters by name, normal with σ = 0.02; each rank makes only its shards."""
    import torch

    from hpc_ewc.model.attention import choose_attention
    from hpc_ewc.model.build import build_buffers, build_empty
    from hpc_ewc.model.load import Origin
    from hpc_ewc.model.mesh import build_mesh, shard_model

    dtype = getattr(torch, choice.dtype or DTYPE[size])
    with tempfile.TemporaryDirectory() as folder:
        changes = {} if choice.layers is None else {"num_hidden_layers": choice.layers}
        config_of(size, **changes).save_pretrained(folder)
        attention = choose_attention(choice.attention, Path(folder), place)
        model = build_empty(Path(folder), attention, choice.loss)  # type: ignore[arg-type]
    shard_model(model, build_mesh(place.type), dtype)
    model.to_empty(device=place)
    build_buffers(model)
    model.origin = Origin(Path(), dtype, attention, choice.loss)
    model.train()
    parameters = dict(model.named_parameters())
    torch.manual_seed(int(os.environ.get("RANK", "0")))
    with torch.no_grad():
        for name, parameter in parameters.items():
            shard = parameter.to_local()
            shard.normal_(0.0, 0.0 if "norm" in name else 0.02)
            shard.copy_(shard.bfloat16())  # as a published model is
    return model, parameters


def holdings(engine: Any) -> dict[str, int]:
    """Return the bytes of this rank's shards after a step with a penalty, by kind."""
    parameters = list(engine.parameters.values())
    states = [engine.optimizer.state[parameter] for parameter in parameters]
    held = engine.regularizer.penalty.shards
    return {
        "weights": local_bytes(parameters),
        "gradients": local_bytes([parameter.grad for parameter in parameters]),
        "moments": local_bytes([state[name] for state in states for name in ("exp_avg", "exp_avg_sq")]),
        "Fisher": local_bytes([part.fisher for part in held]),
        "anchor": local_bytes([part.anchor for part in held]),
    }


def local_bytes(tensors: list[Any]) -> int:
    """Return the bytes of the tensors' shards on this rank."""
    local = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]
    return sum(tensor.numel() * tensor.element_size() for tensor in local)


def synthetic_batch(size: str, step: int = 0, shape: tuple[int, int] | None = None, microbatches: int = 1) -> Any:
    """Return this rank's random tokens for a step in the loader's form; `shape`: rows at once, tokens of each."""
    import numpy as np
    import torch
    import torch.distributed as dist

    from hpc_ewc.data.loader import StepBatch

    rows, length = shape or BATCH[size]
    count = rows * microbatches * (dist.get_world_size() if dist.is_initialized() else 1)
    generator = torch.Generator().manual_seed(1000 * step + int(os.environ.get("RANK", "0")))
    vocabulary = CONFIGS[size]["vocab_size"]
    each = [torch.randint(1, vocabulary, (rows, length), generator=generator) for _ in range(microbatches)]
    parts = tuple({"input_ids": ids, "labels": ids} for ids in each)
    return StepBatch(step, np.arange(count), count * (length - 1), parts)
