"""The choice of an attention kernel: the fastest on the device that computes the model's own function.

Gemma 2 bounds attention scores by a soft cap. A kernel without it runs and trains, but computes another function.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from hpc_ewc.errors import ConfigError


def choose_attention(requested: str, folder: Path, device: torch.device) -> str:
    """Returns transformers' name of the attention for [model] attention = `requested`.

    auto is flex_attention on a GPU (equal to eager to 4e-7, soft cap included); eager on a CPU, where flex_attention
    has no backward.

    Raises:
        ConfigError: the kernel cannot train on this device, or has no soft cap and the model needs one.
    """
    on_gpu = device.type != "cpu"
    if requested == "auto":
        return "flex_attention" if on_gpu else "eager"
    if requested == "flex_attention" and not on_gpu:
        raise ConfigError('model.attention = "flex_attention": has no backward on a CPU; allowed here: auto, eager')
    if requested == "flash_attention_2":
        _check_flash(folder, on_gpu)
    if requested == "sdpa" and softcap_of(folder) is not None:
        raise ConfigError(f'model.attention = "sdpa": leaves out the soft cap of {folder}; take auto')
    return requested


def softcap_of(folder: Path) -> float | None:
    """Returns the soft cap on attention scores in config.json, or None."""
    value = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("attn_logit_softcapping")
    return None if value is None else float(value)


def _check_flash(folder: Path, on_gpu: bool) -> None:
    if not on_gpu:
        raise ConfigError('model.attention = "flash_attention_2": needs a GPU; allowed here: auto, eager')
    try:
        import inspect

        from flash_attn import flash_attn_func  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise ConfigError('model.attention = "flash_attention_2": flash-attn is not installed; take auto') from None
    if softcap_of(folder) is not None and "softcap" not in inspect.signature(flash_attn_func).parameters:
        raise ConfigError('model.attention = "flash_attention_2": this flash-attn has no soft cap (2.6 has); take auto')
