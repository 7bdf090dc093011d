"""Full tensors in safetensors files, written and read slice by slice by ranks that each hold a shard.

A safetensors file is 8 bytes of header length, a JSON header and the tensors' bytes, row by row. A shard along dim 0
is one run of those bytes, so every rank writes its own runs into the shared file: no rank gathers a tensor, and the
files are the same to the byte at any world size. Any safetensors reader opens them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from hpc_ewc.errors import ArtefactError, InputError
from hpc_ewc.ewc.shards import local_flat

FILE_BYTES = 4 << 30
"""A file takes tensors up to this size: several files are hashed, and read, by several ranks at once."""
_CHUNK = 1 << 22
"""Elements converted and written at a time."""
T = TypeVar("T")
_DTYPE_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies: its file, the offset of its first byte in it, and the dtype it is stored in."""

    file: str
    offset: int
    dtype: torch.dtype


def rank_and_world_size() -> tuple[int, int]:
    """This process's place in the default group; (0, 1) without one."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def write_tensors(
    folder: Path, stem: str, tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype], suffix: str
) -> dict[str, int]:
    """Writes `tensors` as `<stem>-00001-of-0000n.safetensors`, each under a name that ends in `suffix`, flushed.

    Every rank calls it, with the same names (two barriers). The caller renames: nothing is visible before that.

    Args:
        folder: on a file system that all ranks see.
        stem: "fisher" or "anchor".
        tensors: {name: tensor}, plain (rank 0 writes it) or a DTensor sharded along dim 0.
        dtypes: what each is stored in; the conversion rounds to nearest.
        suffix: of the temporary names, the same on all ranks.

    Returns:
        {final name: size in bytes}.
    """
    places, headers, sizes = _plan(stem, tensors, dtypes)
    rank, world_size = rank_and_world_size()
    if rank == 0:
        for name, header in headers.items():
            with (folder / (name + suffix)).open("wb") as file:
                file.write(header)
                file.truncate(sizes[name])
    _barrier(world_size)
    written: set[str] = set()
    for name, tensor in tensors.items():
        start = _element_offset(name, tensor, rank)
        if start is not None:
            place = places[name]
            _write_run(folder / (place.file + suffix), place, start, local_flat(tensor))
            written.add(place.file)
    for file_name in written:
        _flush(folder / (file_name + suffix))
    _barrier(world_size)
    return sizes


def _plan(
    stem: str, tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]
) -> tuple[dict[str, _Place], dict[str, bytes], dict[str, int]]:
    """Place of each tensor, header and size of each file: a function of names, shapes and dtypes alone."""
    bins: list[list[str]] = []
    filled = FILE_BYTES
    for name in tensors:
        size = tensors[name].numel() * dtypes[name].itemsize
        if not bins or filled + size > FILE_BYTES:
            bins.append([])
            filled = 0
        bins[-1].append(name)
        filled += size
    places: dict[str, _Place] = {}
    headers: dict[str, bytes] = {}
    sizes: dict[str, int] = {}
    for number, names in enumerate(bins, start=1):
        file = f"{stem}-{number:05d}-of-{len(bins):05d}.safetensors"
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end, begins = 0, {}
        # widest dtype first, as safetensors itself does it: each tensor then starts at a multiple of its item size
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
            places[name] = _Place(file, len(headers[file]) + begins[name], dtypes[name])
    return places, headers, sizes


def _element_offset(name: str, tensor: Tensor, rank: int) -> int | None:
    """Index of this rank's first element in the row-major full tensor; None where another rank writes these."""
    if not isinstance(tensor, DTensor):
        return 0 if rank == 0 else None
    mesh, placements = tensor.device_mesh, tensor.placements
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        return None
    for at, placement in zip(coordinate, placements, strict=True):
        if placement.is_replicate() and at != 0:
            return None  # a copy of what the first replica writes
        if not (placement.is_replicate() or placement.is_shard(0)):
            raise InputError(f"'{name}' is laid out as {placements}; only shards along dim 0 can be saved")
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, mesh, placements)
    return offset[0] * math.prod(tensor.shape[1:]) if math.prod(shape) else None


def _write_run(path: Path, place: _Place, start: int, values: Tensor) -> None:
    with path.open("r+b") as file:
        file.seek(place.offset + start * place.dtype.itemsize)
        for begin in range(0, values.numel(), _CHUNK):
            file.write(_bytes(values[begin : begin + _CHUNK], place.dtype))


def _bytes(values: Tensor, dtype: torch.dtype) -> bytes:
    if dtype.itemsize < values.dtype.itemsize:
        # rounding up must not make an infinity of the largest numbers
        values = values.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max)
    return values.to(dtype).cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _flush(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def hash_files(paths: list[Path]) -> list[str]:
    """The sha256 of each file; every rank calls it, and reads every world_size-th. Collectives: one all-gather."""
    rank, world_size = rank_and_world_size()
    mine = {index: _sha256(paths[index]) for index in range(rank, len(paths), world_size)}
    found: dict[int, str] = {}
    for part in gather_objects(mine):
        found.update(part)
    return [found[index] for index in range(len(paths))]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def gather_objects(value: T) -> list[T]:
    """`value` of every rank, in order of rank."""
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return [value]
    values: list[T] = [value] * world_size
    dist.all_gather_object(values, value)
    return values


def _barrier(world_size: int) -> None:
    if world_size > 1:
        gather_objects(None)  # dist.barrier would need a device, which a CPU-side write has not


class TensorFiles:
    """The tensors in the files `<stem>-*.safetensors` of a folder, read lazily.

    Raises:
        ArtefactError: a file is not safetensors, or ends before its tensors do.
    """

    def __init__(self, paths: list[Path]) -> None:
        self._readers: dict[str, Any] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for path in paths:
            try:
                reader: Any = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ArtefactError(
                    f"{path}: not a whole safetensors file ({error}); run the fisher stage again"
                ) from None
            names: list[str] = reader.keys()
            for name in names:
                self._readers[name] = reader
                self._shapes[name] = tuple(reader.get_slice(name).get_shape())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The full shape of each tensor."""
        return self._shapes

    def read_full(self, name: str) -> Tensor:
        """The whole tensor, in its stored dtype, on the CPU."""
        tensor: Tensor = self._readers[name].get_tensor(name)
        return tensor

    def read_like(self, name: str, like: Tensor) -> Tensor:
        """The tensor laid out as `like`: its device, and its mesh and placements; only this rank's rows are read."""
        if not isinstance(like, DTensor):
            return self.read_full(name).to(like.device)
        shape, offset = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
        part = self._readers[name].get_slice(name)
        local = (
            part[tuple(slice(at, at + size) for at, size in zip(offset, shape, strict=True))] if shape else part[...]
        )
        return DTensor.from_local(
            local.contiguous().to(like.to_local().device),
            like.device_mesh,
            like.placements,
            run_check=False,
            shape=like.shape,
            stride=like.stride(),
        )
