"""What this rank holds of a tensor, and sums over what the others hold.

A parameter is a plain tensor (one process, or a full copy on each rank) or a DTensor that `fully_shard` laid out:
placements `(Shard(0),)` on a 1D mesh, `(Replicate(), Shard(0))` under HSDP. A sum over elements must count each
element once: it is reduced over the mesh axes that shard, never over `dp_replicate`, whose ranks hold copies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from hpc_ewc.errors import InputError, did_you_mean


def local_flat(tensor: Tensor) -> Tensor:
    """This rank's elements of `tensor` as a 1D view: writing to it writes to the tensor."""
    tensor = tensor.detach()
    if isinstance(tensor, DTensor):
        tensor = tensor.to_local()
    return tensor.view(-1)


def shard_axes(tensor: Tensor) -> tuple[DeviceMesh, tuple[int, ...]] | None:
    """The mesh of `tensor` and those of its axes over which its elements are divided; None for a full tensor."""
    if not isinstance(tensor, DTensor):
        return None
    axes = tuple(axis for axis, placement in enumerate(tensor.placements) if not placement.is_replicate())
    return (tensor.device_mesh, axes) if axes else None


def reduce_elements(rows: Tensor, tensors: Iterable[Tensor], op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """`rows [n, k]`, in place: row i, this rank's statistics of `tensors[i]`, reduced over the ranks that share it.

    Every rank calls it. One all-reduce for each set of mesh axes (one in all, under `fully_shard`).
    """
    together: dict[tuple[DeviceMesh, tuple[int, ...]], list[int]] = {}
    for index, tensor in enumerate(tensors):
        axes = shard_axes(tensor)
        if axes is not None:
            together.setdefault(axes, []).append(index)
    for (mesh, mesh_axes), indices in together.items():
        part = rows[indices]
        for axis in mesh_axes:
            dist.all_reduce(part, op=op, group=mesh.get_group(axis))
        rows[indices] = part
    return rows


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters of `model` by fully qualified name, as shards where the model is sharded.

    Raises:
        InputError: the model is sharded by `fully_shard` but a parameter is not a DTensor now.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if any(isinstance(module, FSDPModule) for module in model.modules()):
        for name, parameter in parameters.items():
            if not isinstance(parameter, DTensor):
                # between a forward and the next backward, the root's parameters are unsharded plain tensors
                raise InputError(
                    f"parameter '{name}' of a fully_shard-ed model is not sharded now: a forward has gathered it; "
                    f"do this before the first forward, or call model.reshard() first"
                )
    return parameters


def check_layout(
    what: str,
    tensors: Mapping[str, Tensor],
    like: Mapping[str, Tensor],
    whose: str = "trainable parameter of the model",
) -> None:
    """Raises InputError unless `tensors` and `like` have the same names, shapes and layouts.

    Args:
        what: "anchor" or "Fisher", for the message.
        tensors: to be checked.
        like: what they must match.
        whose: what one of `like` is, for the message.
    """
    for name, wanted in like.items():
        if name not in tensors:
            raise InputError(f"the {what} has no tensor '{name}', a {whose}")
        tensor = tensors[name]
        if tensor.shape != wanted.shape:
            raise InputError(f"the {what} of '{name}' has shape {list(tensor.shape)}, the {whose} {list(wanted.shape)}")
        if not tensor.dtype.is_floating_point:
            raise InputError(f"the {what} of '{name}' is {tensor.dtype}; allowed are floating-point types")
        if _layout(tensor) != _layout(wanted):
            raise InputError(
                f"the {what} of '{name}' is laid out as {_layout(tensor)}, the {whose} as {_layout(wanted)}; "
                f"load_ewc_state(folder, model) lays it out as the model"
            )
    for name in tensors:
        if name not in like:
            raise InputError(f"the {what} has a tensor '{name}', which is no {whose}{did_you_mean(name, like)}")


def _layout(tensor: Tensor) -> str:
    where = tensor.device
    if isinstance(tensor, DTensor):
        return f"{tensor.placements} on a mesh {tuple(tensor.device_mesh.shape)}, {where}"
    return f"a full tensor, {where}"


def max_over_ranks(numbers: list[int], device: torch.device) -> list[int]:
    """The largest of each number over all ranks. Every rank calls it; one all-reduce."""
    return _over_ranks(numbers, device, dist.ReduceOp.MAX)


def sum_over_ranks(numbers: list[int], device: torch.device) -> list[int]:
    """The sum of each number over all ranks. Every rank calls it; one all-reduce."""
    return _over_ranks(numbers, device, dist.ReduceOp.SUM)


def _over_ranks(numbers: list[int], device: torch.device, op: dist.ReduceOp.RedOpType) -> list[int]:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return numbers
    tensor = torch.tensor(numbers, dtype=torch.int64, device=device)
    dist.all_reduce(tensor, op=op)
    return [int(number) for number in tensor.tolist()]
