"""The device mesh of a job, and FSDP2 sharding of a model on it (HSDP with replicas)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from hpc_ewc.errors import ConfigError

SHARD_AXIS = "dp_shard"
REPLICATE_AXIS = "dp_replicate"


def build_mesh(device_type: str, dp_replicate: int = 1) -> DeviceMesh:
    """Returns a mesh of all ranks: [dp_shard], or [dp_replicate, dp_shard] for HSDP. Every rank calls it.

    Raises:
        ConfigError: the number of ranks is no multiple of `dp_replicate`.
    """
    world_size = dist.get_world_size()
    if world_size % dp_replicate:
        raise ConfigError(
            f"train.dp_replicate = {dp_replicate}: does not divide the {world_size} ranks of this job; "
            "change it, or nodes and nproc_per_node in [resources.train]"
        )
    if dp_replicate == 1:
        return init_device_mesh(device_type, (world_size,), mesh_dim_names=(SHARD_AXIS,))
    shape = (dp_replicate, world_size // dp_replicate)
    return init_device_mesh(device_type, shape, mesh_dim_names=(REPLICATE_AXIS, SHARD_AXIS))


def shard_model(model: Any, mesh: DeviceMesh, dtype: torch.dtype) -> None:
    """Shards the parameters in place: a group for each layer, and one for the rest. Every rank calls it.

    Masters stay fp32 and gradients are reduced in fp32; weights are cast to `dtype` as they are gathered. The root's
    group holds the embedding, which is also the head: in two groups they would become two parameters.
    """
    policy = MixedPrecisionPolicy()
    if dtype != torch.float32:
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
