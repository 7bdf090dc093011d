"""Profiles: accepted keys, and error messages for invalid ones."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from hpc_ewc.config import build_experiment
from hpc_ewc.errors import ConfigError
from hpc_ewc.launch.profile.keys import Profile, SlurmConfig
from hpc_ewc.launch.profile.reading import build_profile, load_profile
from hpc_ewc.launch.profile.resources import job_resources

MINIMAL = {"model": {"path": "a/model"}, "data": {"source": "a/corpus"}}


def test_the_shipped_local_profile_equals_the_defaults(repository: Path) -> None:
    assert load_profile(repository / "slurm" / "local.toml") == load_profile(None) == Profile()


def test_every_slurm_key_is_accepted() -> None:
    slurm: dict[str, Any] = {
        "partition": "standard-g",
        "account": "project_1",
        "qos": "debug",
        "constraint": "a100",
        "exclude": "n[1-2]",
        "gres": "gpu:4",
        "setup": ["module load LUMI\nmodule load torch"],
        "srun_args": ["--mpi=none"],
        "sbatch": {"reservation": "x"},
        "max_array_size": 10,
        "max_running": 3,
        "signal_delay_s": 60,
        "continuation": "chain",
        "max_submitted": 20,
        "cells_per_job": "node",
        "host_suffix": "i",
        "cpu_bind": "cores",
        "exclusive": True,
        "successors": 5,
        "grace_time_s": 60,
        "max_submitted_in": {"debug": 2},
        "scratch": "$TMPDIR",
    }
    assert set(slurm) | {"stage"} == {field.name for field in dataclasses.fields(SlurmConfig)}
    table = {"executor": "slurm", "slurm": slurm, "container": {"runtime": "apptainer", "image": "/x.sif"}}
    profile = build_profile(table | {"resources": {"train": {"nodes": 2, "time_min": 30}}}, "p.toml")
    for name, value in slurm.items():
        expected = tuple(value) if isinstance(value, list) else value
        assert getattr(profile.slurm, name) == expected


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"executer": "local"}, "p.toml: unknown key 'executer'; did you mean 'executor'?"),
        ({"executor": "pbs"}, "executor = 'pbs': allowed are local, slurm"),
        ({"local": 3}, "'local' must be a table [local]"),
        ({"local": {"cpu": 2}}, "unknown key 'local.cpu'; did you mean 'cpus'?"),
        ({"local": {"cpus": 0}}, "local.cpus = 0: allowed is [1, inf)"),
        ({"max_gpu_hours": float("nan")}, "max_gpu_hours = nan: must be finite"),
        ({"env": {"A B": "x"}}, "'A B': not a name of an environment variable"),
        ({"env": {"A": 1}}, "env.A = 1: must be a string"),
        ({"slurm": {"partition": "x"}}, '[slurm] has no meaning with executor = "local"'),
        ({"container": {"runtime": "pyxis", "image": "x"}}, '[container] has no meaning with executor = "local"'),
        ({"executor": "slurm", "local": {"cpus": 2}}, '[local] has no meaning with executor = "slurm"'),
        ({"executor": "slurm", "container": {"runtime": "pyxis"}}, "container.runtime and container.image go together"),
        ({"executor": "slurm", "slurm": {"setup": "module"}}, "slurm.setup = 'module': must be a list"),
        ({"executor": "slurm", "slurm": {"setup": ["a\0b"]}}, "slurm.setup"),
        ({"executor": "slurm", "slurm": {"sbatch": {"-x": "y"}}}, "not a long flag of sbatch"),
        (
            {"executor": "slurm", "slurm": {"sbatch": {"partition": "y"}}},
            "sbatch.partition: reserved, set slurm.partition",
        ),
        (
            {"executor": "slurm", "slurm": {"sbatch": {"comment": "y"}}},
            "reserved, it has the token by which",
        ),
        (
            {"executor": "slurm", "slurm": {"sbatch": {"export": "ALL,HF_TOKEN"}}},
            "jobs inherit a fixed list of variables",
        ),
        ({"executor": "slurm", "slurm": {"stage": {"trian": {}}}}, "unknown table 'slurm.stage.trian'; did you mean"),
        ({"executor": "slurm", "slurm": {"stage": {"train": {"nodes": 2}}}}, "unknown key 'slurm.stage.train.nodes'"),
        ({"executor": "slurm", "slurm": {"stage": 3}}, "'slurm.stage' must be tables [slurm.stage.<stage>]"),
        ({"executor": "slurm", "slurm": {"max_submitted_in": {"x": 0}}}, "slurm.max_submitted_in.x = 0: allowed is"),
        (
            {"executor": "slurm", "slurm": {"stage": {"train": {"qos": "a'b"}}}},
            'slurm.stage.train.qos = "a\'b": quotes',
        ),
        ({"executor": "slurm", "slurm": {"account": "$(id)"}}, "slurm.account = '$(id)': quotes, backslash"),
        (
            {"executor": "slurm", "slurm": {"sbatch": {"mail-user": "a`id`"}}},
            "sbatch.mail-user = 'a`id`': quotes",
        ),
        ({"executor": "slurm", "env": {"HF_TOKEN": "x"}}, "env.HF_TOKEN: jobs work offline and get no tokens"),
        ({"env": {"MY_API_KEY": "x"}}, "env.MY_API_KEY: jobs work offline and get no tokens"),
        ({"executor": "slurm", "slurm": {"continuation": "hope"}}, "allowed are requeue, chain"),
        ({"executor": "slurm", "resources": {"train": {"time_min": 4}}}, "resources.train.time_min = 4: allowed is at"),
        ({"resources": {"trian": {}}}, "unknown table 'resources.trian'; did you mean 'train'?"),
        ({"resources": {"train": {"gpus": 1}}}, "unknown key 'resources.train.gpus'"),
    ],
)
def test_invalid_profiles_are_refused_with_the_key(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        build_profile(table, "p.toml")
    assert "p.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["partition", "account", "qos", "constraint", "exclude", "gres", "cpu_bind"])
def test_no_value_adds_a_line_to_a_script(key: str) -> None:
    with pytest.raises(ConfigError, match="must not hold control characters"):
        build_profile({"executor": "slurm", "slurm": {key: "x\n#SBATCH --uid=0"}}, "p.toml")


@pytest.mark.parametrize(
    "table",
    [
        {"runs": "/a\nb"},
        {"python": "/a\nb"},
        {"env": {"A": "x\ny"}},
        {"executor": "slurm", "slurm": {"srun_args": ["a\nb"]}},
        {"executor": "slurm", "slurm": {"sbatch": {"mail-user": "a\nb"}}},
        {"executor": "slurm", "container": {"runtime": "pyxis", "image": "a\nb"}},
    ],
)
def test_control_characters_in_any_value_are_refused(table: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must not hold control characters"):
        build_profile(table, "p.toml")


def test_a_stage_can_have_its_own_partition() -> None:
    table = {"partition": "gpu", "qos": "long", "sbatch": {"hint": "a", "licenses": "b"}}
    own = {"partition": "cpu", "exclusive": False, "sbatch": {"hint": "c"}}
    profile = build_profile({"executor": "slurm", "slurm": {**table, "exclusive": True, "stage": {"tokens": own}}}, "p")
    tokens, train = profile.slurm.of("tokens"), profile.slurm.of("train")
    assert (tokens.partition, tokens.qos, tokens.exclusive) == ("cpu", "long", False)
    assert tokens.sbatch == {"hint": "c", "licenses": "b"}
    assert (train.partition, train.exclusive, train.sbatch) == ("gpu", True, table["sbatch"])


def test_profile_resources_override_key_by_key() -> None:
    experiment = build_experiment(
        MINIMAL | {"resources": {"train": {"nproc_per_node": 2, "cpus_per_task": 2, "time_min": 10}}}, "x.toml"
    )
    profile = build_profile({"resources": {"train": {"nodes": 3, "time_min": 20}}}, "p.toml")
    train = job_resources("train", experiment, profile)
    assert (train.nodes, train.nproc_per_node, train.cpus_per_task, train.time_min) == (3, 2, 2, 20)
    tokens = job_resources("tokens", experiment, profile)
    assert (tokens.nodes, tokens.nproc_per_node, tokens.cpus_per_task, tokens.elements) == (1, 1, 1, 1)


def test_number_of_ranks_defaults_to_gpus() -> None:
    profile = build_profile({"resources": {"train": {"gpus_per_node": 4, "nodes": 2, "time_min": 90}}}, "p.toml")
    train = job_resources("train", build_experiment(MINIMAL, "x.toml"), profile)
    assert (train.nproc_per_node, train.cpus_per_task) == (4, 4)
    assert train.gpu_hours == pytest.approx(2 * 4 * 1.5)
