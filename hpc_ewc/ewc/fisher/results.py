"""The types of a Fisher estimate: its options, its sums while it runs, its result, and the error that stops it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from hpc_ewc.errors import InputError

Batch = Mapping[str, Tensor]
Labels = Literal["gold", "sampled"]
Method = Literal["batched", "reduce_scatter"]
OnNonFinite = Literal["error", "skip"]


class NonFiniteExampleError(InputError):
    """An example's gradient is not finite.

    Attributes:
        samples: the numbers of such examples, from the batches' own `examples`.
    """

    def __init__(self, message: str, samples: list[int]) -> None:
        super().__init__(message)
        self.samples = samples


class FisherEstimate(dict[str, Tensor]):
    """{fqn: F}, laid out as `named_parameters()`, fp32: a mean over examples.

    Attributes:
        examples: N, rows with a scored token, over all ranks.
        skipped: rows left out because their gradient was not finite, over all ranks.
        samples: draws for each example (1 with gold labels).
    """

    def __init__(self, tensors: Mapping[str, Tensor], examples: int, skipped: int, samples: int) -> None:
        super().__init__(tensors)
        self.examples = examples
        self.skipped = skipped
        self.samples = samples


@dataclass
class FisherSums:
    """The sums of an estimate that is not finished; they can be saved, and a later estimate started from them.

    Attributes:
        tensors: {fqn: Σ_n g_n²}, laid out as the parameters, over all ranks' rows.
        examples: rows with a scored token in them, over all ranks.
        skipped: rows left out, over all ranks.
        groups: how often every rank has called `FisherAccumulator.add` with batches.
    """

    tensors: dict[str, Tensor]
    examples: int = 0
    skipped: int = 0
    groups: int = 0
