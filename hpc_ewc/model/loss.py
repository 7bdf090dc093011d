"""The head and its cross-entropy: Σ −log softmax(c·tanh(W h / c))[y] over scored tokens, without holding all logits.

At 8,192 tokens and Gemma's vocabulary of 256,000, fp32 logits alone take 8.4 GB, and their gradient as much again.
`chunked` computes logits, loss and both gradients for some tokens at a time, in the forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch.nn import functional as F

from hpc_ewc.errors import ConfigError

LossKind = Literal["chunked", "full", "liger"]
Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

IGNORE = -100
CHUNK_BYTES = {"cpu": 2**25, "cuda": 2**30}
"""Bytes of fp32 logits in memory at a time, by device: a CPU's cache; on a GPU 1,024 rows of Gemma's vocabulary, a
GEMM that fills it."""


def build_loss(kind: LossKind, softcap: float | None) -> Loss:
    """Returns a function (hidden [N, H], weight [V, H], labels [N], -100 = not scored) → summed loss, fp32 scalar.

    Raises:
        ConfigError: "liger" without liger-kernel or a GPU.
    """
    if kind == "liger":
        return _build_liger(softcap)
    if kind == "full":
        return lambda hidden, weight, labels: full_loss(hidden, weight, labels, softcap)
    return lambda hidden, weight, labels: chunked_loss(hidden, weight, labels, softcap)


def full_loss(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, softcap: float | None = None
) -> torch.Tensor:
    """Returns the loss from all logits [N, V] at once, as transformers computes it, summed over labels: the oracle."""
    return _loss_of_logits(F.linear(hidden, weight), labels, softcap)


def _loss_of_logits(logits: torch.Tensor, labels: torch.Tensor, softcap: float | None) -> torch.Tensor:
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum")


def chunked_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    softcap: float | None = None,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """Returns `full_loss`, computed with `chunk_size` rows of logits in memory at a time.

    The gradients are computed in the forward, while a chunk's logits exist: the head's GEMMs run three times in all, as
    in plain training; recomputing the logits in the backward would make them four. Weight gradients of
    the chunks are summed in fp32. The result can be back-propagated once.

    Args:
        hidden: [N, H] states, any floating dtype.
        weight: [V, H] of the head, of the same dtype.
        labels: [N] int64; IGNORE where a token is not scored.
        softcap: c, or None.
        chunk_size: rows of logits at a time; by default as many as fill CHUNK_BYTES.

    Returns:
        fp32 scalar, summed over scored tokens.
    """
    if chunk_size is None:
        chunk_size = max(16, CHUNK_BYTES.get(weight.device.type, 2**30) // (4 * weight.shape[0]))
    loss = _ChunkedLoss.apply(hidden, weight, labels, softcap, chunk_size)  # type: ignore[no-untyped-call]
    return cast(torch.Tensor, loss)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        softcap: float | None,
        chunk_size: int,
    ) -> torch.Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        for start in range(0, len(hidden), chunk_size):
            rows = slice(start, start + chunk_size)
            h, y = hidden[rows], labels[rows]
            logits = F.linear(h, weight).float()
            if needs_hidden or needs_weight:
                loss, gradient = _loss_and_gradient(logits, y, softcap)
                gradient = gradient.to(h.dtype)
                if grad_hidden is not None:
                    torch.mm(gradient, weight, out=grad_hidden[rows])
                if grad_weight is not None and h.dtype == torch.float32:
                    grad_weight.addmm_(gradient.t(), h)
                elif grad_weight is not None:
                    grad_weight.add_(gradient.t() @ h)
            else:
                loss = _loss_of_logits(logits, y, softcap)
            total += loss
        ctx.grads = (grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("the chunked loss scales its gradients in place and can be back-propagated once")
        # in place: a second [V, H] would undo what the chunks save
        grads = [None if grad is None else grad.mul_(grad_output) for grad in ctx.grads]
        ctx.grads = None
        return (*grads, None, None, None)


def _loss_and_gradient(
    logits: torch.Tensor, labels: torch.Tensor, softcap: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the summed loss and its gradient with respect to the uncapped logits [n, V], which it overwrites.

    With z = c·tanh(x/c): ∂/∂x = (softmax(z) − onehot(y)) · (1 − tanh²(x/c)); rows that are not scored are 0.
    """
    scored = labels != IGNORE
    index = labels.clamp_min(0)[:, None]
    tanh = None
    if softcap is not None:
        tanh = logits.div_(softcap).tanh_()
        capped = tanh * softcap
    else:
        capped = logits
    lse = capped.logsumexp(-1)
    loss = ((lse - capped.gather(1, index)[:, 0]) * scored).sum()
    gradient = capped.sub_(lse[:, None]).exp_()
    gradient.scatter_add_(1, index, torch.full_like(lse, -1.0)[:, None])
    if tanh is not None:
        gradient.mul_(tanh.square_().neg_().add_(1.0))
    return loss, gradient.mul_(scored[:, None])


def _build_liger(softcap: float | None) -> Loss:
    try:
        from liger_kernel.ops.fused_linear_cross_entropy import (  # type: ignore[import-not-found, unused-ignore]
            LigerFusedLinearCrossEntropyFunction as Fused,
        )
    except ImportError:
        raise ConfigError(
            'model.loss = "liger": liger-kernel is not installed; pip install "hpc-ewc[gpu]", or take "chunked"'
        ) from None
    if not torch.cuda.is_available():
        raise ConfigError('model.loss = "liger": its kernels are Triton and need a GPU; take "chunked"')

    def loss(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        result = Fused.apply(hidden, weight, labels, None, None, IGNORE, 0.0, 0.0, "sum", softcap)
        return cast(torch.Tensor, (result[0] if isinstance(result, tuple) else result).float())

    return loss
