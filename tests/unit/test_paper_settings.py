"""The paper's settings: the shipped sweeps have its numbers, and differ where docs/paper.md says so."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from hpc_ewc.config import load_experiment
from hpc_ewc.sweep import expand


def test_the_papers_settings_make_an_experiment_of_six_strengths(repository: Path) -> None:
    experiment = load_experiment(repository / "sweeps" / "paper-exact.toml")
    assert [run.experiment.ewc.strength for run in expand(experiment)] == [0.0, 1e2, 1e3, 1e6, 1e9, 1e12]
    train = experiment.train
    assert (train.learning_rate, train.weight_decay, train.warmup_ratio, train.schedule) == (2e-4, 0.01, 0.05, "cosine")
    data = experiment.data
    assert (data.fraction, data.sequence_length, data.packing) == (0.1, 512, "truncate")
    assert (experiment.ewc.mode, experiment.ewc.clip) == ("gradient", "total")


@pytest.mark.parametrize("name", ["paper", "paper-exact"])
def test_the_shipped_sweeps_have_the_papers_numbers(repository: Path, name: str) -> None:
    experiment = load_experiment(repository / "sweeps" / f"{name}.toml")
    assert experiment.grid == {"ewc.strength": (0.0, 1e2, 1e3, 1e6, 1e9, 1e12)}
    model, data, fisher, train = experiment.model, experiment.data, experiment.fisher, experiment.train
    assert model.path == "google/gemma-2-2b-it"
    assert (data.source, data.subset, data.fraction, data.sequence_length) == ("uonlp/CulturaX", "lt", 0.1, 512)
    assert (fisher.source, fisher.prompt, fisher.tokens, fisher.labels) == ("cais/mmlu", "paper", "answer", "gold")
    assert (train.learning_rate, train.weight_decay, train.warmup_ratio, train.schedule) == (2e-4, 0.01, 0.05, "cosine")
    assert (train.betas, train.eps, train.max_grad_norm, train.epochs) == ((0.9, 0.999), 1e-8, 1.0, 1.0)
    assert (experiment.ewc.mode, experiment.ewc.clip) == ("gradient", "total")
    job = experiment.resources["train"]
    assert job.gpus_per_node * train.local_batch_size == train.global_batch_size == 64, "8 a GPU, no accumulation"
    assert experiment.evaluate.suites == ("en", "lt", "fluency")
    assert experiment.evaluate.judge == "neurotechnology/Lt-Llama-2-13b"


def test_the_page_states_the_differences_between_the_sweeps(repository: Path) -> None:
    ours, exact = (load_experiment(repository / "sweeps" / f"{name}.toml") for name in ("paper", "paper-exact"))
    differ = {
        f"{part.name}.{field.name}"
        for part in dataclasses.fields(ours)
        if part.name in ("model", "data", "fisher", "ewc", "train", "evaluate")
        for field in dataclasses.fields(getattr(ours, part.name))
        if field.metadata["identifies"]
        and getattr(getattr(ours, part.name), field.name) != getattr(getattr(exact, part.name), field.name)
    }
    assert differ == {"data.packing", "fisher.split"}
    assert (exact.data.packing, exact.fisher.split) == ("truncate", "test")
    page = (repository / "docs" / "paper.md").read_text(encoding="utf-8")
    assert "| documents | the first 512 tokens, the rest discarded | joined and cut | the first 512 |" in page
    assert "| Fisher's data | MMLU test, shuffled | MMLU validation | MMLU test |" in page
