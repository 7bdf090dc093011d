"""FSDP2's gradient reduction, set up for the Fisher and put back as it was.

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


class Reduction:
    """The reduction of a model's gradients: nothing to do for a plain model, FSDP2's groups for a sharded one."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
        # no public getter: what is set here must be put back
        self._groups: list[Any] = [g for m in self._modules for g in m._get_fsdp_state()._fsdp_param_groups]
        self._saved = [_settings(group) for group in self._groups]
        self.sharded = bool(self._modules)

    def reset(self) -> None:
        """The mean over ranks, at every backward."""
        for group in self._groups:
            group.gradient_divide_factor = None
            group.reduce_grads = group.all_reduce_grads = True

    def square(self, square: Callable[[Tensor], None]) -> None:
        """Calls `square` in place on each rank's own gradients.

        Raises:
            InputError: replicas of one rank each: the only hook left runs after they were added up.
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

    def synchronize(self, now: bool) -> None:
        """Whether the next backward reduces, or keeps its unsharded gradients for the one that does."""
        for module in self._modules:
            module.set_requires_gradient_sync(now, recurse=False)

    def restore(self) -> None:
        """Every setting as it was found."""
        for group, settings in zip(self._groups, self._saved, strict=True):
            vars(group).update(settings)


def _settings(group: Any) -> dict[str, Any]:
    names = ("gradient_divide_factor", "reduce_grads", "all_reduce_grads", "_reduce_scatter_comm", "_all_reduce_hook")
    return {name: getattr(group, name) for name in names}
