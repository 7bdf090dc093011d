"""Models of transformers, built empty, whose forward can compute the loss.

Gemma 2 and Gemma 3 text models are transformers' own. A subclass adds `loss_labels` to `forward`, since under FSDP2
the head's weight is gathered only between the root's own hooks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

from hpc_ewc.model.loss import LossKind, build_loss
from hpc_ewc.model_folder import read_family


def build_empty(folder: Path, attention: str, loss: LossKind = "chunked") -> Any:
    """Returns the model of a folder on the meta device: all its parameters, none with memory.

    Args:
        folder: with config.json.
        attention: transformers' `attn_implementation`.
        loss: how `forward(loss_labels=…)` computes head and cross-entropy.

    Raises:
        InputError: not a model of a trainable family.
    """
    config = CONFIG_MAPPING[read_family(folder)].from_pretrained(folder)
    config._attn_implementation = attention
    config.use_cache = False
    parent = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    trainable: Any = type(parent.__name__, (_LossInForward, parent), {"__module__": parent.__module__})
    with torch.device("meta"):
        # masters are fp32 whatever the files hold; transformers would take the dtype in config.json
        model = trainable(config).to(torch.float32)
    model.loss_of = build_loss(loss, softcap=getattr(config, "final_logit_softcapping", None))
    return model


def build_buffers(model: Any) -> None:
    """Fills the buffers that `to_empty` left uninitialised (rotary frequencies, the embedding's scale), in place.

    Checkpoints do not hold them: a module computes them when it is built, so each such module is built again, alone, on
    the CPU. Embeddings are built with one row, as the scale does not depend on the rows.
    """
    for module in model.modules():
        if not module._buffers:
            continue
        if isinstance(module, nn.Embedding):
            fresh = cast(Any, type(module))(1, 1, None, embed_scale=module.scalar_embed_scale)
        else:
            fresh = type(module)(module.config)
        for name, buffer in fresh.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(cast(torch.Tensor, module._buffers[name]).device)


def is_tied(model: Any) -> bool:
    """Returns whether head and embedding are one parameter."""
    return model.lm_head.weight is model.model.embed_tokens.weight


class _LossInForward(nn.Module):
    """A mixin for a transformers model: `forward(input_ids, loss_labels=labels)` returns the summed loss."""

    loss_of: Any

    def forward(self, *args: Any, loss_labels: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """Returns the model's output; with `loss_labels`, an fp32 scalar: Σ −log p(label) over labels other than -100.

        Args:
            args: as in transformers.
            loss_labels: [B, T] int64, each under its token: row b is scored on loss_labels[b, 1:] given
                input_ids[b, :-1].
            kwargs: as in transformers.
        """
        if loss_labels is None:
            return super().forward(*args, **kwargs)
        hidden = cast(Any, self).model(*args, use_cache=False, **kwargs).last_hidden_state  # [B, T, H]
        # the labels are shifted, not the states, so that `hidden` stays in one piece: the last position has no label
        shifted = nn.functional.pad(loss_labels[:, 1:], (0, 1), value=-100)
        return self.loss_of(hidden.flatten(0, 1), cast(Any, self).lm_head.weight, shifted.flatten())
