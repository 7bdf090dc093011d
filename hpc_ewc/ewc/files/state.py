"""The EWC state on disk: a Fisher and its anchor as safetensors files, and a manifest that describes them.

    fisher-0000i-of-0000n.safetensors   F, {fqn: tensor}, fp32 or bf16
    anchor-0000i-of-0000n.safetensors   θ*, each tensor in the smallest dtype that loses nothing
    manifest.json                       facts given by the caller, checksums, a summary of F; written last

The files hold full tensors under their names: they are the same to the byte at any world size, load at any other,
and any safetensors reader opens them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpc_ewc.errors import ArtefactError, InputError
from hpc_ewc.ewc.files.manifest import AGAIN, open_tensors, publish, read_manifest
from hpc_ewc.ewc.files.summary import summarize
from hpc_ewc.ewc.sharding.ranks import max_over_ranks, raise_on_every_rank
from hpc_ewc.ewc.sharding.shards import check_layout, check_shapes, find_bad_entries, local_flat, trainable_parameters
from hpc_ewc.ewc.sharding.tiles import tiles

_OWN_KEYS = ("schema", "kind", "fisher_dtype", "files", "summary")
_KIND = "ewc_state"


@dataclass(frozen=True)
class EwcState:
    """The old task as EWC represents it: the diagonal Fisher and the weights it was estimated at.

    Attributes:
        fisher: F, {fqn: tensor}, in its stored dtype.
        anchor: θ*, {fqn: tensor}, each in its stored dtype.
        manifest: the facts given at saving, with `files` and `summary`.
    """

    fisher: dict[str, Tensor]
    anchor: dict[str, Tensor]
    manifest: dict[str, Any]


def save_ewc_state(
    folder: Path | str,
    fisher: Mapping[str, Tensor],
    anchor: Mapping[str, Tensor],
    manifest: Mapping[str, Any],
    fisher_dtype: torch.dtype = torch.float32,
) -> list[Path]:
    """Writes the state. Every rank calls it, and each writes its own shard's bytes into the shared files.

    Files appear under their final names once all are written and hashed, the manifest last. A second writer of the
    same state writes the same bytes. Collectives: all-reduces of checks and of the summary, object all-gathers of
    names and hashes.

    Args:
        folder: on a file system that all ranks see; made if absent.
        fisher: F ≥ 0, {fqn: tensor}, plain or sharded along dim 0.
        anchor: θ*, with the same names, shapes and layouts.
        manifest: facts for a reader (data set, split, prompt, labels, N, model hash, seed, versions …), JSON.
        fisher_dtype: float32 or bfloat16, which keeps F's range and 0.4 % of its precision.

    Returns:
        The files written, manifest last.

    Raises:
        InputError: F is negative or not finite, θ* is not finite, the two do not match, or the facts are not JSON.
    """
    folder = Path(folder)
    facts = _checked_facts(manifest)
    if fisher_dtype not in (torch.float32, torch.bfloat16):
        raise InputError(f"fisher_dtype is {fisher_dtype}; allowed are torch.float32 and torch.bfloat16")
    if not fisher:
        raise InputError("the Fisher has no tensor: nothing to save")
    check_layout("Fisher", fisher, anchor, "tensor of the anchor")
    if bad := find_bad_entries(fisher, anchor):
        raise InputError(f"{bad}; nothing was saved")
    facts |= {"fisher_dtype": str(fisher_dtype).removeprefix("torch."), "summary": summarize(fisher)}
    parts = {
        "fisher": (fisher, dict.fromkeys(fisher, fisher_dtype)),
        "anchor": (anchor, _lossless_dtypes(anchor)),
    }
    return publish(folder, _KIND, parts, facts)


def load_ewc_state(
    folder: Path | str, model: nn.Module | None = None, *, model_hash: str | None = None, verify: bool = True
) -> EwcState:
    """Returns the state in `folder`, laid out as the trainable parameters of `model`, or as full CPU tensors.

    Every rank calls it and reads its own rows of each tensor, at any world size, bit for bit as saved. Collectives:
    object all-gathers of faults and hashes, one all-reduce.

    Args:
        folder: written by `save_ewc_state`.
        model: plain or `fully_shard`-ed, before its first forward; its devices and layouts are taken. None: full
            tensors on the CPU.
        model_hash: of the model about to be trained; refused if the manifest names another.
        verify: compare the sha256 of every file first (each rank hashes its share).

    Raises:
        ArtefactError: no manifest, a file missing, cut off or changed, another model's names or shapes, F negative or
            not finite. Every rank raises the same.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, _KIND, verify=verify)
    if model_hash is not None and manifest.get("model_hash") != model_hash:
        raise ArtefactError(
            f"{folder}: its Fisher and anchor belong to model {manifest.get('model_hash')}, not to {model_hash}; "
            f"estimate the Fisher of the model that is trained"
        )
    parts: dict[str, dict[str, Tensor]] = {}
    with raise_on_every_rank():
        parameters = None if model is None else trainable_parameters(model)
        parts = {stem: _read_part(folder, stem, manifest, parameters) for stem in ("fisher", "anchor")}
    if bad := find_bad_entries(parts["fisher"], parts["anchor"]):
        raise ArtefactError(f"{folder}: {bad}; {AGAIN}")
    return EwcState(parts["fisher"], parts["anchor"], manifest)


# ---------------------------------------------------------------------------------------------- reading


def _read_part(
    folder: Path, stem: str, manifest: dict[str, Any], parameters: Mapping[str, nn.Parameter] | None
) -> dict[str, Tensor]:
    reader = open_tensors(folder, stem, manifest)
    if parameters is None:
        return {name: reader.read(name) for name in reader.shapes}
    check_shapes(f"{folder}: its {stem}", reader.shapes, parameters, "trainable parameter of this model")
    return {name: reader.read(name, parameter) for name, parameter in parameters.items()}


# ---------------------------------------------------------------------------------------------- checking


def _lossless_dtypes(anchor: Mapping[str, Tensor]) -> dict[str, torch.dtype]:
    """Returns the smallest dtype that keeps each tensor bit for bit. Every rank calls it; one all-reduce."""
    candidates = (torch.bfloat16, torch.float16, torch.float32)
    lossy = [int(not _survives(tensor, dtype)) for tensor in anchor.values() for dtype in candidates]
    lossy = max_over_ranks(lossy, local_flat(next(iter(anchor.values()))).device)
    chosen = {}
    for index, (name, tensor) in enumerate(anchor.items()):
        flags = lossy[index * len(candidates) : (index + 1) * len(candidates)]
        chosen[name] = next((dtype for dtype, flag in zip(candidates, flags, strict=True) if not flag), tensor.dtype)
    return chosen


def _survives(tensor: Tensor, dtype: torch.dtype) -> bool:
    return all(torch.equal(values.to(dtype).to(values.dtype), values) for (values,) in tiles(local_flat(tensor)))


def _checked_facts(manifest: Mapping[str, Any]) -> dict[str, Any]:
    for key in _OWN_KEYS:
        if key in manifest:
            raise InputError(f"the manifest's facts have a key '{key}', which save_ewc_state writes itself; rename it")
    try:
        facts: dict[str, Any] = json.loads(json.dumps(dict(manifest), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(f"the manifest's facts are not JSON: {error}") from None
    return facts
