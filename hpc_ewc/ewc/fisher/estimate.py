r"""The diagonal Fisher of a language model, from per-example gradients, on one process or on shards.

    F_i = 1/N Σ_n (∂ log p_θ(y_n | x_n) / ∂θ_i)²            log p(y|x) = Σ over the scored tokens of row n

With gold labels this is the *empirical* Fisher (Kirkpatrick et al. 2017; the paper's eq. 4); with labels drawn from
the model, an unbiased estimate of the true one (Kunstner et al. 2019 explain the difference). Each example's gradient
is squared by itself: squaring a minibatch's gradient gives another quantity, which at batch size 8 is about eight times
too small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

from torch import nn

from hpc_ewc.ewc.fisher.accumulator import FisherAccumulator
from hpc_ewc.ewc.fisher.results import Batch, FisherEstimate, FisherSums, Labels, Method, OnNonFinite


def estimate_fisher(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    labels: Labels = "gold",
    method: Method = "batched",
    samples: int = 1,
    seed: int = 0,
    on_nonfinite: OnNonFinite = "error",
    accumulate: int = 1,
    start: FisherSums | None = None,
    after_group: Callable[[FisherSums], bool] | None = None,
) -> FisherEstimate:
    """Returns the diagonal Fisher at the model's parameters: the mean over examples of their squared gradients.

    Every rank calls it, with its own batches, whose number and sizes may differ between ranks. The result does not
    depend on how rows are dealt to batches and ranks, beyond the rounding of fp32 sums. The model's gradients are
    cleared. Collectives: those of the model's forward and backward, and three small all-reduces a group of batches.

    Args:
        model: a causal language model of Transformers with fp32 parameters, plain or `fully_shard`-ed. Compute in
            fp32 (TF32 is close enough): squares of bf16 gradients are off by about 2 %.
        batches: dicts of input_ids, attention_mask, labels [B, T] int64, optionally `examples` [B]. One row is one
            example; a label stands under its token; -100 is not scored; padding may be on either side.
        labels: "gold" scores the given labels; "sampled" draws a label from the model wherever one is given.
        method: "batched" squares inside backward, a batch at a time; "reduce_scatter" runs one example a rank at a
            time and squares its gradient on the way to the shards: slow, needs no rule for a layer; the oracle.
        samples: draws for each example, with sampled labels.
        seed: of the draws.
        on_nonfinite: "error" stops and names the examples whose gradient is not finite; "skip" leaves them out.
        accumulate: batches between two reductions; above 1, unsharded squares stay in memory between them.
        start: sums of the batches before these, to continue from.
        after_group: called on every rank after each `accumulate` batches with the sums, which change in place; if it
            returns True, on every rank alike, the estimate ends there.

    Raises:
        InputError: a parameter that no rule covers, a bad batch, no scored token at all.
        NonFiniteExampleError: on every rank, with `samples`.
    """
    iterator = iter(batches)
    with FisherAccumulator(
        model, labels=labels, method=method, samples=samples, seed=seed, on_nonfinite=on_nonfinite, start=start
    ) as fisher:
        while fisher.add(list(islice(iterator, accumulate))):
            if after_group is not None and after_group(fisher.sums):
                break
        return fisher.mean()
