"""Activation checkpointing and torch.compile for each decoder layer.

Each layer's `forward` is wrapped on the instance, inside FSDP2's hooks, so parameter names do not change: the Fisher,
the anchor and the checkpoints use them.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts, noop_context_fn

SAVED = frozenset({torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten._grouped_mm.default})
"""Results that "selective" keeps: products with weights. It recomputes attention scores (T²), norms and activations."""


def prepare_layers(model: Any, activation_checkpointing: str = "none", *, compile_layers: bool = False) -> None:
    """Wraps the forward of each decoder layer of a model, sharded or plain. Call it before the first forward.

    Args:
        model: from `load_model`.
        activation_checkpointing: "full" keeps a layer's input alone and runs its forward again in the backward;
            "selective" keeps the results of its matrix products too and recomputes the rest, which is cheap.
        compile_layers: compile each layer by torch.compile; all share one graph, compiled at the first step.
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
