"""The sums of an unfinished Fisher estimate on disk, from which a later job resumes at any world size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from hpc_ewc.errors import ArtefactError
from hpc_ewc.ewc.files.manifest import open_tensors, publish, read_manifest
from hpc_ewc.ewc.fisher.results import FisherSums
from hpc_ewc.ewc.sharding.ranks import raise_on_every_rank
from hpc_ewc.ewc.sharding.shards import trainable_parameters

_KIND = "fisher_sums"


def save_fisher_sums(folder: Path, sums: FisherSums, facts: Mapping[str, Any]) -> None:
    """Writes the sums, bit for bit, and the caller's facts, such as its position. Every rank calls it."""
    counts = {"examples": sums.examples, "skipped": sums.skipped, "groups": sums.groups}
    dtypes = {name: tensor.dtype for name, tensor in sums.tensors.items()}
    publish(folder, _KIND, {"sums": (sums.tensors, dtypes)}, {"counts": counts, "facts": dict(facts)})


def load_fisher_sums(folder: Path, model: nn.Module) -> tuple[FisherSums, dict[str, Any]]:
    """Returns the sums, laid out as the trainable parameters of `model`, and the facts. Every rank calls it.

    Raises:
        ArtefactError: on every rank: missing, damaged, or of another model.
    """
    manifest = read_manifest(folder, _KIND)
    tensors = {}
    with raise_on_every_rank():
        reader, parameters = open_tensors(folder, "sums", manifest), trainable_parameters(model)
        if reader.shapes != {name: tuple(p.shape) for name, p in parameters.items()}:
            raise ArtefactError(f"{folder}: its sums belong to another model; delete the folder")
        tensors = {name: reader.read(name, parameter) for name, parameter in parameters.items()}
    counts = manifest["counts"]
    return FisherSums(tensors, counts["examples"], counts["skipped"], counts["groups"]), manifest["facts"]
