"""FSDP2's gradient reduction, changed for the Fisher and restored afterwards.

Two things are set on every FSDP2 group. The divisor is FSDP2's own (the mean over ranks), so that multiplying by the
number of ranks gives a sum. And, for the method "reduce_scatter", each rank's own gradient is squared where FSDP2
hands it over: after all of its contributions (accumulation in one backward, tied weights) have been added, and before
it meets another rank's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter

from hpc_ewc.errors import InputError


class _SquaringReduceScatter(ReduceScatter):
    """Squares this rank's gradient, then reduces it as the default does."""

    def __init__(self, square: Callable[[Tensor], None]) -> None:
        self._square = square

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> dist.Work | None:
        self._square(input_tensor)
        work: dist.Work | None = dist.reduce_scatter_single(output_tensor, input_tensor, op, group, async_op)
        return work


class GradientReduction:
    """The settings of FSDP2's gradient reduction of a model; a plain model has none.

    Attributes:
        sharded: whether the model has FSDP2 modules.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
        # no public getter: what is set here must be put back
        self._groups: list[Any] = [g for m in self._modules for g in m._get_fsdp_state()._fsdp_param_groups]
        self._saved = [_settings(group) for group in self._groups]
        self.sharded = bool(self._modules)

    def reset(self) -> None:
        """Reduces at every backward, to the mean over ranks."""
        for group in self._groups:
            group.gradient_divide_factor = None
            group.reduce_grads = group.all_reduce_grads = True

    def square_before(self, square: Callable[[Tensor], None]) -> None:
        """Applies `square`, which works in place, to each rank's own gradients before they are reduced.

        Raises:
            InputError: the model reduces in another dtype than fp32, or its replicas have one rank each, where the
                only hook runs after the replicas' gradients were added up.
        """
        for group in self._groups:
            if group.mp_policy.reduce_dtype not in (None, torch.float32) or group.mp_policy.param_dtype is not None:
                raise InputError("method 'reduce_scatter' needs a model that computes and reduces in float32")
            if group.mesh_info.shard_mesh_size > 1:
                group._reduce_scatter_comm = _SquaringReduceScatter(square)
            elif not hasattr(group.mesh_info, "replicate_mesh_size"):
                group._all_reduce_hook = square
            else:
                raise InputError("method 'reduce_scatter' needs shards: under dp_replicate use at least 2 of them")

    def set_synchronize(self, *, now: bool) -> None:
        """Makes the next backward reduce gradients, or keep them unsharded until one that does."""
        for module in self._modules:
            module.set_requires_gradient_sync(now, recurse=False)

    def restore(self) -> None:
        """Puts every setting back."""
        for group, settings in zip(self._groups, self._saved, strict=True):
            vars(group).update(settings)


def _settings(group: Any) -> dict[str, Any]:
    names = ("gradient_divide_factor", "reduce_grads", "all_reduce_grads", "_reduce_scatter_comm", "_all_reduce_hook")
    return {name: getattr(group, name) for name in names}
