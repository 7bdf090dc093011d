"""Full tensors in safetensors files, written and read slice by slice by ranks that each hold a shard.

A safetensors file is 8 bytes of header length, a JSON header and the tensors' bytes, row by row. A shard along dim 0
is one run of those bytes, so every rank writes its own runs into the shared file: no rank gathers a tensor, and the
files are the same to the byte at any world size. Any safetensors reader opens them. The header is written here, as
safetensors' own writer needs all bytes of a file in one process.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from hpc_ewc.errors import ArtefactError, InputError
from hpc_ewc.ewc.sharding.ranks import gather_objects, rank_and_world_size, wait_for_all_ranks
from hpc_ewc.ewc.sharding.shards import local_flat

FILE_BYTES = 4 << 30
"""A file takes tensors up to this size: several files are hashed, and read, by several ranks at once."""
_CHUNK = 1 << 22
"""Elements converted and written at a time."""
_DTYPE_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True)
class _Location:
    """The file of a tensor, the offset of its first byte in it, and the dtype it is stored in."""

    file: str
    offset: int
    dtype: torch.dtype


def write_tensors(
    folder: Path, stem: str, tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype], suffix: str
) -> dict[str, int]:
    """Writes and flushes `<stem>-00001-of-0000n.safetensors`, each under a temporary name that ends in `suffix`.

    The caller renames the files. Every rank calls it, with the same names; two barriers.

    Args:
        folder: on a file system that all ranks see.
        stem: "fisher" or "anchor".
        tensors: {name: tensor}, plain (rank 0 writes it) or a DTensor sharded along dim 0.
        dtypes: {name: dtype to store the tensor in}; the conversion rounds to nearest.
        suffix: of the temporary names, the same on all ranks.

    Returns:
        {final name: size in bytes}.
    """
    locations, headers, sizes = _plan_files(stem, tensors, dtypes)
    rank, _ = rank_and_world_size()
    if rank == 0:
        for name, header in headers.items():
            with (folder / (name + suffix)).open("wb") as file:
                file.write(header)
                file.truncate(sizes[name])
    wait_for_all_ranks()
    written: set[Path] = set()
    for name, tensor in tensors.items():
        start = _first_element(name, tensor, rank)
        if start is not None:
            location = locations[name]
            path = folder / (location.file + suffix)
            _write_elements(path, location, start, local_flat(tensor))
            written.add(path)
    for path in written:
        with path.open("r+b") as file:
            os.fsync(file.fileno())
    wait_for_all_ranks()
    return sizes


def _plan_files(
    stem: str, tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]
) -> tuple[dict[str, _Location], dict[str, bytes], dict[str, int]]:
    """Returns each tensor's location and each file's header and size: functions of names, shapes and dtypes alone."""
    bins: list[list[str]] = []
    filled = FILE_BYTES
    for name in tensors:
        size = tensors[name].numel() * dtypes[name].itemsize
        if not bins or filled + size > FILE_BYTES:
            bins.append([])
            filled = 0
        bins[-1].append(name)
        filled += size
    locations: dict[str, _Location] = {}
    headers: dict[str, bytes] = {}
    sizes: dict[str, int] = {}
    for number, names in enumerate(bins, start=1):
        file = f"{stem}-{number:05d}-of-{len(bins):05d}.safetensors"
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end, begins = 0, {}
        # widest dtype first, as in safetensors' own writer: each tensor then starts at a multiple of its item size
        for name in sorted(names, key=lambda name: (-dtypes[name].itemsize, name)):
            begins[name] = end
            end += tensors[name].numel() * dtypes[name].itemsize
            entries[name] = {
                "dtype": _DTYPE_NAMES[dtypes[name]],
                "shape": list(tensors[name].shape),
                "data_offsets": [begins[name], end],
            }
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        headers[file] = len(text).to_bytes(8, "little") + text
        sizes[file] = len(headers[file]) + end
        for name in names:
            locations[name] = _Location(file, len(headers[file]) + begins[name], dtypes[name])
    return locations, headers, sizes


def _first_element(name: str, tensor: Tensor, rank: int) -> int | None:
    """Returns the index of this rank's first element in the row-major full tensor; None where it writes nothing."""
    if not isinstance(tensor, DTensor):
        return 0 if rank == 0 else None
    mesh, placements = tensor.device_mesh, tensor.placements
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        return None
    for index, placement in zip(coordinate, placements, strict=True):
        if placement.is_replicate() and index != 0:
            return None  # the first replica writes these elements
        if not (placement.is_replicate() or placement.is_shard(0)):
            raise InputError(f"'{name}' is laid out as {placements}; only shards along dim 0 can be saved")
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, mesh, placements)
    return offset[0] * math.prod(tensor.shape[1:]) if math.prod(shape) else None


def _write_elements(path: Path, location: _Location, start: int, values: Tensor) -> None:
    with path.open("r+b") as file:
        file.seek(location.offset + start * location.dtype.itemsize)
        for begin in range(0, values.numel(), _CHUNK):
            file.write(_bytes(values[begin : begin + _CHUNK], location.dtype))


def _bytes(values: Tensor, dtype: torch.dtype) -> bytes:
    if dtype.itemsize < values.dtype.itemsize:
        # rounding up must not make an infinity of the largest numbers
        values = values.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max)
    return values.to(dtype).cpu().contiguous().view(torch.uint8).numpy().tobytes()


def hash_files(paths: list[Path]) -> list[str]:
    """Returns the sha256 of each file. Every rank calls it and reads every world_size-th; one object all-gather."""
    rank, world_size = rank_and_world_size()
    mine = {}
    for index in range(rank, len(paths), world_size):
        with paths[index].open("rb") as file:
            mine[index] = hashlib.file_digest(file, "sha256").hexdigest()
    found = {index: digest for part in gather_objects(mine) for index, digest in part.items()}
    return [found[index] for index in range(len(paths))]


class TensorReader:
    """The tensors of some safetensors files, read lazily. No collective.

    Attributes:
        shapes: {name: full shape}.

    Raises:
        ArtefactError: a file is not safetensors, or ends before its tensors do.
    """

    def __init__(self, paths: list[Path]) -> None:
        self._files: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in paths:
            try:
                file: Any = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ArtefactError(
                    f"{path}: not a complete safetensors file ({error}); run the fisher stage again"
                ) from None
            for name in file.keys():  # noqa: SIM118  # safe_open is no mapping
                self._files[name] = file
                self.shapes[name] = tuple(file.get_slice(name).get_shape())

    def read(self, name: str, like: Tensor | None = None) -> Tensor:
        """Returns a tensor in its stored dtype: whole and on the CPU, or on the device and in the layout of `like`.

        For a DTensor, this rank's rows alone are read.
        """
        file = self._files[name]
        if not isinstance(like, DTensor):
            tensor: Tensor = file.get_tensor(name)
            return tensor if like is None else tensor.to(like.device)
        shape, offset = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
        part = tuple(slice(begin, begin + size) for begin, size in zip(offset, shape, strict=True))
        local = file.get_slice(name)[part if part else ...]
        return DTensor.from_local(
            local.contiguous().to(like.to_local().device),
            like.device_mesh,
            like.placements,
            run_check=False,
            shape=like.shape,
            stride=like.stride(),
        )
