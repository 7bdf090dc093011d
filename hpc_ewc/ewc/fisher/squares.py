"""Sums over examples of squared gradients, from the tensors of a backward: never a whole gradient per example.

Shape legend: B rows (one row = one example), T positions, o outputs, i inputs, V vocabulary, H width, U the distinct
(row, token) pairs of a batch. `grad_output` is ∂L/∂y of a layer with L summed over rows, so its row n is example n's
own: rows do not mix in a forward.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CPU_TILE = 1 << 17
"""Elements of one example's gradient made at a time (512 KiB): product and sum stay in the second-level cache."""
CUDA_TILE = 1 << 23
"""32 MiB: product and sum stay in an H200's 50 MB second-level cache."""


def squared_products(
    grad_output: Tensor, inputs: Tensor, spans: list[tuple[int, int]] | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Returns Σ_n (G_nᵀ A_n)²: for a linear layer, the sum over examples of squared weight gradients.

    The same multiplications as Σ_n G_nᵀ A_n, the minibatch gradient, and 2 elementwise passes an example, on tiles
    that stay in cache. With one position a row (T = 1) the product has rank one and squares factor: one product for
    all rows.

    Args:
        grad_output: G [B, T, o].
        inputs: A [B, T, i].
        spans: first and last position + 1 of each row that are not padding; G is zero elsewhere.
        dtype: of the result; default fp32, or fp64 for fp64 operands.

    Returns:
        [o, i], a sum over rows.
    """
    rows, positions, outputs = grad_output.shape
    dtype = dtype or torch.promote_types(grad_output.dtype, torch.float32)
    if positions == 1:
        return grad_output[:, 0].to(dtype).square().t() @ inputs[:, 0].to(dtype).square()
    width = inputs.shape[-1]
    tile = max(1, (CUDA_TILE if grad_output.is_cuda else CPU_TILE) // width)
    total = torch.empty(outputs, width, dtype=dtype, device=grad_output.device)
    product = torch.empty(min(tile, outputs), width, dtype=grad_output.dtype, device=grad_output.device)
    for first in range(0, outputs, tile):
        last = min(outputs, first + tile)
        sums, made = total[first:last], product[: last - first]
        for row in range(rows):
            begin, end = spans[row] if spans is not None else (0, positions)
            torch.mm(grad_output[row, begin:end, first:last].t(), inputs[row, begin:end], out=made)
            exact = made.to(dtype)
            if row == 0:
                torch.mul(exact, exact, out=sums)
            else:
                sums.addcmul_(exact, exact)
    return total


def squared_sums(gradients: Tensor) -> Tensor:
    """Returns Σ_n (Σ_t g_nt)², [i], for an elementwise parameter whose gradients at each position are [B, ..., i]."""
    exact = gradients.to(torch.promote_types(gradients.dtype, torch.float32))
    return (exact if exact.ndim == 2 else exact.flatten(1, -2).sum(1)).square().sum(0)


@dataclass(frozen=True)
class TokensOfRows:
    """The distinct tokens of each row of a batch: one example's embedding gradient is zero in all other rows.

    Attributes:
        token: [U] int64, the token of each pair, a row of the embedding.
        inverse: [B·T] int64, the pair of each position.
        counts: number of pairs of each row; pairs are sorted by row.
    """

    token: Tensor
    inverse: Tensor
    counts: list[int]


def tokens_of_rows(input_ids: Tensor, vocabulary: int) -> TokensOfRows:
    """Returns the distinct (row, token) pairs of `input_ids` [B, T]."""
    rows = torch.arange(len(input_ids), device=input_ids.device)[:, None]
    pairs, inverse = torch.unique(input_ids + vocabulary * rows, return_inverse=True)
    counts = torch.bincount(pairs // vocabulary, minlength=len(input_ids))
    return TokensOfRows(pairs % vocabulary, inverse.flatten(), counts.tolist())


def gradients_of_tokens(grad_output: Tensor, tokens: TokensOfRows) -> Tensor:
    """Returns each example's embedding gradient at its own tokens, [U, H], of `grad_output` [B, T, H]."""
    exact = grad_output.to(torch.promote_types(grad_output.dtype, torch.float32)).flatten(0, 1)
    sums = exact.new_zeros(len(tokens.token), exact.shape[-1])
    return sums.index_add_(0, tokens.inverse, exact)


def head_gradients_at_tokens(grad_output: Tensor, inputs: Tensor, tokens: TokensOfRows) -> Tensor:
    """Returns each example's head gradient (G_nᵀ A_n) at the rows of its own input tokens alone.

    Args:
        grad_output: G [B, K, V], of the head's K scored positions.
        inputs: A [B, K, H].
        tokens: of the batch's input ids.

    Returns:
        [U, H], for the cross term of a tied embedding.
    """
    exact = torch.promote_types(grad_output.dtype, torch.float32)
    found = torch.split(tokens.token, tokens.counts)
    parts = [grad_output[n][:, token].t().to(exact) @ inputs[n].to(exact) for n, token in enumerate(found)]
    return torch.cat(parts)
