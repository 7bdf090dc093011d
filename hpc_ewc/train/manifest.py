"""The facts of manifest.json that another person needs to repeat a run: software, machine, layout, inputs."""

from __future__ import annotations

import os
import platform
import socket
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from hpc_ewc.config import render_toml
from hpc_ewc.ewc.sharding.ranks import gather_objects
from hpc_ewc.model.load import Origin
from hpc_ewc.stage import Stage, installed_versions

PACKAGES = ("hpc-ewc", "torch", "transformers", "safetensors", "tokenizers", "numpy", "liger-kernel", "flash-attn")


def training_facts(stage: Stage, origin: Origin, mesh: DeviceMesh, device: torch.device) -> dict[str, Any]:
    """Returns facts for manifest.json, the same on every rank. Every rank calls it; one object all-gather."""
    nodes = gather_objects(socket.gethostname())
    cuda = device.type == "cuda"
    return {
        "key": stage.key,
        "config": render_toml(stage.config),
        "inputs": stage.inputs,
        "coordinates": stage.coordinates,
        "versions": installed_versions(PACKAGES),
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine(),
        "gpus": dist.get_world_size() if cuda else 0,
        "cuda": torch.version.cuda if cuda else None,
        "nodes": sorted(set(nodes)),
        "world_size": dist.get_world_size(),
        "mesh": dict(zip(mesh.mesh_dim_names or (), mesh.shape, strict=True)),
        "threads": torch.get_num_threads(),
        "attention": origin.attention,
        "loss": origin.loss,
        "dtype": str(origin.dtype).removeprefix("torch."),
        "job_id": stage.job_id,
        "restart": stage.restart,
        "commit": os.environ.get("HPC_EWC_COMMIT"),
    }
