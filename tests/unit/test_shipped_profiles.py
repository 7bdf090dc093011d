"""Every profile in slurm/ loads, names the values it still needs, and renders scripts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hpc_ewc.config import build_experiment
from hpc_ewc.errors import ConfigError
from hpc_ewc.launch.doctor.doctor import check_placeholders
from hpc_ewc.launch.profile.keys import Profile
from hpc_ewc.launch.profile.reading import build_profile, check_filled_in, load_profile
from hpc_ewc.launch.profile.resources import job_resources
from hpc_ewc.launch.slurm.script import build_script
from hpc_ewc.rundir import RunDir

REPOSITORY = Path(__file__).parents[2]
PROFILES = sorted(path.name for path in (REPOSITORY / "slurm").glob("*.toml"))
SITES = ("juwels-booster.toml", "leonardo.toml", "lumi.toml")
STAGES = ("tokens", "fisher", "train", "evaluate", "report")
EXPERIMENT = build_experiment({"model": {"path": "a/model"}, "data": {"source": "a/corpus"}}, "x.toml")


def test_every_site_has_a_profile() -> None:
    assert set(SITES) <= set(PROFILES)


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_renders_scripts(name: str, tmp_path: Path) -> None:
    profile = load_profile(REPOSITORY / "slurm" / name)
    if profile.executor == "local":
        return
    for stage in STAGES:
        resources = job_resources(stage, EXPERIMENT, profile)
        script = build_script(
            root=RunDir(tmp_path / "paper"),
            stage=stage,
            run="r",
            token="t-1",
            resources=resources,
            profile=profile,
            code=tmp_path,
            array=3 if stage == "evaluate" else None,
            dependency="",
        ).render()
        slurm = profile.slurm.of(stage)
        lines = [line for line in script.splitlines() if line.startswith("#SBATCH")]
        assert f"#SBATCH --partition={slurm.partition}" in lines
        assert not any("None" in line for line in lines)
        assert all(line in script for line in slurm.setup)
        asked = [line for line in lines if "gpu" in line and "--job-name" not in line]
        assert bool(asked) == bool(resources.gpus_per_node)
        assert f"--cpus-per-task={resources.cpus_per_task}" in script


@pytest.mark.parametrize("name", SITES)
def test_a_site_names_its_sources_and_values_only_the_user_knows(name: str) -> None:
    path = REPOSITORY / "slurm" / name
    text = path.read_text(encoding="utf-8")
    assert "Not yet run there" in text and "https://" in text
    cited = ", ".join(re.findall(r"\[(\d(?:, \d)*)\]", text.split("executor = ")[1]))
    assert set(cited.split(", ")) == set(re.findall(r"^# \[(\d)\]", text, re.MULTILINE))
    with pytest.raises(ConfigError, match=rf"{name}: slurm\.account, .*runs, python: not filled in yet"):
        check_filled_in(load_profile(path))


def test_doctor_names_missing_values_first() -> None:
    (gap,) = check_placeholders(load_profile(REPOSITORY / "slurm" / "leonardo.toml"))
    assert (gap.state, gap.text) == ("fail", "slurm.account, runs, python: not filled in yet")
    assert "leonardo.toml; its comments explain each key" in gap.fix
    assert list(check_placeholders(Profile())) == []


def test_a_complete_profile_is_accepted() -> None:
    for name in ("local.toml", "sandbox.toml"):
        check_filled_in(load_profile(REPOSITORY / "slurm" / name))


def test_singularity_is_accepted_as_apptainer() -> None:
    for runtime in ("apptainer", "singularity"):
        table = {"executor": "slurm", "container": {"runtime": runtime, "image": "/x.sif"}}
        assert build_profile(table, "p.toml").container.runtime == runtime
