"""Tiles: slices of 1D tensors that elementwise work goes through, so that its buffers do not grow with the model."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CPU_TILE = 1 << 17
"""Elements a CPU kernel works on at a time: its buffer (512 KiB) stays in cache between operations, and a tile is long
enough that calling them costs little."""
CUDA_TILE = 1 << 26
"""On a GPU a tile only bounds the buffers (256 MiB each); smaller ones would be lost in launches."""


def tile_size(tensor: Tensor) -> int:
    """Returns the number of elements in a tile on the device of `tensor`."""
    return CUDA_TILE if tensor.is_cuda else CPU_TILE


def tiles(*flats: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yields matching slices of 1D tensors of one length, each at most `tile_size` long; none for empty tensors."""
    if flats[0].numel() <= tile_size(flats[0]):
        return iter((flats,) if flats[0].numel() else ())  # a rank's shard may be empty
    return zip(*(torch.split(flat, tile_size(flats[0])) for flat in flats), strict=True)


def tile_buffer(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Returns uninitialised work space for one tile of `like`, on its device, in its dtype or in `dtype`."""
    size = min(tile_size(like), max(like.numel(), 1))
    return torch.empty(size, dtype=dtype or like.dtype, device=like.device)
