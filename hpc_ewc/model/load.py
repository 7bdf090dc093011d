"""Loading a Hugging Face checkpoint from its files into this rank's shards: no rank ever holds the whole model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from hpc_ewc.data.tokenizer import load_tokenizer
from hpc_ewc.errors import InputError
from hpc_ewc.hub import PREFETCH, is_hub_id
from hpc_ewc.model.attention import choose_attention
from hpc_ewc.model.build import build_buffers, build_empty, is_tied
from hpc_ewc.model.loss import LossKind
from hpc_ewc.model.mesh import shard_model

FILES = ["*.safetensors", "*.json", "tokenizer*", "*.model"]


@dataclass(frozen=True)
class Origin:
    """The origin of a model and the kernels that compute it: `model.origin`, for exports and manifests.

    Attributes:
        folder: that it was loaded from.
        dtype: of compute.
        attention: transformers' name of the attention.
        loss: [model] loss.
        tokenizer_hash: as `load_tokenizer` gives it; None if the folder has no tokenizer.json.
    """

    folder: Path
    dtype: torch.dtype
    attention: str
    loss: str
    tokenizer_hash: str | None = None


def load_model(
    path: str | Path,
    mesh: DeviceMesh | None = None,
    *,
    dtype: torch.dtype | str = "bfloat16",
    attention: str = "auto",
    loss: LossKind = "chunked",
    revision: str | None = None,
) -> Any:
    """Returns the model of a folder or hub id, in training mode. With a mesh, every rank of the mesh calls it.

    With a mesh, parameters are fp32 DTensors, sharded and filled from the files slice by slice, computing in
    `dtype`. Without one, it is a plain module with parameters of `dtype` on the CPU.

    Args:
        path: Hugging Face folder with safetensors, or hub id.
        mesh: from `build_mesh`.
        dtype: of compute.
        attention: [model] attention.
        loss: [model] loss, for `model(input_ids, loss_labels=…)`.
        revision: commit, for a hub id.

    Raises:
        InputError: no checkpoint, another architecture, tensors missing or of other shapes, or a tokenizer that is not
            the model's.
    """
    folder = find_model(path, revision)
    dtype = dtype if isinstance(dtype, torch.dtype) else {"bfloat16": torch.bfloat16, "float32": torch.float32}[dtype]
    device = torch.device("cpu")
    if mesh is not None and mesh.device_type != "cpu":
        device = torch.device(mesh.device_type, torch.cuda.current_device())
    chosen = choose_attention(attention, folder, device)
    model = build_empty(folder, chosen, loss)
    tokenizer_hash = None
    if (folder / "tokenizer.json").is_file():
        tokenizer_hash = load_tokenizer(folder).hash  # refuses one whose ids the embedding has no rows for
    check_tied(model)
    if mesh is None:
        model.to(dtype)
    else:
        shard_model(model, mesh, dtype)
    model.to_empty(device=device)
    if mesh is None:  # to_empty gives each module a tensor of its own; FSDP2 keeps shared parameters shared
        model.lm_head.weight = model.model.embed_tokens.weight
    check_tied(model)
    read_weights(model, folder)
    build_buffers(model)
    model.origin = Origin(folder, dtype, chosen, loss, tokenizer_hash)
    model.train()
    return model


def find_model(path: str | Path, revision: str | None = None) -> Path:
    """Returns the local folder of a model: `path` itself, or the hub's snapshot, downloaded if it is not in the cache.

    Raises:
        InputError: neither a folder nor available from the hub.
    """
    if Path(path).is_dir():
        return Path(path).absolute()
    if os.sep in str(path) and not is_hub_id(str(path)):
        raise InputError(f"{path}: no such folder; model.path must be a Hugging Face folder or hub id")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(path), revision=revision, allow_patterns=FILES))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"model.path = {str(path)!r}: neither a folder here nor in the hub's cache ({reason}); "
            f"run `{PREFETCH}` where there is a network"
        ) from None


def read_weights(model: nn.Module, folder: Path) -> None:
    """Fills the model's parameters in place from the folder's safetensors; each rank reads its own slices alone.

    Raises:
        InputError: no safetensors, a tensor missing, or one of another shape.
    """
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"{folder}: no *.safetensors; convert the checkpoint with transformers' save_pretrained")
    reader = HuggingFaceStorageReader(str(folder))
    try:
        stored = reader.read_metadata().state_dict_metadata
    except Exception as error:
        raise InputError(f"{folder}: safetensors cannot be read: {error}; the download may be cut off") from None
    wanted = dict(model.named_parameters())  # a tied weight is here once, under the embedding's name
    missing = sorted(wanted.keys() - stored.keys())
    if missing:
        raise InputError(f"{folder}: {len(missing)} tensors are missing, such as {missing[0]!r}")
    for name, parameter in wanted.items():
        size = getattr(stored[name], "size", None)
        if size != parameter.shape:
            raise InputError(
                f"{folder}: {name} is {list(size or ())} in the files and {list(parameter.shape)} by config.json"
            )
    if any(isinstance(parameter, DTensor) for parameter in wanted.values()):
        try:
            load({name: p.detach() for name, p in wanted.items()}, storage_reader=reader)
        except CheckpointException as error:  # it is no Exception, so no caller would record it
            raise InputError(f"{folder}: weights cannot be read: {error}") from error
    else:
        _read_whole(wanted, folder)


@torch.no_grad()
def _read_whole(wanted: dict[str, nn.Parameter], folder: Path) -> None:
    """Reads whole tensors in one process, where DCP would warn that there is no process group."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in wanted.keys() & set(tensors.keys()):
                wanted[name].copy_(tensors.get_tensor(name))


def check_tied(model: Any) -> None:
    """Checks that head and embedding are one tensor, as this training and EWC's Fisher assume of Gemma.

    Raises:
        InputError: config.json says that they are separate.
    """
    if not getattr(model.config, "tie_word_embeddings", True):
        raise InputError("config.json: tie_word_embeddings = false; Gemma ties head and embedding, and so does this")
    assert is_tied(model), "head and embedding have become two tensors"
