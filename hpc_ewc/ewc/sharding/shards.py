"""This rank's shard of a tensor, sums over the shards of all ranks, and checks that two sets of tensors match.

A parameter is a plain tensor (one process, or a full copy on each rank) or a DTensor that `fully_shard` laid out:
placements `(Shard(0),)` on a 1D mesh, `(Replicate(), Shard(0))` under HSDP. A sum over elements must count each
element once: it is reduced over the mesh axes that shard, never over `dp_replicate`, whose ranks hold copies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from hpc_ewc.errors import InputError, did_you_mean
from hpc_ewc.ewc.sharding.tiles import tiles


def local_flat(tensor: Tensor) -> Tensor:
    """Returns this rank's elements of `tensor` as a 1D view: writing to it writes to the tensor."""
    tensor = tensor.detach()
    if isinstance(tensor, DTensor):
        tensor = tensor.to_local()
    return tensor.view(-1)


def shard_axes(tensor: Tensor) -> tuple[DeviceMesh, tuple[int, ...]] | None:
    """Returns the mesh of `tensor` and the mesh axes that shard its elements; None for an unsharded tensor."""
    if not isinstance(tensor, DTensor):
        return None
    axes = tuple(axis for axis, placement in enumerate(tensor.placements) if not placement.is_replicate())
    return (tensor.device_mesh, axes) if axes else None


def reduce_elements(rows: Tensor, tensors: Iterable[Tensor], op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """Reduces statistics of sharded tensors over the ranks that share each tensor, in place.

    Every rank calls it. One all-reduce for each set of mesh axes (one in all, under `fully_shard`).

    Args:
        rows: [n, k], row i made from this rank's elements of `tensors[i]`.
        tensors: n tensors, plain or sharded.
        op: the reduction.

    Returns:
        `rows`, row i over all elements of `tensors[i]`.
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
    """Returns the trainable parameters of `model` by fully qualified name, as DTensors where the model is sharded.

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
    """Checks that two sets of tensors have the same names, shapes and layouts. No collective.

    Args:
        what: what `tensors` are, for the message: "anchor" or "Fisher".
        tensors: the tensors to check, of any floating dtype.
        like: the tensors to match.
        whose: what one of `like` is, for the message.

    Raises:
        InputError: the first difference found.
    """
    check_shapes(f"the {what}", {name: tensor.shape for name, tensor in tensors.items()}, like, whose)
    for name, wanted in like.items():
        tensor = tensors[name]
        if not tensor.dtype.is_floating_point:
            raise InputError(f"the {what} of '{name}' is {tensor.dtype}; allowed are floating-point types")
        if _layout(tensor) != _layout(wanted):
            raise InputError(
                f"the {what} of '{name}' is laid out as {_layout(tensor)}, the {whose} as {_layout(wanted)}; "
                f"load_ewc_state(folder, model) lays it out as the model"
            )


def check_shapes(what: str, shapes: Mapping[str, Sequence[int]], like: Mapping[str, Tensor], whose: str) -> None:
    """Checks that {name: shape} are the names and full shapes of `like`; arguments as in `check_layout`.

    Raises:
        InputError: the first difference found.
    """
    for name in shapes:
        if name not in like:
            raise InputError(f"{what} has a tensor '{name}', which is no {whose}{did_you_mean(name, like)}")
    for name, wanted in like.items():
        if name not in shapes:
            raise InputError(f"{what} has no tensor '{name}', a {whose}")
        if tuple(shapes[name]) != tuple(wanted.shape):
            raise InputError(f"{what} of '{name}' has shape {list(shapes[name])}, the {whose} {list(wanted.shape)}")


def _layout(tensor: Tensor) -> str:
    where = tensor.device
    if isinstance(tensor, DTensor):
        return f"{tensor.placements} on a mesh {tuple(tensor.device_mesh.shape)}, {where}"
    return f"a full tensor, {where}"


def find_bad_entries(fisher: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> str | None:
    """Returns a sentence about the first tensor with entries that it cannot have, the same on every rank, or None.

    Every rank calls it; one all-reduce.

    Args:
        fisher: {fqn: F}, which must be finite and at least 0.
        anchor: {fqn: θ*}, which must be finite.
    """
    tensors = [*fisher.values(), *anchor.values()]
    rows = torch.zeros(len(tensors), 1, dtype=torch.float64, device=local_flat(tensors[0]).device)
    for index, (row, tensor) in enumerate(zip(rows, tensors, strict=True)):
        for (values,) in tiles(local_flat(tensor)):
            good = values.isfinite()
            row[0] += (~(good & (values >= 0) if index < len(fisher) else good)).sum()
    counts = [int(count) for count in reduce_elements(rows, tensors)[:, 0].tolist()]
    for name, count in zip(fisher, counts[: len(fisher)], strict=True):
        if count:
            return f"the Fisher of '{name}' has {count} entries that are negative or not finite"
    for name, count in zip(anchor, counts[len(fisher) :], strict=True):
        if count:
            return f"the anchor of '{name}' has {count} entries that are not finite"
    return None
