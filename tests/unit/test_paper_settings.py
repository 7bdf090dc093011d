"""The settings that docs/training.md gives as the paper's are a whole experiment, with the paper's numbers in it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from hpc_ewc.config import build_experiment
from hpc_ewc.sweep import expand


def test_the_papers_settings_are_an_experiment_of_six_strengths(repository: Path) -> None:
    page = repository / "docs" / "training.md"
    (block,) = re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    experiment = build_experiment(tomllib.loads(block), str(page))
    assert [run.experiment.ewc.strength for run in expand(experiment)] == [0.0, 1e2, 1e3, 1e6, 1e9, 1e12]
    train = experiment.train
    assert (train.learning_rate, train.weight_decay, train.warmup_ratio, train.schedule) == (2e-4, 0.01, 0.05, "cosine")
    data = experiment.data
    assert (data.fraction, data.sequence_length, data.packing) == (0.1, 512, "truncate")
    assert (experiment.ewc.mode, experiment.ewc.clip) == ("gradient", "total")
