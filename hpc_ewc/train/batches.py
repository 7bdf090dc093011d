"""One step's samples, dealt to ranks and cut into microbatches.

Which samples make a step depends on (seed, step) alone; how they are dealt depends on the ranks, and changes nothing
but the order of sums. Ranks run equally many microbatches, since each forward is a collective: a rank that has none
left runs one whose tokens are not scored.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

IGNORE = -100


@dataclass(frozen=True)
class Microbatch:
    """input_ids, labels: [B, T] int64 on the CPU, -100 = not scored; samples: [B] indices in the corpus."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    samples: Sequence[int]

    def scored(self) -> int:
        """Tokens with a loss: the first of a sequence has none."""
        return int((self.labels[:, 1:] != IGNORE).sum())


def deal(indices: Sequence[int], rank: int, world_size: int, local_batch_size: int) -> list[list[int]]:
    """This rank's samples of one step as microbatches of at most `local_batch_size`; equally many on every rank.

    Args:
        indices: of the whole step.
        rank: of `world_size`.
        world_size: over which the samples are dealt.
        local_batch_size: sequences of one forward.

    Returns:
        Lists of samples, of sizes as equal as they can be; empty ones where other ranks have more samples.
    """
    own = list(indices[rank::world_size])
    most = math.ceil(len(indices) / world_size)
    count = math.ceil(most / local_batch_size)
    bounds = [round(i * len(own) / count) for i in range(count + 1)]
    return [own[a:b] for a, b in itertools.pairwise(bounds)]


def build_microbatch(rows: Sequence[np.ndarray | torch.Tensor], samples: Sequence[int], length: int) -> Microbatch:
    """Rows of token ids as a microbatch whose labels are its ids; one unscored row where there are none."""
    if not rows:
        empty = torch.zeros((1, length), dtype=torch.int64)
        return Microbatch(empty, torch.full_like(empty, IGNORE), [])
    ids = torch.stack([torch.as_tensor(row, dtype=torch.int64) for row in rows])
    return Microbatch(ids, ids.clone(), list(samples))
