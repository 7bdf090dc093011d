"""The training engine on random weights and random tokens, for the scripts that measure it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from models import BATCH, CONFIGS, DTYPE, config_of


def build_engine(size: str, strength: float, like: Any = None) -> Any:
    """A `Trainer` whose weights were made in shards; every rank calls it.

    Args:
        size: of the model.
        strength: λ; 0 is training without a Fisher.
        like: another of the same size, whose model and process group are shared: only one of them is trained at a time.
    """
    import torch

    from hpc_ewc.config import EwcConfig, TrainConfig
    from hpc_ewc.ewc import EwcPenalty
    from hpc_ewc.train import collective
    from hpc_ewc.train.anchor import Elastic, Free
    from hpc_ewc.train.loop import Trainer
    from hpc_ewc.train.optimizer import build_optimizer

    if like is None:
        place = collective.join(600)
        model, parameters = build_sharded(size, place)
        optimizer = build_optimizer(parameters, TrainConfig())
    else:
        place, model, parameters, optimizer = like.device, like.model, like.parameters, like.optimizer
    hold: Any = Free(parameters)
    if strength:
        # as loaded from files: θ* in bf16 where that is exact, F stored in bf16
        anchor = {name: p.detach().bfloat16() for name, p in parameters.items()}
        fisher = {name: torch.full_like(a, 1e-6) for name, a in anchor.items()}
        hold = Elastic(EwcPenalty(model, anchor, fisher, strength))
    return Trainer(model, parameters, optimizer, hold, EwcConfig(strength), TrainConfig(), place)


def build_sharded(size: str, place: Any) -> tuple[Any, dict[str, Any]]:
    """The model and its parameters by name, normal at 0.02."""
    import torch

    from hpc_ewc.model.attention import choose_attention
    from hpc_ewc.model.gemma import build_buffers, build_empty
    from hpc_ewc.model.load import Origin
    from hpc_ewc.model.mesh import build_mesh, shard_model

    dtype = getattr(torch, DTYPE[size])
    with tempfile.TemporaryDirectory() as folder:
        config_of(size).save_pretrained(folder)
        attention = choose_attention("auto", Path(folder), place)
        model = build_empty(Path(folder), attention)
    shard_model(model, build_mesh(place.type), dtype)
    model.to_empty(device=place)
    build_buffers(model)
    model.origin = Origin(Path(), dtype, attention, "chunked")
    model.train()
    parameters = dict(model.named_parameters())
    torch.manual_seed(int(os.environ.get("RANK", "0")))
    with torch.no_grad():
        for name, parameter in parameters.items():
            shard = parameter.to_local()
            shard.normal_(0.0, 0.0 if "norm" in name else 0.02)
            shard.copy_(shard.bfloat16())  # as a published model is
    return model, parameters


def synthetic_batch(size: str, step: int = 0) -> Any:
    """This rank's random tokens of a step, as the loader gives them."""
    import numpy as np
    import torch
    import torch.distributed as dist

    from hpc_ewc.data.loader import StepBatch

    rows, length = BATCH[size]
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    generator = torch.Generator().manual_seed(1000 * step + int(os.environ.get("RANK", "0")))
    ids = torch.randint(1, CONFIGS[size]["vocab_size"], (rows, length), generator=generator)
    return StepBatch(step, np.arange(rows * ranks), rows * ranks * (length - 1), ({"input_ids": ids, "labels": ids},))
