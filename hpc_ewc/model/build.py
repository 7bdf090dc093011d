"""Which models this project trains, and the one thing it adds to them: a loss computed inside the root's forward.

Gemma 2 and Gemma 3 text models are transformers' own. A subclass adds `loss_labels` to `forward`, since under FSDP2
the head's weight is whole only between the root's own hooks.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from hpc_ewc.errors import InputError
from hpc_ewc.model.loss import LossKind, build_loss

FAMILIES = {
    "gemma2": ("transformers.models.gemma2", "Gemma2Config", "Gemma2ForCausalLM"),
    "gemma3_text": ("transformers.models.gemma3", "Gemma3TextConfig", "Gemma3ForCausalLM"),
}
"""model_type in config.json → package, configuration class, model class."""


def model_type(folder: Path) -> str:
    """`model_type` of the folder's config.json, one of `FAMILIES`.

    Raises:
        InputError: no config.json there, or another kind of model.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder}: no config.json; model.path must be a Hugging Face folder or hub id") from None
    except ValueError as error:
        raise InputError(f"{folder / 'config.json'}: not JSON: {error}") from None
    kind = config.get("model_type")
    if kind not in FAMILIES:
        hint = "; of a Gemma 3 with images, export the text model first" if kind == "gemma3" else ""
        raise InputError(f"{folder}: model_type is {kind!r}; allowed are {', '.join(FAMILIES)}{hint}")
    return str(kind)


def build_empty(folder: Path, attention: str, loss: LossKind = "chunked") -> Any:
    """The model of a folder on the meta device: every parameter in its place, none with memory.

    Args:
        folder: with config.json.
        attention: what transformers calls `attn_implementation`.
        loss: how `forward(loss_labels=…)` computes head and cross-entropy.

    Raises:
        InputError: not a model of `FAMILIES`.
    """
    package, config_name, _ = FAMILIES[kind := model_type(folder)]
    module = importlib.import_module(f"{package}.configuration_{package.rsplit('.', 1)[1]}")
    config = getattr(module, config_name).from_pretrained(folder)
    config._attn_implementation = attention
    config.use_cache = False
    with torch.device("meta"):
        # Masters are fp32 whatever the files hold; transformers would take the dtype in config.json.
        model = _trainable_class(kind)(config).to(torch.float32)
    model.loss_of = build_loss(loss, softcap=getattr(config, "final_logit_softcapping", None))
    return model


def build_buffers(model: Any) -> None:
    """Fill the buffers that `to_empty` left as garbage (rotary frequencies, the embedding's scale), on their device.

    They are in no checkpoint: a module of the same configuration computes them when it is built, so each is built
    again, alone, on the CPU. Embeddings are built with one row: the scale does not depend on the rows.
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
    """Head and embedding are one parameter, as the configuration says they must be."""
    return model.lm_head.weight is model.model.embed_tokens.weight


def _trainable_class(kind: str) -> Any:
    package, _, name = FAMILIES[kind]
    parent = getattr(importlib.import_module(f"{package}.modeling_{package.rsplit('.', 1)[1]}"), name)
    return type(name, (_LossInForward, parent), {"__module__": parent.__module__})


class _LossInForward(nn.Module):
    """Mixed in before a transformers model: `forward(input_ids, loss_labels=labels)` is the summed loss."""

    loss_of: Any

    def forward(self, *args: Any, loss_labels: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """The model's output; with `loss_labels`, Σ −log p(label) over labels that are not -100, as fp32 scalar.

        Args:
            args: see transformers.
            loss_labels: [B, T] int64, under their tokens as in transformers: row b is scored on
                loss_labels[b, 1:] given input_ids[b, :-1].
            kwargs: see transformers.
        """
        if loss_labels is None:
            return super().forward(*args, **kwargs)
        hidden = cast(Any, self).model(*args, use_cache=False, **kwargs).last_hidden_state  # [B, T, H]
        # Shifting the labels, not the states, keeps `hidden` in one piece: the last position has no label.
        shifted = nn.functional.pad(loss_labels[:, 1:], (0, 1), value=-100)
        return self.loss_of(hidden.flatten(0, 1), cast(Any, self).lm_head.weight, shifted.flatten())
