"""Identity of artefacts: shared and separate ones, and stable names."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from hpc_ewc.config import Experiment, build_experiment, replace_at
from hpc_ewc.sweep import Identities, expand, fisher_key, run_name, tokens_key, train_key

INPUTS = Identities(model="sha256:m", tokenizer="sha256:t", corpus="sha256:c", questions="sha256:q")


def experiment(**tables: dict[str, object]) -> Experiment:
    return build_experiment({"model": {"path": "m"}, "data": {"source": "miniature"}, **tables}, "x.toml")


def test_keys_are_pinned() -> None:
    """A change here would recompute every user's artefacts: raise FORMAT and note it in CHANGELOG instead."""
    one = experiment()
    assert tokens_key(one, INPUTS) == "e18228f48910"
    assert fisher_key(one, INPUTS) == "a85144a2a155"
    assert train_key(one, INPUTS) == "b52b754436b0"


def test_keys_are_the_same_in_another_process_with_other_hash_seed_and_key_order() -> None:
    program = (
        "from hpc_ewc.config import build_experiment\n"
        "from hpc_ewc.sweep import Identities, train_key\n"
        "tables = {'data': {'packing': 'truncate', 'source': 'miniature'}, 'model': {'path': 'm'}}\n"
        "inputs = Identities(questions='sha256:q', corpus='sha256:c', tokenizer='sha256:t', model='sha256:m')\n"
        "print(train_key(build_experiment(tables, 'x'), inputs))\n"
    )
    here = train_key(experiment(data={"source": "miniature", "packing": "truncate"}), INPUTS)
    for seed in ("1", "2"):
        run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                             env={"PYTHONHASHSEED": seed})  # fmt: skip
        assert run.stdout.strip() == here


def test_a_lambda_sweep_shares_tokens_and_fisher() -> None:
    points = expand(experiment(grid={"ewc": {"strength": [0, 1e2, 1e6]}}))
    assert [point.coordinates for point in points] == [{"ewc.strength": x} for x in (0.0, 1e2, 1e6)]
    assert len({tokens_key(p.experiment, INPUTS) for p in points}) == 1
    assert len({fisher_key(p.experiment, INPUTS) for p in points}) == 1
    assert len({train_key(p.experiment, INPUTS) for p in points}) == 3


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Identities)])
def test_another_input_changes_the_training_key(field: str) -> None:
    other = dataclasses.replace(INPUTS, **{field: "sha256:other"})
    assert train_key(experiment(), other) != train_key(experiment(), INPUTS)
    assert (tokens_key(experiment(), other) != tokens_key(experiment(), INPUTS)) == (field in ("tokenizer", "corpus"))
    assert (fisher_key(experiment(), other) != fisher_key(experiment(), INPUTS)) == (field in ("model", "questions"))


def test_settings_without_effect_on_results_do_not_change_keys() -> None:
    one = experiment()
    for key, value in {
        "train.local_batch_size": 1,
        "train.checkpoint_every_s": 5.0,
        "train.compile": True,
        "train.activation_checkpointing": "full",
        "train.dp_replicate": 2,
        "fisher.batch_size": 1,
    }.items():
        assert train_key(replace_at(one, {key: value}), INPUTS) == train_key(one, INPUTS)
    assert train_key(replace_at(one, {"model.path": "/elsewhere"}), INPUTS) == train_key(one, INPUTS)
    assert train_key(replace_at(one, {"train.global_batch_size": 8}), INPUTS) != train_key(one, INPUTS)


def test_an_int_and_its_float_are_one_run() -> None:
    assert train_key(experiment(ewc={"strength": 1}), INPUTS) == train_key(experiment(ewc={"strength": 1.0}), INPUTS)


@pytest.mark.parametrize(
    ("coordinates", "name"),
    [
        ({}, "run-0123"),
        ({"ewc.strength": 1e6, "train.seed": 0}, "strength=1e+06,seed=0-0123"),
        ({"fisher.seed": 1, "train.seed": 0}, "fisher.seed=1,train.seed=0-0123"),
        ({"model.path": "../a b;$(x)\n"}, "path=.._a_b___x__-0123"),
        ({"train.export_at": (0.5, 1.0)}, "export_at=0.5+1-0123"),
        ({"train.compile": True}, "compile=true-0123"),
    ],
)
def test_run_names_are_readable_and_safe_in_paths(coordinates: dict[str, object], name: str) -> None:
    assert run_name(coordinates, "0123") == name
