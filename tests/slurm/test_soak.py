"""Five minutes of the soak (soak.py), and its dice."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from hpc_ewc import records
from tests.slurm.faults import FAULTS
from tests.slurm.soak import Deck, Log, soak

pytestmark = pytest.mark.slurm


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_whatever_happens_the_numbers_are_those_of_a_quiet_run(
    can_start: None, miniature: Path, tmp_path: Path
) -> None:
    log = Log(tmp_path / "soak.jsonl")
    assert soak(5.0, seed=1, every_s=8.0, log=log, miniature=miniature), log.path.read_text()
    lines = list(records.read_lines(log.path))
    assert lines[0]["seed"] == 1 and lines[-1]["what"] == "end"
    assert lines[-1]["faults"] >= 10 and all(all(line["same"].values()) for line in lines if line["what"] == "round")


def test_each_misfortune_comes_as_often_as_the_others_in_an_order_that_the_seed_says() -> None:
    one, same, other = (Deck(random.Random(seed)) for seed in (1, 1, 2))
    drawn = [one.draw() for _ in range(3 * len(FAULTS))]
    assert drawn == [same.draw() for _ in drawn]
    assert drawn != [other.draw() for _ in drawn]
    assert sorted(drawn) == sorted([*FAULTS] * 3)
