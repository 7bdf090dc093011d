"""Submitting to Slurm: scripts, order, what is not submitted again, refusals. A real cluster's are in tests/slurm."""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hpc_ewc import records, rundir
from hpc_ewc.errors import ConfigError, SubmitError
from hpc_ewc.launch import slurm
from hpc_ewc.launch.graph import Element
from hpc_ewc.launch.ledger import Job, Ledger
from hpc_ewc.launch.process import this_process
from hpc_ewc.launch.profile import Profile, SlurmConfig
from hpc_ewc.launch.profile_reading import build_profile
from hpc_ewc.launch.reconcile import other_executor_lives, settle
from hpc_ewc.launch.resources import JobResources
from hpc_ewc.launch.scheduler import SchedulerError
from hpc_ewc.launch.slurm_output import SlurmJob
from hpc_ewc.launch.slurm_plan import covers
from hpc_ewc.launch.slurm_refusal import explain_refusal
from hpc_ewc.launch.slurm_script import Script, build_script, check_paths, gpu_request, inherited_environment
from hpc_ewc.launch.submit import DONE, UNFINISHED, submit
from hpc_ewc.rundir import RunDir
from tests.unit import fake_slurm
from tests.unit.launch_world import write_experiment

ONE = JobResources(1, 1, 0, 1, None, 60, 1)
SLURM = 'executor = "slurm"\npython = "/venv/bin/python"\n[slurm]\npartition = "main"\n'
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


# ---------------------------------------------------------------------------------------------- the script


@pytest.mark.parametrize(("stage", "array"), [("train", None), ("tokens", 5)])
def test_scripts_read_as_they_were_agreed(repository: Path, stage: str, array: int | None) -> None:
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
def test_gpus_are_asked_for_as_the_site_wants_it(gres: str, gpus: int, expected: dict[str, Any]) -> None:
    assert gpu_request(JobResources(1, 1, gpus, 1, None, 60, 1), SlurmConfig(gres=gres)) == expected


def test_no_name_or_path_breaks_out_of_the_script(tmp_path: Path) -> None:
    """The script is run by a real shell, with an srun that shows its arguments."""
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


def test_what_another_job_of_the_same_id_left_is_put_aside(tmp_path: Path) -> None:
    """A sandbox that was made anew counts from 1 again, in the run folder that is there."""
    root = tmp_path / "paper"
    (root / "jobs" / "7").mkdir(parents=True)
    (root / "jobs" / "7" / "stop.0").touch()
    made = script(build_profile({"executor": "slurm"}, "p.toml"), root=str(root))
    made.write(print)
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    for stop in ("", "stop.1"):  # started, and started again
        subprocess.run(["bash", str(rundir.script_file(made.folder))], env=environment, check=True)
        assert not (root / "jobs" / "7" / "stop.0").exists()
        assert not stop or (root / "jobs" / "7" / stop).exists(), "its own stays"
        (root / "jobs" / "7" / "stop.1").touch()
    assert len(list((root / "jobs").glob("7.*/stop.0"))) == 1


def test_an_id_that_came_round_again_is_another_job(cluster: Path, tmp_path: Path) -> None:
    give(tmp_path)
    jobs = fake_slurm.load(cluster)["jobs"]
    fake_slurm.change(cluster, jobs=[job | {"comment": "of-another-run-folder"} for job in jobs])
    give(tmp_path)
    assert len(fake_slurm.load(cluster)["jobs"]) == 16


def test_every_flag_is_one_line_and_quoted_as_sbatch_reads_it() -> None:
    text = script(build_profile(CLUSTER, "p.toml")).render()
    flags = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    for line in flags:
        assert len(shlex.split(line.removeprefix("#SBATCH "))) == 1, line


def test_a_job_inherits_a_list_and_no_token() -> None:
    shell = {"HOME": "/h", "PATH": "/b", "HF_TOKEN": "x", "WANDB_API_KEY": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    shell |= {"SBATCH_PARTITION": "other", "SLURM_JOB_ID": "3", "SLURM_CONF": "/c", "LMOD_DIR": "/l", "EVIL": "1"}
    shell |= {"BASH_FUNC_module%%": "() { :; }", "BASH_FUNC_ls%%": "() { :; }", "MODULEPATH": "/m"}
    kept = {"HOME", "PATH", "SLURM_CONF", "LMOD_DIR", "BASH_FUNC_module%%", "MODULEPATH"}
    assert set(inherited_environment(shell)) == kept


@pytest.mark.parametrize("name", ["50%", 'a"b', "a'b", "a\\b", "a\nb"])
def test_a_run_folder_that_slurm_would_read_otherwise_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="has a meaning for Slurm; choose another by --runs"):
        check_paths(RunDir(Path("/runs") / name / "x"))


# ---------------------------------------------------------------------------------------------- submitting


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = fake_slurm.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("HPC_EWC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(slurm, "FOUND_AGAIN_S", (0.0, 0.0))
    monkeypatch.chdir(tmp_path)
    return folder


def give(tmp_path: Path, more: str = "", sweep: str = "", **experiment: Any) -> int:
    path = write_experiment(tmp_path, more=sweep, **experiment)
    (tmp_path / "p.toml").write_text(SLURM + more)
    return submit(path, tmp_path / "p.toml", tmp_path / "runs", tmp_path / "out", dry_run=False, yes=True)


def names(cluster: Path) -> list[str]:
    return [re.sub(r"-[0-9a-f]{12}$|/[0-9a-f]{12}$", "", job["name"]) for job in fake_slurm.load(cluster)["jobs"]]


def test_each_stage_stands_behind_what_it_reads(cluster: Path, tmp_path: Path) -> None:
    assert give(tmp_path) == DONE
    jobs = {re.sub(r"[-/][0-9a-f]{12}$", "", job["name"]): job for job in fake_slurm.load(cluster)["jobs"]}
    wants = {name: job["dependency"] for name, job in jobs.items()}
    ids = {name: str(job["id"]) for name, job in jobs.items()}
    assert wants["small/tokens"] == wants["small/fisher"] == ""
    assert wants["small/train/strength=0"] == f"afterok:{ids['small/tokens']}"
    assert wants["small/train/strength=1e+06"] == f"afterok:{ids['small/tokens']}:{ids['small/fisher']}"
    assert wants["small/evaluate/strength=0"] == f"afterok:{ids['small/train/strength=0']}"
    assert wants["small/evaluate/base"] == f"afterok:{ids['small/tokens']}"
    evaluations = {ids[name] for name in ids if name.startswith("small/evaluate")}
    kind, *waited = wants["small/report"].split(":")
    assert (kind, set(waited)) == ("afterany", evaluations)


def test_what_is_queued_is_not_submitted_again(
    cluster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    give(tmp_path)
    before = names(cluster)
    assert give(tmp_path) == DONE
    assert names(cluster) == before
    assert f"nothing to submit ({len(before)} were queued or running already)" in capsys.readouterr().err


def test_an_evaluation_is_one_array_and_only_its_lost_elements_come_again(cluster: Path, tmp_path: Path) -> None:
    give(tmp_path, elements=2)
    arrays = [job for job in fake_slurm.load(cluster)["jobs"] if "/evaluate/" in job["name"]]
    assert [job["elements"] for job in arrays] == [2, 2, 2]
    fake_slurm.set_states(cluster, "CANCELLED", "evaluate/base")
    give(tmp_path, elements=2)
    again = fake_slurm.load(cluster)["jobs"][8:]
    assert [job["name"] for job in again] == ["small/evaluate/base", "small/report"]
    reports = [job["state"] for job in fake_slurm.load(cluster)["jobs"] if job["name"] == "small/report"]
    assert reports == ["CANCELLED", "PENDING"], "the old one waited for too few"


def test_long_arrays_are_cut(cluster: Path, tmp_path: Path) -> None:
    give(tmp_path, "max_array_size = 1\n", elements=2)
    assert names(cluster).count("small/evaluate/base") == 2


def test_a_refusal_half_way_is_topped_up(cluster: Path, tmp_path: Path) -> None:
    fake_slurm.change(cluster, refuse_after=4, words="Batch job submission failed: Job violates accounting/QOS policy")
    with pytest.raises(SubmitError, match=r"sbatch refused small/\S+ \(exit 1\): .*accounting/QOS policy.*p\.toml"):
        give(tmp_path)
    first = names(cluster)
    assert len(first) == 4
    fake_slurm.change(cluster, refuse_after=100)
    give(tmp_path)
    assert len(names(cluster)) == len(set(names(cluster))) == 8


def test_what_waits_behind_a_failure_is_given_again_with_it(cluster: Path, tmp_path: Path) -> None:
    """Slurm has not looked at the queue since the training failed: its evaluation still seems to wait."""
    give(tmp_path)
    fake_slurm.set_states(cluster, "FAILED", "train/strength=0")
    give(tmp_path)
    jobs = fake_slurm.load(cluster)["jobs"]
    assert [job["name"].split("-")[0] for job in jobs[8:]] == [
        "small/train/strength=0",
        "small/evaluate/strength=0",
        "small/report",
    ]
    assert jobs[9]["dependency"] == f"afterok:{jobs[8]['id']}"
    old = [job["state"] for job in jobs[:8] if job["name"].startswith("small/evaluate/strength=0")]
    assert old == ["CANCELLED"]


def test_a_lost_answer_is_no_lost_job(cluster: Path, tmp_path: Path) -> None:
    fake_slurm.change(cluster, lose_answer=3)
    assert give(tmp_path) == DONE
    assert len(names(cluster)) == len(set(names(cluster))) == 8


def test_an_intent_without_an_id_is_looked_up_first(cluster: Path, tmp_path: Path) -> None:
    """A submitter that was killed right after sbatch, at each of its jobs in turn."""
    give(tmp_path)
    ledger = tmp_path / "runs" / "small" / "jobs.jsonl"
    whole, jobs = ledger.read_text().splitlines(keepends=True), fake_slurm.load(cluster)["jobs"]
    for cut in [i for i, line in enumerate(whole) if '"submitted"' in line]:
        ledger.write_text("".join(whole[:cut]))
        known = sum('"intent"' in line for line in whole[:cut])
        fake_slurm.change(cluster, jobs=jobs[:known])
        give(tmp_path)
        assert len(names(cluster)) == len(set(names(cluster))) == 8


def test_an_intent_that_never_reached_slurm_is_submitted(cluster: Path, tmp_path: Path) -> None:
    give(tmp_path)
    ledger = tmp_path / "runs" / "small" / "jobs.jsonl"
    whole = ledger.read_text().splitlines(keepends=True)
    cut = next(i for i, line in enumerate(whole) if '"submitted"' in line)
    ledger.write_text("".join(whole[:cut]))
    fake_slurm.change(cluster, jobs=[])
    give(tmp_path)
    assert len(names(cluster)) == 8
    assert [job.outcome for job in Ledger(RunDir(ledger.parent)).read().jobs.values()].count("lost") == 1


def test_nothing_is_submitted_while_slurm_is_silent(cluster: Path, tmp_path: Path) -> None:
    fake_slurm.change(cluster, silent=["squeue"])
    with pytest.raises(SubmitError, match="Unable to contact slurm controller.*try again in a minute"):
        give(tmp_path)
    assert names(cluster) == []


def test_a_site_s_limit_leaves_whole_runs_and_the_next_submit_adds_the_rest(
    cluster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = "max_submitted = 5\n"
    assert give(tmp_path, limit) == UNFINISHED
    assert names(cluster) == [
        "small/tokens",
        "small/evaluate/base",
        "small/train/strength=0",
        "small/evaluate/strength=0",
    ]
    assert "no room for 4 stages" in capsys.readouterr().err
    assert give(tmp_path, limit) == UNFINISHED
    assert len(names(cluster)) == 4
    fake_slurm.set_states(cluster, "COMPLETED")
    fake_slurm.set_states(cluster, "CANCELLED", "evaluate")  # nothing was made here: they come again
    give(tmp_path, "max_submitted = 100\n")
    assert names(cluster)[4:].count("small/report") == 1


def test_an_array_longer_than_the_limit_is_given_in_parts(cluster: Path, tmp_path: Path) -> None:
    """The first elements that fit; as they leave the queue, the next."""
    assert give(tmp_path, "max_submitted = 3\n", elements=2, strengths=[0.0]) == UNFINISHED
    assert [(job["name"].split("/")[1], job["elements"]) for job in fake_slurm.load(cluster)["jobs"]] == [
        ("tokens", 0),
        ("evaluate", 0),  # one of two
    ]


def test_a_partition_s_own_limit_counts(cluster: Path, tmp_path: Path) -> None:
    assert give(tmp_path, "max_submitted_in = { main = 2 }\n") == UNFINISHED
    assert len(names(cluster)) == 2


def test_local_jobs_and_slurm_s_do_not_mix(cluster: Path, tmp_path: Path) -> None:
    give(tmp_path)
    with pytest.raises(SubmitError, match=r"8 jobs of \S+ wait or run on Slurm; submit with the Slurm profile"):
        submit(tmp_path / "small.toml", None, tmp_path / "runs", tmp_path / "out", dry_run=False, yes=True)
    fake_slurm.set_states(cluster, "CANCELLED")
    other_executor_lives(RunDir(tmp_path / "runs" / "small"), "local")  # and once they are gone it may


def test_a_local_job_that_runs_keeps_slurm_away(cluster: Path, tmp_path: Path) -> None:
    root = RunDir(tmp_path / "runs" / "small")
    Ledger(root).intent("t", "train", "a", "0")
    Ledger(root).submitted("t", "t", this_process())
    with pytest.raises(SubmitError, match=r"1 local jobs of \S+ still run; wait for them"):
        give(tmp_path)


def test_a_chain_hangs_dependants_on_its_last(cluster: Path, tmp_path: Path) -> None:
    give(tmp_path, 'continuation = "chain"\nsuccessors = 2\n', strengths=[0.0])
    jobs = fake_slurm.load(cluster)["jobs"]
    train = [job for job in jobs if "/train/" in job["name"]]
    tokens = [job for job in jobs if "/tokens/" in job["name"]]
    assert [job["dependency"] for job in train] == [
        f"afterok:{tokens[-1]['id']}",
        f"afterok:{tokens[-1]['id']},afterany:{train[0]['id']}",
        f"afterok:{tokens[-1]['id']},afterany:{train[1]['id']}",
    ]
    evaluate = next(job for job in jobs if "/evaluate/strength" in job["name"])
    assert evaluate["dependency"] == f"afterok:{train[-1]['id']}"


def test_a_token_of_the_user_s_is_nowhere(cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_a_secret")
    give(tmp_path)
    runs = tmp_path / "runs" / "small"
    assert not [path for path in runs.rglob("*") if path.is_file() and b"hf_a_secret" in path.read_bytes()]
    assert (runs / "jobs").stat().st_mode & 0o777 == 0o700


def test_a_stage_without_time_to_start_is_refused(cluster: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"resources\.train\.time_min = 3: allowed is at least 5"):
        give(tmp_path, sweep="[resources.train]\ntime_min = 3\n")


def test_a_dry_run_shows_a_script_of_each_stage(
    cluster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_experiment(tmp_path)
    (tmp_path / "p.toml").write_text(SLURM)
    arguments = (path, tmp_path / "p.toml", tmp_path / "runs", tmp_path / "out")
    assert submit(*arguments, dry_run=True, yes=False) == DONE
    shown = capsys.readouterr().out
    assert shown.count("=====") == 5
    assert "#SBATCH --dependency='afterok:<tokens/" in shown
    submit(*arguments, dry_run=True, yes=False, scripts=True)
    assert capsys.readouterr().out.count("=====") == 8
    assert not (tmp_path / "runs").exists() and names(cluster) == []


# ---------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ("Batch job submission failed: Invalid account or account/partition combination specified", "slurm.account"),
        ("invalid partition specified: nope", "slurm.partition"),
        ("Invalid qos specification", "slurm.qos"),
        ("Invalid feature specification", "slurm.constraint"),
        ("Invalid generic resource (gres) specification", "slurm.gres"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "resources.train.time_min"),
        ("Memory specification can not be satisfied", "resources.train.mem_gb"),
        ("Invalid job array specification", "slurm.max_array_size"),
        (
            "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
            "slurm.max_submitted",
        ),
        ("Requested node configuration is not available", "resources.train.nodes"),
        ("unrecognized option '--nix=1'", "slurm.sbatch"),
    ],
)
def test_a_refusal_names_the_key_to_change(tmp_path: Path, words: str, key: str) -> None:
    node: Any = type("N", (), {"stage": "train"})()
    error = SchedulerError(f'`sbatch x.sh` (exit 1): "sbatch: error: {words}"', "refused")
    profile = build_profile({"executor": "slurm"}, "lumi.toml")
    said = str(explain_refusal(error, "paper/train/a", Path("/runs/submission.sh"), node, profile))
    assert said.startswith(f'sbatch refused paper/train/a (exit 1): "{words}"; ')
    assert key in said and "in lumi.toml" in said and said.endswith("Script: /runs/submission.sh")


# ---------------------------------------------------------------------------------------------- how jobs ended


@pytest.mark.parametrize(
    ("state", "wrote", "expected"),
    [
        ("COMPLETED", None, "finished"),
        ("FAILED", "failed", "failed"),
        ("FAILED", "stopped", "stopped"),
        ("FAILED", None, "failed"),
        ("CANCELLED", None, "stopped"),
        ("TIMEOUT", None, "stopped"),
        ("NODE_FAIL", None, "stopped"),
        ("OUT_OF_MEMORY", None, "failed"),
        ("CANCELLED", "failed", "failed"),
        (None, None, "stopped"),
        (None, "finished", "finished"),
    ],
)
def test_how_a_job_ended(tmp_path: Path, state: str | None, wrote: str | None, expected: str) -> None:
    root = RunDir(tmp_path)
    job = Job("t", "train", "a", "0", job_id="7", scheduler="slurm")
    if wrote:
        records.write_json(rundir.exit_file(root.job("7"), 0), {"status": 1, "outcome": wrote})
    told = SlurmJob("7", "7", state=state, exit_code="1:0") if state else None
    assert settle(root, job, told) == expected


def test_a_job_whose_launcher_never_started_says_why(tmp_path: Path) -> None:
    root = RunDir(tmp_path)
    job = Job("t", "train", "a", "0", job_id="7", scheduler="slurm")
    records.write_text(root.job("t") / "7_batch.out", "/bad/python: No such file or directory\n")
    assert settle(root, job, SlurmJob("7", "7", state="FAILED", exit_code="2:0")) == "failed"
    failed = json.loads(root.train("a").failed.read_text())
    assert "FAILED (2:0); its last words: /bad/python: No such file or directory" in failed["error"]


def test_memory_that_ran_out_names_the_key(tmp_path: Path) -> None:
    root = RunDir(tmp_path)
    job = Job("t", "train", "a", "0", job_id="7", scheduler="slurm")
    settle(root, job, SlurmJob("7", "7", state="OUT_OF_MEMORY", exit_code="0:125"))
    assert "raise resources.train.mem_gb" in json.loads(root.train("a").failed.read_text())["error"]


def test_what_an_element_covers_does_not_depend_on_the_deal() -> None:
    assert covers(Element("1", ("--checkpoint", "1.0"), ("1.0:a.en", "1.0:b.en"))) == ("1.0:a.en", "1.0:b.en")
    assert covers(Element("1", ("--part", "1/4"))) == ("1/4",)
    assert covers(Element("0")) == ("0",)
