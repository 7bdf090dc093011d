"""Gemma models of a few thousand parameters, sharded as training shards them, and exact arithmetic to judge them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.overrides import TorchFunctionMode
from transformers import Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig

VOCABULARY = 101


class Float64(TorchFunctionMode):
    """Inside it, what Transformers casts to float32 (norms, softmax) becomes float64: an oracle without rounding."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.float:
            return args[0].double()
        if kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


def build_gemma(kind: str = "gemma2", *, seed: int = 0, **overrides: Any) -> nn.Module:
    """A random Gemma 2 or Gemma 3 text model in float32: 2 layers, width 28, tied embeddings, norms that are not 0.

    The vocabulary (101) and the width of the norms do not divide by 2, 3 or 4: shards are uneven.
    """
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 28,
        "intermediate_size": 44,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 4,
        "max_position_embeddings": 64,
        "final_logit_softcapping": 5.0,
        "attn_logit_softcapping": 5.0,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "attn_implementation": "eager",
        "use_cache": False,
    }
    settings |= overrides
    torch.manual_seed(seed)
    if kind == "gemma2":
        model: nn.Module = Gemma2ForCausalLM(Gemma2Config(**settings))
    else:
        settings |= {"layer_types": ["sliding_attention", "full_attention"]}
        model = Gemma3ForCausalLM(Gemma3TextConfig(**settings))
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if "norm" in name else 0.1
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def build_mesh(world_size: int, replicate: int = 1) -> DeviceMesh:
    """A 1D mesh, or the HSDP mesh (replicate, shard)."""
    if replicate == 1:
        return init_device_mesh("cpu", (world_size,), mesh_dim_names=("dp_shard",))
    return init_device_mesh("cpu", (replicate, world_size // replicate), mesh_dim_names=("dp_replicate", "dp_shard"))


def shard_gemma(model: Any, mesh: DeviceMesh, policy: MixedPrecisionPolicy | None = None) -> Any:
    """`fully_shard` on each layer, then on the model, which holds the tied embedding."""
    options: dict[str, Any] = {"mesh": mesh}
    if policy is not None:
        options["mp_policy"] = policy
    for layer in model.model.layers:
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def shard_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """The full `tensor`, the same on all ranks, laid out as `parameter`."""
    if not isinstance(parameter, DTensor):
        return tensor.clone()
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)


def full(tensor: Tensor) -> Tensor:
    """The whole tensor on every rank."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def relative_error(got: Tensor, want: Tensor) -> float:
    """‖got − want‖ / ‖want‖ in float64 (‖got‖ where want is zero)."""
    got, want = full(got).detach().double(), want.detach().double()
    scale = float(want.norm())
    return float((got - want).norm()) / scale if scale else float(got.norm())
