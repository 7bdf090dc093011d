"""Rules that replace the forwards of a model's layers, so that its backward leaves Σ_n g_n² instead of Σ_n g_n.

Inside `SquaredGradients`, `loss.backward()` gives every covered parameter, as its gradient, the sum over the batch's
rows of that row's squared gradient. Everything behind a gradient then works unchanged on squares, since sums of
squares add up as gradients do: FSDP2's reduce-scatter, HSDP's all-reduce, accumulation. Recomputed activations work
too, since only a backward squares.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from hpc_ewc.errors import InputError
from hpc_ewc.ewc.fisher.squared_functions import (
    PassState,
    SquaredEmbedding,
    SquaredLinear,
    SquaredScale,
    SquaredTiedHead,
)

Forward = Callable[[Tensor], Tensor]
_NORMS = {"Gemma2RMSNorm.forward", "Gemma3RMSNorm.forward"}
_SCALED_EMBEDDINGS = {"Gemma2TextScaledWordEmbedding.forward", "Gemma3TextScaledWordEmbedding.forward"}


class SquaredGradients:
    """A context in which backward through `model` squares each row's gradients before it adds them up.

    Args:
        model: plain or `fully_shard`-ed; each trainable parameter must belong to a layer that has a rule: `nn.Linear`
            with or without bias, Gemma's RMSNorm and embeddings, `nn.Embedding`; head and embedding may be tied.

    Raises:
        InputError: a trainable parameter that no rule covers, or one that is shared in another way; with its name.
    """

    def __init__(self, model: nn.Module) -> None:
        self._state: PassState | None = None
        self._patches: list[tuple[nn.Module, Forward]] = []
        shared = _shared_parameters(model)
        canonical = {id(parameter): name for name, parameter in model.named_parameters()}
        for module in model.modules():
            own = {n: canonical[id(p)] for n, p in module.named_parameters(recurse=False) if p.requires_grad}
            if not own:
                continue
            forward = self._rule(module, own, tied=own.get("weight") in shared)
            if forward is None:
                raise InputError(
                    f"no rule makes the batched Fisher of parameter '{min(own.values())}' of a "
                    f"{type(module).__name__}; freeze it, or use method 'reduce_scatter', which needs no rule"
                )
            self._patches.append((module, forward))

    def __enter__(self) -> SquaredGradients:
        for module, forward in self._patches:
            assert "forward" not in vars(module), f"the forward of {type(module).__name__} is already replaced"
            module.forward = forward
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for module, _ in self._patches:
            del module.forward
        self._state = None

    def begin(self, input_ids: Tensor, spans: list[tuple[int, int]] | None) -> PassState:
        """Starts a forward and backward on a batch, and returns its state, which the backward fills.

        Args:
            input_ids: [B, T] int64.
            spans: first and last position + 1 of each row that are not padding; None if no row has padding.
        """
        not_finite = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        self._state = PassState(input_ids, spans, not_finite)
        return self._state

    def _now(self) -> PassState:
        assert self._state is not None, "begin() was not called"
        return self._state

    def _rule(self, module: Any, names: dict[str, str], tied: bool) -> Forward | None:
        """Returns the replacement of the module's forward; None where no rule covers all its trainable parameters.

        Args:
            module: with at least one trainable parameter of its own.
            names: of these parameters, {attribute: fully qualified name}.
            tied: its weight is also a parameter of another module.
        """
        forward = type(module).forward
        if isinstance(module, nn.Linear) and forward is nn.Linear.forward:
            if not tied:
                return self._linear(module, names.get("weight"), names.get("bias"))
            return self._tied_head(module, names["weight"]) if module.bias is None else None
        if isinstance(module, nn.Embedding):
            plain = module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
            if plain and forward is nn.Embedding.forward:
                return self._embedding(module, names["weight"], tied)
            if plain and forward.__qualname__ in _SCALED_EMBEDDINGS:
                return self._scaled(module, self._embedding(module, names["weight"], tied))
        if forward.__qualname__ in _NORMS:
            return self._norm(module, names["weight"])
        return None

    def _linear(self, module: Any, weight: str | None, bias: str | None) -> Forward:
        return lambda x: _apply(SquaredLinear, x, module.weight, module.bias, self._now(), weight, bias)

    def _tied_head(self, module: Any, weight: str) -> Forward:
        return lambda x: _apply(SquaredTiedHead, x, module.weight, self._now(), weight)

    def _norm(self, module: Any, weight: str) -> Forward:
        def forward(x: Tensor) -> Tensor:
            exact = x if x.dtype == torch.float64 else x.float()
            scaled = _apply(SquaredScale, module._norm(exact), module.weight, self._now(), weight)
            return scaled.type_as(x)

        return forward

    def _scaled(self, module: Any, lookup: Forward) -> Forward:
        return lambda ids: lookup(ids) * module.embed_scale.to(module.weight.dtype)

    def _embedding(self, module: Any, weight: str, tied: bool) -> Forward:
        return lambda ids: _apply(SquaredEmbedding, ids, module.weight, module.padding_idx, tied, self._now(), weight)


def _apply(function: type[torch.autograd.Function], *arguments: object) -> Tensor:
    result: Tensor = function.apply(*arguments)  # type: ignore[no-untyped-call]
    return result


def _shared_parameters(model: nn.Module) -> set[str]:
    """Returns the names of the trainable parameters that an embedding and a head share.

    Raises:
        InputError: a trainable parameter shared in any other way.
    """
    owners: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(module)
    shared = set()
    for name, parameter in model.named_parameters():
        modules = owners[id(parameter)]
        if len(modules) == 1 or not parameter.requires_grad:
            continue
        kinds = {nn.Embedding: 0, nn.Linear: 0}
        for module in modules:
            for kind in kinds:
                kinds[kind] += isinstance(module, kind)
        if len(modules) != 2 or set(kinds.values()) != {1}:
            raise InputError(
                f"parameter '{name}' is shared by {len(modules)} layers; the batched Fisher supports only a head tied "
                f"to an embedding: use method 'reduce_scatter'"
            )
        shared.add(name)
    return shared
