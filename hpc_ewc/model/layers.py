"""Less memory and less time for a layer: recomputed activations, torch.compile.

Each layer's `forward` is wrapped on the instance, inside FSDP2's hooks, so no parameter changes its name: the Fisher,
the anchor and the checkpoints go by names.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts, noop_context_fn

SAVED = frozenset({torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten._grouped_mm.default})
"""Kept by "selective": products with weights. Attention scores (T² of them), norms and activations are recomputed."""


def prepare_layers(model: Any, activation_checkpointing: str = "none", compile_layers: bool = False) -> None:
    """Wrap each decoder layer of a model, sharded or plain, before its first forward.

    Args:
        model: from `load_model`.
        activation_checkpointing: "full" keeps a layer's input alone and runs its forward again in the backward;
            "selective" keeps the results of its matrix products too, so that just the cheap rest runs again.
        compile_layers: torch.compile each layer; all share one graph, compiled at the first step.
    """
    for layer in model.model.layers:
        if activation_checkpointing != "none":
            layer.forward = functools.partial(
                checkpoint,
                layer.forward,
                use_reentrant=False,
                preserve_rng_state=False,  # Gemma has no dropout
                context_fn=_selective if activation_checkpointing == "selective" else noop_context_fn,
            )
        if compile_layers:
            layer.forward = torch.compile(layer.forward)


def _selective() -> Any:
    return create_selective_checkpoint_contexts(_policy)  # type: ignore[no-untyped-call]


def _policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in SAVED else CheckpointPolicy.PREFER_RECOMPUTE
