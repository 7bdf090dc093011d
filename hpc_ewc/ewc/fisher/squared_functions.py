"""Autograd functions whose backward returns Σ_n g_n², sums over the rows of a batch, as a parameter's gradient.

One for each kind of layer of Gemma 2 and 3. Their forwards compute what the layers' own compute.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from hpc_ewc.errors import InputError
from hpc_ewc.ewc.fisher.squares import (
    TokensOfRows,
    gradients_of_tokens,
    head_gradients_at_tokens,
    squared_products,
    squared_sums,
    tokens_of_rows,
)


@dataclass
class PassState:
    """The batch of one forward and backward, and the findings of its backward.

    Attributes:
        input_ids: [B, T].
        spans: first and last position + 1 of each row that are not padding; None if no row has padding.
        not_finite: [B] bool, rows with a gradient or an activation that is not finite.
        seen: fully qualified names whose squares were made.
        head: of a tied embedding, from the head's backward to the embedding's: the head's squares [V, H], and its
            per-example gradients at the input tokens [U, H].
        tokens: of a tied embedding, the distinct tokens of each row.
    """

    input_ids: Tensor
    spans: list[tuple[int, int]] | None
    not_finite: Tensor
    seen: set[str] = field(default_factory=set)
    head: tuple[Tensor, Tensor] | None = None
    tokens: TokensOfRows | None = None

    def check(self, name: str, *per_row: Tensor) -> None:
        """Records that the squares of `name` are made from these tensors, of which each must have a row for an example.

        Raises:
            InputError: `name` is used twice in one forward, or a tensor's rows are not the batch's.
        """
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
        """Returns the spans for a tensor with all positions of the batch; None for one with the scored ones alone."""
        return self.spans if positions == self.input_ids.shape[1] else None


def _exact(tensor: Tensor) -> torch.dtype:
    """Returns the dtype to sum `tensor` in: fp32, or fp64 for fp64."""
    return torch.promote_types(tensor.dtype, torch.float32)


# The backward of each function returns squares in fp32; autograd casts them to the weight's dtype, which is bf16 under
# bf16 compute. The graph is used once, so `once_differentiable` says so.


class SquaredLinear(torch.autograd.Function):
    """y = x Wᵀ + b; x [B, ..., i]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        state: PassState,
        weight_name: str | None,
        bias_name: str | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.state, ctx.weight_name, ctx.bias_name = state, weight_name, bias_name
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        state: PassState = ctx.state
        weight_squares = bias_squares = None
        if ctx.weight_name is not None:
            state.check(ctx.weight_name, grad_output, x)
            g, a = _three_dims(grad_output), _three_dims(x)
            weight_squares = squared_products(g, a, state.spans_of(g.shape[1]))
        if ctx.bias_name is not None:
            state.check(ctx.bias_name, grad_output)
            bias_squares = squared_sums(grad_output)
        return grad_output @ weight if ctx.needs_input_grad[0] else None, weight_squares, bias_squares, None, None, None


class SquaredTiedHead(torch.autograd.Function):
    """y = x Wᵀ, where W is also the embedding, whose backward runs last and returns the squares of the sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, state: PassState, name: str) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.state, ctx.name = state, name
        return F.linear(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        state: PassState = ctx.state
        state.check(f"{ctx.name} (as the head)", grad_output, x)
        g, a = _three_dims(grad_output), _three_dims(x)
        state.tokens = tokens_of_rows(state.input_ids, len(weight))
        # the rows that the cross term needs, state: keeping G [B, K, V] until the embedding would cost gigabytes
        state.head = (squared_products(g, a, state.spans_of(g.shape[1])), head_gradients_at_tokens(g, a, state.tokens))
        return grad_output @ weight if ctx.needs_input_grad[0] else None, None, None, None


class SquaredEmbedding(torch.autograd.Function):
    """y = W[ids]. One example's gradient is s (lookup) + L (tied head), and its square L² + (2L + s) s."""

    @staticmethod
    def forward(
        ctx: Any, ids: Tensor, weight: Tensor, padding: int | None, tied: bool, state: PassState, name: str
    ) -> Tensor:
        if ids.shape != state.input_ids.shape:
            raise InputError(f"the embedding of '{name}' looks up {list(ids.shape)}, not the batch's input_ids")
        ctx.save_for_backward(ids)
        ctx.shape, ctx.padding, ctx.tied, ctx.state, ctx.name = weight.shape, padding, tied, state, name
        return F.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (ids,) = ctx.saved_tensors
        state: PassState = ctx.state
        state.check(ctx.name, grad_output)
        if ctx.padding is not None:  # nn.Embedding gives its padding row no gradient
            grad_output = grad_output.masked_fill((ids == ctx.padding)[..., None], 0.0)
        if ctx.tied:
            assert state.head is not None and state.tokens is not None, "the tied head's backward did not run first"
            (squares, of_head), tokens, state.head = state.head, state.tokens, None
            own = gradients_of_tokens(grad_output, tokens)
            squares.index_add_(0, tokens.token, (2 * of_head + own) * own)
        else:
            tokens = tokens_of_rows(ids, ctx.shape[0])
            own = gradients_of_tokens(grad_output, tokens)
            squares = own.new_zeros(ctx.shape)
            squares.index_add_(0, tokens.token, own.square_())
        return None, squares, None, None, None, None


class SquaredScale(torch.autograd.Function):
    """y = x̂ (1 + w), x̂ [B, ..., i] already normalized: Gemma's RMSNorm."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, state: PassState, name: str) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.state, ctx.name = state, name
        return x * (1.0 + weight.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        state: PassState = ctx.state
        product = grad_output * x
        state.check(ctx.name, product)
        return grad_output * (1.0 + weight.to(x.dtype)), squared_sums(product), None, None


def _three_dims(tensor: Tensor) -> Tensor:
    """Returns [B, ..., c] as [B, T, c]; a row with one vector has T = 1."""
    return tensor[:, None] if tensor.ndim == 2 else tensor.flatten(1, -2)
