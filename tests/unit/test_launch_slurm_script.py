"""Batch scripts: golden files, quoting, and steps before the task. Nothing is submitted."""

from __future__ import annotations

import os
import pickle
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hpc_ewc import records, rundir
from hpc_ewc.errors import ConfigError
from hpc_ewc.launch.profile.keys import Profile, SlurmConfig
from hpc_ewc.launch.profile.reading import build_profile
from hpc_ewc.launch.profile.resources import JobResources
from hpc_ewc.launch.slurm.script import Script, build_script, check_paths, gpu_request, inherited_environment
from hpc_ewc.rundir import RunDir

ONE = JobResources(1, 1, 0, 1, None, 60, 1)
CLUSTER: dict[str, Any] = {
    "executor": "slurm",
    "python": "/proj/my venv/bin/python",
    "slurm": {
        "partition": "standard-g",
        "account": "project_465",
        "constraint": "a100&nvme",
        "setup": ["module load LUMI"],
        "srun_args": ["--mpi=none"],
        "sbatch": {"mail-type": "END", "hint": "nomultithread"},
        "max_running": 8,
        "exclusive": True,
        "cpu_bind": "cores",
        "stage": {"tokens": {"partition": "small", "exclusive": False, "sbatch": {"hint": "multithread"}}},
    },
}


def script(profile: Profile, stage: str = "train", array: int | None = None, root: str = "/runs/paper") -> Script:
    resources = JobResources(2, 8, 8, 56, 480, 720, 1) if stage == "train" else ONE
    return build_script(
        root=RunDir(Path(root)),
        stage=stage,
        run="strength=1e+06,seed=0-3f2a9c1b77de",
        token="20260102-030405-0001-abcdef",
        resources=resources,
        profile=profile,
        code=Path(root) / "code" / "0123456789ab",
        array=array,
        dependency="afterok:12:13",
    )


@pytest.mark.parametrize(("stage", "array"), [("train", None), ("tokens", 5)])
def test_scripts_equal_the_golden_ones(repository: Path, stage: str, array: int | None) -> None:
    golden = repository / "tests" / "golden" / f"submission_{stage}.sh"
    assert script(build_profile(CLUSTER, "p.toml"), stage, array).render() == golden.read_text()


def test_a_chain_is_never_requeued() -> None:
    text = script(build_profile({"executor": "slurm", "slurm": {"continuation": "chain"}}, "p.toml")).render()
    assert "#SBATCH --no-requeue\n" in text and "#SBATCH --requeue\n" not in text


@pytest.mark.parametrize(
    ("gres", "gpus", "expected"),
    [
        ("", 0, {}),
        ("gpu:a100:4", 0, {}),
        ("", 4, {"gpus_per_node": 4}),
        ("gpu:a100", 4, {"gres": "gpu:a100:4"}),
        ("gpu:a100:2", 4, {"gres": "gpu:a100:2"}),
        ("gpu", 4, {"gres": "gpu:4"}),
    ],
)
def test_gpu_request_follows_the_sites_format(gres: str, gpus: int, expected: dict[str, Any]) -> None:
    assert gpu_request(JobResources(1, 1, gpus, 1, None, 60, 1), SlurmConfig(gres=gres)) == expected


def test_no_name_or_path_breaks_out_of_the_script(tmp_path: Path) -> None:
    """A real shell runs the script, with an srun that prints its arguments."""
    root = tmp_path / "a b;touch pwned & $(touch pwned)"
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "srun").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tools / "srun").chmod(0o755)
    hostile = {"executor": "slurm", "python": "/x;touch pwned/python", "slurm": {"srun_args": ["--a=;touch pwned"]}}
    made = script(build_profile(hostile, "p.toml"), root=str(root))
    (root / "jobs").mkdir(parents=True)
    made.write(print)
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    done = subprocess.run(
        ["bash", str(rundir.script_file(made.folder))], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("pwned*"))
    assert "--a=;touch pwned" in done.stdout.splitlines()
    assert "/x;touch pwned/python" in done.stdout.splitlines()
    assert pickle.loads((root / "jobs" / "7" / "7_submitted.pkl").read_bytes()).function is print


def test_files_of_an_earlier_job_with_the_same_id_are_moved_aside(tmp_path: Path) -> None:
    """A recreated sandbox numbers jobs from 1 again, in the same run folder."""
    root = tmp_path / "paper"
    (root / "jobs" / "7").mkdir(parents=True)
    (root / "jobs" / "7" / "7_submitted.pkl").symlink_to("../another/task.pkl")
    (root / "jobs" / "7" / "stop.0").touch()
    made = script(build_profile({"executor": "slurm"}, "p.toml"), root=str(root))
    made.write(print)
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    for stop in ("", "stop.1"):  # first start, then restart
        subprocess.run(["bash", str(rundir.script_file(made.folder))], env=environment, check=True)
        assert not (root / "jobs" / "7" / "stop.0").exists()
        assert not stop or (root / "jobs" / "7" / stop).exists(), "its own stays"
        (root / "jobs" / "7" / "stop.1").touch()
    assert len(list((root / "jobs").glob("7.*/stop.0"))) == 1


def test_a_stop_request_made_before_the_script_runs_is_kept(tmp_path: Path) -> None:
    """`hpc-ewc cancel` of a job that Slurm starts at the same moment."""
    root = tmp_path / "paper"
    stop = rundir.stop_file(root / "jobs" / "7", 0)
    records.write_text(stop, "")
    made = script(build_profile({"executor": "slurm"}, "p.toml"), root=str(root))
    made.write(print)
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    subprocess.run(["bash", str(rundir.script_file(made.folder))], env=environment, check=True)
    assert stop.exists() and (stop.parent / "7_submitted.pkl").is_symlink()


def test_every_flag_is_one_line_and_quoted_as_sbatch_reads_it() -> None:
    text = script(build_profile(CLUSTER, "p.toml")).render()
    flags = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    for line in flags:
        assert len(shlex.split(line.removeprefix("#SBATCH "))) == 1, line


def test_a_job_inherits_listed_variables_and_no_token() -> None:
    shell = {"HOME": "/h", "PATH": "/b", "HF_TOKEN": "x", "WANDB_API_KEY": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    shell |= {"SBATCH_PARTITION": "other", "SLURM_JOB_ID": "3", "SLURM_CONF": "/c", "LMOD_DIR": "/l", "EVIL": "1"}
    shell |= {"BASH_FUNC_module%%": "() { :; }", "BASH_FUNC_ls%%": "() { :; }", "MODULEPATH": "/m"}
    kept = {"HOME", "PATH", "SLURM_CONF", "LMOD_DIR", "BASH_FUNC_module%%", "MODULEPATH"}
    assert set(inherited_environment(shell)) == kept


def test_a_job_finds_the_hub_cache_without_shell_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SCRATCH", "/scratch/me")
    shell = {
        "HF_HOME": "$MY_SCRATCH/hf",
        "HUGGINGFACE_HUB_CACHE": "/old",
        "XDG_CACHE_HOME": "/x",
        "HF_HUB_CACHE": "~/n",
    }
    assert inherited_environment(shell) == shell | {"HF_HOME": "/scratch/me/hf"}


@pytest.mark.parametrize("name", ["50%", 'a"b', "a'b", "a\\b", "a\nb"])
def test_a_run_folder_with_characters_special_to_slurm_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="has a meaning for Slurm; choose another by --runs"):
        check_paths(RunDir(Path("/runs") / name / "x"))
