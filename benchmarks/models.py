"""Random Gemma 2 models for the benchmarks: one for a CPU, one with the shapes of the real 2B, one for checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CONFIGS: dict[str, dict[str, int]] = {
    "tiny": {
        "vocab_size": 2048, "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "query_pre_attn_scalar": 32,
        "sliding_window": 64,
    },
    "small": {
        "vocab_size": 16000, "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 48, "query_pre_attn_scalar": 48,
        "sliding_window": 64,
    },
    "gemma2-2b": {
        "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
    },
}  # fmt: skip
DTYPE = {"tiny": "float32", "small": "float32", "gemma2-2b": "bfloat16"}
"""Compute dtype in training; masters are fp32."""
BATCH = {"tiny": (2, 128), "small": (4, 256), "gemma2-2b": (1, 4096)}
"""Sequences per rank and step, tokens of each."""


def config_of(size: str, **changes: int) -> Any:
    """Return the model's configuration, soft caps and tied weights included."""
    from transformers import Gemma2Config

    softcaps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    return Gemma2Config(**CONFIGS[size] | changes, **softcaps, tie_word_embeddings=True, max_position_embeddings=8192)


def build_plain(size: str, device: str) -> Any:
    """Return a random transformers model in fp32, in evaluation mode."""
    import torch
    from transformers import Gemma2ForCausalLM

    torch.manual_seed(0)
    config = config_of(size)
    config._attn_implementation, config.use_cache = "eager", False
    with torch.device(device):
        return Gemma2ForCausalLM(config).float().eval()


def save_random(size: str, folder: Path, **changes: int) -> None:
    """Write a Hugging Face folder with random weights in bfloat16, as models are published."""
    import torch
    from transformers import Gemma2ForCausalLM

    torch.manual_seed(0)
    Gemma2ForCausalLM(config_of(size, **changes)).bfloat16().save_pretrained(folder)


def parameter_sizes(size: str) -> list[int]:
    """Return the number of elements of each tensor."""
    import torch
    from transformers import Gemma2ForCausalLM

    with torch.device("meta"):
        return [parameter.numel() for parameter in Gemma2ForCausalLM(config_of(size)).parameters()]
