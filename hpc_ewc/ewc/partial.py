"""Half a Fisher on disk: sums that a stopped estimate goes on from, at any world size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from hpc_ewc.errors import ArtefactError
from hpc_ewc.ewc.estimate import FisherSums
from hpc_ewc.ewc.manifest import agreeing, open_part, publish, read_manifest
from hpc_ewc.ewc.shards import trainable_parameters

_KIND = "fisher_sums"


def save_fisher_sums(folder: Path, sums: FisherSums, facts: Mapping[str, Any]) -> None:
    """Writes the sums, bit for bit, and what the caller needs to go on (its position). Every rank calls it."""
    counts = {"examples": sums.examples, "skipped": sums.skipped, "groups": sums.groups}
    dtypes = {name: tensor.dtype for name, tensor in sums.tensors.items()}
    publish(folder, _KIND, {"sums": (sums.tensors, dtypes)}, {"counts": counts, "facts": dict(facts)})


def load_fisher_sums(folder: Path, model: nn.Module) -> tuple[FisherSums, dict[str, Any]]:
    """The sums laid out as the trainable parameters of `model`, and the facts given at saving. Every rank calls it.

    Raises:
        ArtefactError: on every rank: missing, damaged, or of another model.
    """
    manifest = read_manifest(folder, _KIND)
    tensors = {}
    with agreeing():
        files, parameters = open_part(folder, "sums", manifest), trainable_parameters(model)
        if files.shapes() != {name: tuple(p.shape) for name, p in parameters.items()}:
            raise ArtefactError(f"{folder}: its sums are of another model than this one; remove it")
        tensors = {name: files.read_like(name, parameter) for name, parameter in parameters.items()}
    counts = manifest["counts"]
    return FisherSums(tensors, counts["examples"], counts["skipped"], counts["groups"]), manifest["facts"]
