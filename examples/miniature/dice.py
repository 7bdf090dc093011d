"""Random draws that are the same in every version of Python: all are made from `Random.random()` alone.

Python guarantees the stream of `random()` for a given seed across versions, but not those of `choice`, `sample` and
`shuffle`. A string seed goes through SHA-512, so hash randomisation does not affect it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


class Dice:
    """A stream of draws, seeded by names such as `Dice(0, "train", "lt")`; equal names give equal streams."""

    def __init__(self, *names: object) -> None:
        self._random = random.Random("/".join(map(str, names))).random

    def below(self, n: int) -> int:
        """An integer in [0, n)."""
        return int(self._random() * n)

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def pick(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def sample(self, items: Sequence[T], k: int) -> list[T]:
        """`k` items from different places, in random order (the head of a Fisher-Yates shuffle)."""
        pool = list(items)
        for i in range(k):
            j = i + self.below(len(pool) - i)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:k]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        return self.sample(items, len(items))

    def weighted(self, weights: Mapping[T, float]) -> T:
        """A key of `weights`, drawn with a probability in proportion to its weight."""
        left = self._random() * sum(weights.values())
        for key, weight in weights.items():
            left -= weight
            if left < 0:
                return key
        return key  # rounding at the very end of the interval
