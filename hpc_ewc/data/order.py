"""The order of the training samples: a function of seed and position only, the same on any machine.

Position s counts all samples of a run from 0; it is place s % n of epoch s // n, and each epoch has its own
pseudo-random permutation of the n samples. So one integer is the whole state of the order: nothing is shuffled, stored
or replayed, and a run that resumes with another number of ranks or accumulation steps draws the same samples in each
step.

The permutation is a Feistel network over the smallest even number of bits that can represent n; results ≥ n are
encrypted again until they are below n ("cycle walking", Black and Rogaway 2002). A batch costs O(batch) for any n.
numpy's `Generator.permutation` would cost O(n) per epoch, and its stream may change between versions (NEP 19).
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from hpc_ewc.errors import InputError

ROUNDS = 8
"""Rounds, each with a 64-bit key from one BLAKE2b digest. Four are enough for large n; small n need more."""


def batch_indices(seed: int, step: int, global_batch_size: int, n: int) -> npt.NDArray[np.int64]:
    """Return the samples of one optimizer step over all ranks, in order.

    Args:
        seed: seed of the order; any integer.
        step: the step, from 0.
        global_batch_size: samples of a step; may exceed n, and a batch may cross from one epoch into the next.
        n: samples of the dataset.

    Returns:
        [global_batch_size] int64, each in [0, n).

    Raises:
        InputError: the dataset has no samples.
    """
    if n < 1:
        raise InputError(f"the dataset has {n} samples; a batch needs at least one")
    assert step >= 0 and global_batch_size >= 1
    first = step * global_batch_size
    epoch_of_first, place_of_first = divmod(first, n)
    places = place_of_first + np.arange(global_batch_size, dtype=np.int64)
    indices = np.empty(global_batch_size, dtype=np.int64)
    for epochs in range(int(places[-1]) // n + 1):
        here = places // n == epochs
        indices[here] = permute(places[here] - epochs * n, n, seed, epoch_of_first + epochs)
    return indices


def permute(places: npt.NDArray[np.int64], n: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return the images of `places` under the permutation of range(n) that `seed` and `epoch` select."""
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    keys = np.frombuffer(hashlib.blake2b(f"hpc_ewc order 1 {seed} {epoch}".encode()).digest(), dtype="<u8")
    values = _feistel(places.astype(np.uint64), half, keys)
    outside = np.flatnonzero(values >= n)
    while outside.size:
        values[outside] = _feistel(values[outside], half, keys)
        outside = outside[values[outside] >= n]
    return values.astype(np.int64)


def _feistel(values: npt.NDArray[np.uint64], half: int, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the images of `values` under a permutation of the numbers of 2·`half` bits."""
    low = np.uint64((1 << half) - 1)
    left, right = values >> np.uint64(half), values & low
    for key in keys[:ROUNDS]:
        left, right = right, left ^ (_mix(right + key) & low)
    return (left << np.uint64(half)) | right


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): each output bit depends on every input bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
