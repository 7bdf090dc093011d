"""The paper's method, written from its formulas (arXiv 2505.05946, eq. 3 and 4) and facts about its code; not its code.

The Fisher squares the mean gradient of a minibatch, in fp16; the penalty is a term of the loss, back-propagated by
autograd; every rank has all of θ* and F. The module also has the definition of the Fisher, to judge both methods by.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Batch = Mapping[str, Tensor]
CAP = 100.0
"""Value that the paper's code puts in the place of a square that overflows fp16."""


def log_likelihood(model: Any, batch: Batch) -> Tensor:
    """Return Σ over rows and their scored tokens of log p(token | tokens before it)."""
    labels = batch["labels"]
    first = int((labels != -100).any(0)[1:].nonzero()[0]) + 1  # the head runs from the position that predicts the first
    logits = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        logits_to_keep=labels.shape[1] - first + 1,
        use_cache=False,
    ).logits
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return -F.cross_entropy(exact[:, :-1].flatten(0, 1), labels[:, first:].flatten(), reduction="sum")


def minibatches(batch: Batch, size: int) -> Iterator[dict[str, Tensor]]:
    """Yield `size` rows at a time, without padding that none of them needs."""
    for first in range(0, len(batch["input_ids"]), size):
        rows = {name: tensor[first : first + size] for name, tensor in batch.items()}
        longest = int(rows["attention_mask"].sum(1).max())
        yield {name: tensor[:, :longest] if tensor.ndim == 2 else tensor for name, tensor in rows.items()}


class PaperFisher:
    """Mean over minibatches of (∂ mean log p / ∂θ)²; gradient, square, sum and mean in `dtype`.

    Args:
        model: a plain model; every rank has all of it.
        dtype: fp16 as in the paper; fp32 shows the effect of the minibatch alone.
        shrink: divides the gradients; F is multiplied by its square. This imitates a larger model, whose trace is
            spread over more parameters.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.float16, shrink: float = 1.0) -> None:
        self.model, self.dtype, self.shrink = model, dtype, shrink
        self.parameters = dict(model.named_parameters())
        self.sums = {name: torch.zeros(p.shape, dtype=dtype) for name, p in self.parameters.items()}
        self.batches = 0
        self.capped = 0

    def add(self, batch: Batch) -> None:
        """Add one minibatch: forward, backward, squares."""
        self.model.zero_grad(set_to_none=True)
        (log_likelihood(self.model, batch) / len(batch["input_ids"])).backward()
        self.batches += 1
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                square = (parameter.grad / self.shrink).to(self.dtype) ** 2
                infinite = square.isinf()
                self.capped += int(infinite.sum())
                self.sums[name] += torch.where(infinite, torch.tensor(CAP, dtype=self.dtype), square)
        self.model.zero_grad(set_to_none=True)

    def mean(self) -> dict[str, Tensor]:
        """Return F in `dtype`, or in fp32 if gradients were shrunk: the mean over the minibatches of all ranks."""
        shares = {name: total / self.batches for name, total in self.sums.items()}
        if dist.is_initialized() and dist.get_world_size() > 1:
            for share in shares.values():
                share /= dist.get_world_size()
                dist.all_reduce(share)
        return shares if self.shrink == 1.0 else {name: s.float() * self.shrink**2 for name, s in shares.items()}


class PaperPenalty:
    """λ/2 Σ F (θ − θ*)² as a scalar with a graph, to be added to the loss; whole copies of θ* and F on every rank."""

    def __init__(self, model: nn.Module, anchor: Mapping[str, Tensor], fisher: Mapping[str, Tensor], λ: float) -> None:
        self.parameters, self.anchor, self.fisher, self.λ = dict(model.named_parameters()), anchor, fisher, λ

    def __call__(self) -> Tensor:
        terms = [(self.fisher[n] * (p - self.anchor[n]) ** 2).sum() for n, p in self.parameters.items()]
        return self.λ / 2 * torch.stack(terms).sum()

    def bytes(self) -> int:
        """Return the bytes of θ* and F on this rank."""
        return sum(t.numel() * t.element_size() for t in [*self.anchor.values(), *self.fisher.values()])


# ---------------------------------------------------------------------------------------------- the definition


class _Float64(TorchFunctionMode):
    """Computes in float64 where transformers casts to float32 (norms, softmax)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.float:
            return args[0].double()
        if kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


def fisher_by_definition(model: Any, examples: Iterable[Batch]) -> dict[str, Tensor]:
    """Return 1/N Σ_n (∂ log p(y_n|x_n) / ∂θ)², computed one example at a time, all in float64.

    Args:
        model: a copy of the model, which is converted to float64.
        examples: batches of one row without padding.
    """
    model = model.double().eval()
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    count = 0
    with _Float64():
        for example in examples:
            model.zero_grad(set_to_none=True)
            log_likelihood(model, example).backward()
            for name, parameter in model.named_parameters():
                sums[name] += parameter.grad**2
            count += 1
    return {name: total / count for name, total in sums.items()}
