"""The order of samples is a function of (seed, sample index) alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hpc_ewc.data import batch_indices
from hpc_ewc.data.order import permute
from hpc_ewc.errors import InputError


@given(n=st.integers(1, 3000), seed=st.integers(0, 2**63), epoch=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_an_epoch_contains_every_sample_once(n: int, seed: int, epoch: int) -> None:
    assert sorted(permute(np.arange(n), n, seed, epoch)) == list(range(n))


@given(
    n=st.integers(1, 200), batch=st.integers(1, 70), other=st.integers(1, 70), seed=st.integers(0, 99),
    steps=st.integers(1, 12),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_every_batch_size_splits_the_same_sequence(n: int, batch: int, other: int, seed: int, steps: int) -> None:
    sequence = np.concatenate([batch_indices(seed, step, batch, n) for step in range(steps)])
    others = [batch_indices(seed, step, other, n) for step in range(-(-len(sequence) // other))]
    assert (sequence == np.concatenate(others)[: len(sequence)]).all()


@given(n=st.integers(1, 50), batch=st.integers(1, 120), step=st.integers(0, 40), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_a_batch_crosses_epochs_sample_by_sample(n: int, batch: int, step: int, seed: int) -> None:
    positions = range(step * batch, (step + 1) * batch)
    one_by_one = [int(permute(np.array([s % n]), n, seed, s // n)[0]) for s in positions]
    assert batch_indices(seed, step, batch, n).tolist() == one_by_one


def test_the_order_is_pinned() -> None:
    """If these numbers changed, an interrupted run would resume with other samples."""
    assert batch_indices(0, 0, 8, 1000).tolist() == [731, 292, 716, 724, 856, 597, 96, 21]
    assert batch_indices(7, 123456, 4, 10**9 + 7).tolist() == [335207595, 822449816, 815108251, 817740133]


def test_seeds_and_epochs_differ() -> None:
    orders = {tuple(permute(np.arange(500), 500, seed, epoch)) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


def test_samples_are_spread_evenly() -> None:
    """Chi-square tests of a sample's position and its distance to the next, over 1,000 permutations of 20."""
    orders = np.array([permute(np.arange(20), 20, seed, epoch) for seed in range(50) for epoch in range(20)])
    for column in (0, 7, 19):
        assert stats.chisquare(np.bincount(orders[:, column], minlength=20)).pvalue > 1e-4
    steps = np.bincount(((orders[:, 1:] - orders[:, :-1]) % 20).ravel(), minlength=20)
    assert steps[0] == 0
    assert stats.chisquare(steps[1:]).pvalue > 1e-4


def test_samples_are_not_in_corpus_order() -> None:
    order = permute(np.arange(10_000), 10_000, 0, 0)
    assert abs(stats.spearmanr(order, np.arange(10_000)).statistic) < 0.05


def test_zero_samples_are_an_error() -> None:
    with pytest.raises(InputError, match="the dataset has 0 samples"):
        batch_indices(0, 0, 4, 0)
