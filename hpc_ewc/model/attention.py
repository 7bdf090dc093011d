"""Which attention: the fastest on the device that computes what the model was trained with.

Gemma 2 squeezes attention scores by a soft cap. A kernel that leaves it out runs and trains, on another function.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from hpc_ewc.errors import ConfigError


def choose_attention(asked: str, folder: Path, device: torch.device) -> str:
    """The name transformers knows the attention by, for [model] `attention` = `asked`.

    auto: flex_attention on a GPU (equal to eager to 4e-7, soft cap included); eager on a CPU, where flex_attention
    has no backward.

    Raises:
        ConfigError: the kernel cannot train here, or would leave out the soft cap.
    """
    on_gpu = device.type != "cpu"
    if asked == "auto":
        return "flex_attention" if on_gpu else "eager"
    if asked == "flex_attention" and not on_gpu:
        raise ConfigError('model.attention = "flex_attention": has no backward on a CPU; allowed here: auto, eager')
    if asked == "flash_attention_2":
        _check_flash(folder, on_gpu)
    if asked == "sdpa" and softcap_of(folder) is not None:
        raise ConfigError(f'model.attention = "sdpa": leaves out the soft cap of {folder}; take auto')
    return asked


def softcap_of(folder: Path) -> float | None:
    """The soft cap on attention scores in config.json, or None."""
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
