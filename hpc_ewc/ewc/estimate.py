"""What an estimate of the Fisher takes and gives: its sums while it goes on, its mean at the end, what can stop it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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


class FisherEstimate(Mapping[str, Tensor]):
    """{fqn: F}, laid out as `named_parameters()`, fp32, with what it is a mean over.

    Attributes:
        examples: N, rows with a scored token, over all ranks.
        skipped: rows left out because their gradient was not finite, over all ranks.
        samples: draws for each example (1 with gold labels).
    """

    def __init__(self, tensors: Mapping[str, Tensor], examples: int, skipped: int, samples: int) -> None:
        self._tensors = dict(tensors)
        self.examples = examples
        self.skipped = skipped
        self.samples = samples

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@dataclass
class FisherSums:
    """Sums so far, to be saved and gone on from.

    Attributes:
        tensors: {fqn: Σ_n g_n²}, laid out as the parameters, over all ranks' rows.
        examples: rows with a scored token in them, over all ranks.
        skipped: rows left out, over all ranks.
        groups: how often every rank has handed in its next batches.
    """

    tensors: dict[str, Tensor]
    examples: int = 0
    skipped: int = 0
    groups: int = 0
