from __future__ import annotations

import dataclasses

import pytest

from hpc_ewc.config import TrainConfig
from hpc_ewc.errors import InputError
from hpc_ewc.train.plan import make_plan

CONFIG = TrainConfig(global_batch_size=8)


@pytest.mark.parametrize(
    ("changes", "samples", "steps"),
    [({}, 80, 10), ({}, 87, 10), ({"epochs": 2.5}, 80, 25), ({"epochs": 0.01}, 80, 1), ({"steps": 7}, 80, 7)],
)
def test_steps_are_the_whole_batches_of_the_corpus(changes: dict[str, float], samples: int, steps: int) -> None:
    assert make_plan(dataclasses.replace(CONFIG, **changes), samples).steps == steps


def test_exports_are_at_their_fractions() -> None:
    plan = make_plan(dataclasses.replace(CONFIG, export_at=(0.25, 0.5, 1.0), steps=10), 80)
    assert plan.exports == {2: 0.25, 5: 0.5, 10: 1.0}


def test_exports_at_the_same_step_are_refused() -> None:
    with pytest.raises(InputError, match=r"train.export_at = \[0.1, 0.2, 1.0\]: 3 checkpoints of a run of 3 steps"):
        make_plan(dataclasses.replace(CONFIG, export_at=(0.1, 0.2, 1.0), steps=3), 80)


def test_a_corpus_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(InputError, match="the corpus has 7 sequences, train.global_batch_size = 8"):
        make_plan(CONFIG, 7)
