"""The EWC state on disk: a Fisher and its anchor as safetensors, and a manifest that says what they are.

    fisher-0000i-of-0000n.safetensors   F, {fqn: tensor}, fp32 or bf16
    anchor-0000i-of-0000n.safetensors   θ*, each tensor in the smallest dtype that loses nothing
    manifest.json                       facts given by the caller, checksums, a summary of F; written last

The files hold full tensors under their names: they are the same to the byte at any world size, load at any other,
and open with any safetensors reader.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpc_ewc.errors import ArtefactError, InputError, did_you_mean
from hpc_ewc.ewc.kernels import tiles
from hpc_ewc.ewc.manifest import AGAIN, agreeing, open_part, publish, read_manifest
from hpc_ewc.ewc.shards import check_layout, local_flat, max_over_ranks, reduce_elements, trainable_parameters
from hpc_ewc.ewc.summary import summarize

_OWN_KEYS = ("schema", "kind", "fisher_dtype", "files", "summary")
_KIND = "ewc_state"


@dataclass(frozen=True)
class EwcState:
    """What EWC remembers of the old task.

    Attributes:
        fisher: F, {fqn: tensor}, in its stored dtype.
        anchor: θ*, {fqn: tensor}, each in its stored dtype.
        manifest: what was said at saving, with `files` and `summary`.
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
    """Writes the state; every rank calls it, and each writes its own shard's bytes into the shared files.

    Files appear under their final names once all are whole and hashed, the manifest last. A second writer of the
    same state writes the same bytes.

    Args:
        folder: on a file system that all ranks see; made if absent.
        fisher: F ≥ 0, {fqn: tensor}, plain or sharded along dim 0.
        anchor: θ*, with the same names, shapes and layouts.
        manifest: facts for a reader (data set, split, prompt, labels, N, model hash, seed, versions …), JSON.
        fisher_dtype: float32 or bfloat16, which keeps F's range and 0.4 % of its precision.

    Returns:
        The files written, manifest last: what a stage lists as its outputs.

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
    bad = _bad_entries(fisher, anchor)
    if bad:
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
    """The state in `folder`, laid out as the trainable parameters of `model`, or as full CPU tensors without one.

    Every rank calls it; each reads its own rows of each tensor, at any world size, bit for bit what was saved.

    Args:
        folder: that `save_ewc_state` wrote.
        model: plain or `fully_shard`-ed, before its first forward; on its device, in its layout.
        model_hash: of the model about to be trained; refused if the manifest names another.
        verify: compare the sha256 of every file first (each rank hashes its share).

    Raises:
        ArtefactError: no manifest, a file missing, cut off or changed, another model's names or shapes, F negative or
            not finite. Every rank raises the same.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, _KIND, verify)
    if model_hash is not None and manifest.get("model_hash") != model_hash:
        raise ArtefactError(
            f"{folder}: its Fisher and anchor are of model {manifest.get('model_hash')}, this one is {model_hash}; "
            f"estimate the Fisher of the model that is trained"
        )
    parts: dict[str, dict[str, Tensor]] = {}
    with agreeing():
        parameters = None if model is None else trainable_parameters(model)
        parts = {stem: _read_part(folder, stem, manifest, parameters) for stem in ("fisher", "anchor")}
    bad = _bad_entries(parts["fisher"], parts["anchor"])
    if bad:
        raise ArtefactError(f"{folder}: {bad}; {AGAIN}")
    return EwcState(parts["fisher"], parts["anchor"], manifest)


# ---------------------------------------------------------------------------------------------- reading


def _read_part(
    folder: Path, stem: str, manifest: dict[str, Any], parameters: Mapping[str, nn.Parameter] | None
) -> dict[str, Tensor]:
    files = open_part(folder, stem, manifest)
    shapes = files.shapes()
    if parameters is None:
        return {name: files.read_full(name) for name in shapes}
    for name in shapes:
        if name not in parameters:
            raise ArtefactError(
                f"{folder}: its {stem} has a tensor '{name}', which is no trainable parameter of this model"
                f"{did_you_mean(name, parameters)}; it is of another model"
            )
    for name, parameter in parameters.items():
        if name not in shapes:
            raise ArtefactError(f"{folder}: its {stem} has no tensor '{name}', a trainable parameter of this model")
        if shapes[name] != tuple(parameter.shape):
            raise ArtefactError(
                f"{folder}: its {stem} of '{name}' has shape {list(shapes[name])}, this model's parameter "
                f"{list(parameter.shape)}; it is of another model"
            )
    return {name: files.read_like(name, parameter) for name, parameter in parameters.items()}


# ---------------------------------------------------------------------------------------------- checking


def _bad_entries(fisher: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> str | None:
    """The first tensor that cannot be one, in words; the same answer on every rank."""
    tensors = [*fisher.values(), *anchor.values()]
    rows = torch.zeros(len(tensors), 1, dtype=torch.float64, device=local_flat(tensors[0]).device)
    for index, (row, tensor) in enumerate(zip(rows, tensors, strict=True)):
        for (values,) in tiles(local_flat(tensor)):
            good = values.isfinite()
            row[0] += (~(good & (values >= 0) if index < len(fisher) else good)).sum()
    counts = reduce_elements(rows, tensors)[:, 0].tolist()
    for name, count in zip(fisher, counts[: len(fisher)], strict=True):
        if count:
            return f"the Fisher of '{name}' has {int(count)} entries that are negative or not finite"
    for name, count in zip(anchor, counts[len(fisher) :], strict=True):
        if count:
            return f"the anchor of '{name}' has {int(count)} entries that are not finite"
    return None


def _lossless_dtypes(anchor: Mapping[str, Tensor]) -> dict[str, torch.dtype]:
    """The smallest dtype each tensor survives bit for bit. Every rank calls it; one all-reduce."""
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
