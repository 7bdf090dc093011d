"""Backward passes that leave Σ_n g_n² where autograd would leave Σ_n g_n, for each kind of layer of Gemma 2 and 3.

Inside `SquaredGradients`, `loss.backward()` gives every covered parameter, as its gradient, the sum over the batch's
rows of that row's squared gradient. Everything behind a gradient then works unchanged on squares, since sums of
squares add up as gradients do: FSDP2's reduce-scatter, HSDP's all-reduce, accumulation. Recomputed activations work
too, since only a backward squares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from hpc_ewc.errors import InputError
from hpc_ewc.ewc.squares import (
    TokensOfRows,
    gradients_of_tokens,
    head_gradients_at_tokens,
    squared_products,
    squared_sums,
    tokens_of_rows,
)

Forward = Callable[[Tensor], Tensor]
_NORMS = {"Gemma2RMSNorm.forward", "Gemma3RMSNorm.forward"}
_SCALED_EMBEDDINGS = {"Gemma2TextScaledWordEmbedding.forward", "Gemma3TextScaledWordEmbedding.forward"}


@dataclass
class Pass:
    """One forward and backward: what its rules need to know of the batch, and what they saw.

    Attributes:
        input_ids: [B, T].
        spans: of each row, the positions that are not padding; None if all are.
        not_finite: [B] bool, rows with a gradient or an activation that is not finite.
        seen: fully qualified names whose squares were made.
        head: of a tied embedding, between the head's backward and the embedding's: its squares [V, H], and its
            per-example gradients at the input tokens [U, H].
    """

    input_ids: Tensor
    spans: list[tuple[int, int]] | None
    not_finite: Tensor
    seen: set[str] = field(default_factory=set)
    head: tuple[Tensor, Tensor] | None = None
    tokens: TokensOfRows | None = None

    def check(self, name: str, *per_row: Tensor) -> None:
        """Notes that `name`'s squares are being made from these tensors, each with a row an example."""
        if name in self.seen:
            raise InputError(
                f"parameter '{name}' is used twice in one forward; its per-example gradient is a sum over uses that "
                f"the batched Fisher cannot square: use method 'reduce_scatter'"
            )
        self.seen.add(name)
        for tensor in per_row:
            if len(tensor) != len(self.input_ids):
                raise InputError(
                    f"the layer of '{name}' works on {len(tensor)} rows, the batch has {len(self.input_ids)}: its rows "
                    f"are not examples; use method 'reduce_scatter'"
                )
            # a row's sum is finite only if its entries are: one reduction, and no tensor of flags
            self.not_finite |= ~tensor.flatten(1).sum(1, dtype=_exact(tensor)).isfinite()

    def spans_of(self, positions: int) -> list[tuple[int, int]] | None:
        """The spans, for a tensor that has all positions of the batch (a head may have just the scored ones)."""
        return self.spans if positions == self.input_ids.shape[1] else None


class SquaredGradients:
    """While entered, backward through `model` squares each row's gradients before it adds them up.

    Args:
        model: plain or `fully_shard`-ed; each trainable parameter must belong to a layer that has a rule: `nn.Linear`
            with or without bias, Gemma's RMSNorm and embeddings, `nn.Embedding`; head and embedding may be tied.

    Raises:
        InputError: a trainable parameter that no rule covers, by name; or one that is shared in another way.
    """

    def __init__(self, model: nn.Module) -> None:
        self._current: Pass | None = None
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
        self._current = None

    def begin(self, input_ids: Tensor, spans: list[tuple[int, int]] | None) -> Pass:
        """Starts a forward and backward on this batch; what it returns is filled by the backward."""
        self._current = Pass(input_ids, spans, torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device))
        return self._current

    def _now(self) -> Pass:
        assert self._current is not None, "begin() was not called"
        return self._current

    def _rule(self, module: Any, names: dict[str, str], tied: bool) -> Forward | None:
        """What replaces the module's forward; None where no rule covers all its trainable parameters.

        Args:
            module: with at least one trainable parameter of its own.
            names: of those: {attribute: fully qualified name}.
            tied: its weight is also another module's.
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
        return lambda x: _apply(_Linear, x, module.weight, module.bias, self._now(), weight, bias)

    def _tied_head(self, module: Any, weight: str) -> Forward:
        return lambda x: _apply(_TiedHead, x, module.weight, self._now(), weight)

    def _norm(self, module: Any, weight: str) -> Forward:
        def forward(x: Tensor) -> Tensor:
            exact = x if x.dtype == torch.float64 else x.float()
            scaled = _apply(_Scale, module._norm(exact), module.weight, self._now(), weight)
            return scaled.type_as(x)

        return forward

    def _scaled(self, module: Any, lookup: Forward) -> Forward:
        return lambda ids: lookup(ids) * module.embed_scale.to(module.weight.dtype)

    def _embedding(self, module: Any, weight: str, tied: bool) -> Forward:
        return lambda ids: _apply(_Embedding, ids, module.weight, module.padding_idx, tied, self._now(), weight)


def _apply(function: type[torch.autograd.Function], *arguments: object) -> Tensor:
    result: Tensor = function.apply(*arguments)  # type: ignore[no-untyped-call]
    return result


def _shared_parameters(model: nn.Module) -> set[str]:
    """Names of the trainable parameters that an embedding and a head share.

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
                f"parameter '{name}' is shared by {len(modules)} layers; the batched Fisher knows a head tied to an "
                f"embedding alone: use method 'reduce_scatter'"
            )
        shared.add(name)
    return shared


def _exact(tensor: Tensor) -> torch.dtype:
    """The dtype to sum `tensor` in: fp32, or fp64 for fp64."""
    return torch.promote_types(tensor.dtype, torch.float32)


# The backward of each Function returns squares in fp32; autograd casts them to the weight's dtype, which is bf16 under
# bf16 compute. The graph is used once, so `once_differentiable` says so.


class _Linear(torch.autograd.Function):
    """y = x Wᵀ + b; x [B, ..., i]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        now: Pass,
        weight_name: str | None,
        bias_name: str | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.now, ctx.weight_name, ctx.bias_name = now, weight_name, bias_name
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        now: Pass = ctx.now
        weight_squares = bias_squares = None
        if ctx.weight_name is not None:
            now.check(ctx.weight_name, grad_output, x)
            g, a = _three_dims(grad_output), _three_dims(x)
            weight_squares = squared_products(g, a, now.spans_of(g.shape[1]))
        if ctx.bias_name is not None:
            now.check(ctx.bias_name, grad_output)
            bias_squares = squared_sums(grad_output)
        return grad_output @ weight if ctx.needs_input_grad[0] else None, weight_squares, bias_squares, None, None, None


class _TiedHead(torch.autograd.Function):
    """y = x Wᵀ, W also the embedding: the embedding's backward, which runs last, returns the squares of the sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, now: Pass, name: str) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.now, ctx.name = now, name
        return F.linear(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        now: Pass = ctx.now
        now.check(f"{ctx.name} (as the head)", grad_output, x)
        g, a = _three_dims(grad_output), _three_dims(x)
        now.tokens = tokens_of_rows(now.input_ids, len(weight))
        # the rows that the cross term needs, now: keeping G [B, K, V] until the embedding would cost gigabytes
        now.head = (squared_products(g, a, now.spans_of(g.shape[1])), head_gradients_at_tokens(g, a, now.tokens))
        return grad_output @ weight if ctx.needs_input_grad[0] else None, None, None, None


class _Embedding(torch.autograd.Function):
    """y = W[ids]. Per example the gradient is s (of the lookup) + L (of a tied head): squared, L² + (2L + s) s."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, padding: int | None, tied: bool, now: Pass, name: str) -> Tensor:
        if ids.shape != now.input_ids.shape:
            raise InputError(f"the embedding of '{name}' looks up {list(ids.shape)}, not the batch's input_ids")
        ctx.save_for_backward(ids)
        ctx.shape, ctx.padding, ctx.tied, ctx.now, ctx.name = weight.shape, padding, tied, now, name
        return F.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (ids,) = ctx.saved_tensors
        now: Pass = ctx.now
        now.check(ctx.name, grad_output)
        if ctx.padding is not None:  # nn.Embedding gives its padding row no gradient
            grad_output = grad_output.masked_fill((ids == ctx.padding)[..., None], 0.0)
        if ctx.tied:
            assert now.head is not None and now.tokens is not None, "the tied head's backward did not run first"
            (squares, of_head), tokens, now.head = now.head, now.tokens, None
            own = gradients_of_tokens(grad_output, tokens)
            squares.index_add_(0, tokens.token, (2 * of_head + own) * own)
        else:
            tokens = tokens_of_rows(ids, ctx.shape[0])
            own = gradients_of_tokens(grad_output, tokens)
            squares = own.new_zeros(ctx.shape)
            squares.index_add_(0, tokens.token, own.square_())
        return None, squares, None, None, None, None


class _Scale(torch.autograd.Function):
    """y = x̂ (1 + w), x̂ [B, ..., i] already normalized: Gemma's RMSNorm."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, now: Pass, name: str) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.now, ctx.name = now, name
        return x * (1.0 + weight.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        now: Pass = ctx.now
        product = grad_output * x
        now.check(ctx.name, product)
        return grad_output * (1.0 + weight.to(x.dtype)), squared_sums(product), None, None


def _three_dims(tensor: Tensor) -> Tensor:
    """[B, ..., c] as [B, T, c]; a row with one vector has T = 1."""
    return tensor[:, None] if tensor.ndim == 2 else tensor.flatten(1, -2)
