"""A folder of tensor files with a manifest that holds their checksums: written whole or not at all, checked when read.

Every rank calls every public function but `open_tensors`. What one rank finds wrong, all raise: otherwise the others
would wait for it in the next collective.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpc_ewc.errors import ArtefactError
from hpc_ewc.ewc.files.tensor_files import TensorReader, hash_files, write_tensors
from hpc_ewc.ewc.sharding.ranks import gather_objects, raise_on_every_rank, rank_and_world_size, wait_for_all_ranks

SCHEMA = 1
MANIFEST = "manifest.json"
AGAIN = "run the fisher stage again"

TensorGroups = Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, torch.dtype]]]
"""{stem of the files: ({name: tensor}, {name: dtype to store it in})}"""


def publish(folder: Path, kind: str, groups: TensorGroups, facts: Mapping[str, Any]) -> list[Path]:
    """Writes the tensors' files, then the manifest, each under its final name only once all are written and hashed.

    A second writer of the same tensors and facts writes the same bytes. Every rank calls it.

    Args:
        folder: on a file system that all ranks see; made if absent.
        kind: of the content, for `read_manifest`.
        groups: tensors, by the stem of their files.
        facts: for the manifest; rank 0's are written.

    Returns:
        The files, the manifest last.
    """
    rank, _ = rank_and_world_size()
    if rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
    suffix = gather_objects(f".{secrets.token_hex(4)}.part")[0]
    sizes: dict[str, int] = {}
    try:
        for stem, (tensors, dtypes) in groups.items():
            sizes |= write_tensors(folder, stem, tensors, dtypes, suffix)
        hashes = hash_files([folder / (name + suffix) for name in sizes])
        files = {name: {"size": size, "sha256": sha} for (name, size), sha in zip(sizes.items(), hashes, strict=True)}
        if rank == 0:
            for name in sizes:
                (folder / (name + suffix)).replace(folder / name)
            _write_json(folder / MANIFEST, {"schema": SCHEMA, "kind": kind, **facts, "files": files})
    finally:
        if rank == 0:
            for left in folder.glob(f"*{suffix}"):
                left.unlink(missing_ok=True)
    wait_for_all_ranks()  # no rank returns before the manifest exists
    return [folder / name for name in (*sizes, MANIFEST)]


def read_manifest(folder: Path, kind: str, *, verify: bool = True) -> dict[str, Any]:
    """Returns the manifest of a folder that `publish` wrote, after checking that its files are complete.

    Every rank calls it; one or two object all-gathers.

    Args:
        folder: to read.
        kind: the manifest's expected kind.
        verify: compare every file's sha256 (each rank hashes its share), not just sizes.

    Raises:
        ArtefactError: on every rank, with the file and its fault.
    """
    manifest: dict[str, Any] = {}
    with raise_on_every_rank():
        manifest = _read(folder / MANIFEST, kind)
        for name, facts in manifest["files"].items():
            path = folder / name
            if not path.exists():
                raise ArtefactError(f"{path}: missing, though {MANIFEST} names it; {AGAIN}")
            if path.stat().st_size != facts["size"]:
                raise ArtefactError(f"{path}: {path.stat().st_size} bytes, {MANIFEST} says {facts['size']}; {AGAIN}")
    if verify:
        found = hash_files([folder / name for name in manifest["files"]])
        for (name, facts), sha in zip(manifest["files"].items(), found, strict=True):
            if facts["sha256"] != sha:
                raise ArtefactError(f"{folder / name}: changed since it was written (sha256 {sha}); {AGAIN}")
    return manifest


def open_tensors(folder: Path, stem: str, manifest: Mapping[str, Any]) -> TensorReader:
    """Returns a reader of the files of one stem. No collective.

    Raises:
        ArtefactError: on this rank alone, where a file is no complete safetensors file.
    """
    return TensorReader([folder / name for name in manifest["files"] if name.startswith(f"{stem}-")])


def _read(path: Path, kind: str) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtefactError(f"{path.parent}: no {MANIFEST}: no EWC state, or one not finished; {AGAIN}") from None
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{path}: corrupt or not written by hpc-ewc: {error}; {AGAIN}") from None
    if not isinstance(manifest, dict) or manifest.get("kind") != kind or "files" not in manifest:
        raise ArtefactError(f"{path}: not the manifest of an EWC state ({kind}); give a folder that one was saved in")
    if manifest.get("schema") != SCHEMA:
        raise ArtefactError(f"{path}: schema {manifest.get('schema')!r}, this version reads {SCHEMA}; {AGAIN}")
    return manifest


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes all of a file or nothing: under a temporary name, flushed, renamed, the folder flushed."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
