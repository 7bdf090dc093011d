"""Submitting to Slurm: order, resubmission and refusals. tests/slurm runs on a real cluster."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from hpc_ewc.artefacts.artefact import Element
from hpc_ewc.cli import submit
from hpc_ewc.errors import ConfigError, SubmitError
from hpc_ewc.launch.ledger.job_history import Ledger
from hpc_ewc.launch.ledger.reconcile import check_other_executor
from hpc_ewc.launch.profile.reading import build_profile
from hpc_ewc.launch.submit import slurm
from hpc_ewc.launch.submit.outcome import DONE, UNFINISHED
from hpc_ewc.launch.submit.refusal import explain_refusal
from hpc_ewc.launch.submit.slurm_plan import covers
from hpc_ewc.node.slurm_command import SchedulerError
from hpc_ewc.process import this_process
from hpc_ewc.rundir import RunDir
from tests.unit import fake_slurm
from tests.unit.launch_world import write_experiment

SLURM = 'executor = "slurm"\npython = "/venv/bin/python"\n[slurm]\npartition = "main"\n'


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = fake_slurm.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("HPC_EWC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(slurm, "LOOKUP_DELAYS_S", (0.0, 0.0))
    monkeypatch.chdir(tmp_path)
    return folder


def settings(tmp_path: Path, **changed: Any) -> submit.Settings:
    places = {"profile": tmp_path / "p.toml", "runs": tmp_path / "runs", "out": tmp_path / "out"}
    return submit.Settings(**places | changed)


def give(tmp_path: Path, more: str = "", sweep: str = "", **experiment: Any) -> int:
    path = write_experiment(tmp_path, more=sweep, **experiment)
    (tmp_path / "p.toml").write_text(SLURM + more)
    return submit.run(settings(tmp_path, sweep=path, yes=True))


def names(cluster: Path) -> list[str]:
    return [re.sub(r"-[0-9a-f]{12}$|/[0-9a-f]{12}$", "", job["name"]) for job in fake_slurm.load(cluster)["jobs"]]


def test_each_stage_depends_on_the_stages_it_reads(cluster: Path, tmp_path: Path) -> None:
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


def test_queued_jobs_are_not_submitted_again(cluster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    give(tmp_path)
    before = names(cluster)
    assert give(tmp_path) == DONE
    assert names(cluster) == before
    assert f"nothing to submit ({len(before)} were queued or running already)" in capsys.readouterr().err


def test_an_evaluation_is_one_array_and_only_lost_elements_are_resubmitted(cluster: Path, tmp_path: Path) -> None:
    give(tmp_path, elements=2)
    arrays = [job for job in fake_slurm.load(cluster)["jobs"] if "/evaluate/" in job["name"]]
    assert [job["elements"] for job in arrays] == [2, 2, 2]
    fake_slurm.set_states(cluster, "CANCELLED", "evaluate/base")
    give(tmp_path, elements=2)
    again = fake_slurm.load(cluster)["jobs"][8:]
    assert [job["name"] for job in again] == ["small/evaluate/base", "small/report"]
    reports = [job["state"] for job in fake_slurm.load(cluster)["jobs"] if job["name"] == "small/report"]
    assert reports == ["CANCELLED", "PENDING"], "the old report job lacked dependencies"


def test_long_arrays_are_split(cluster: Path, tmp_path: Path) -> None:
    give(tmp_path, "max_array_size = 1\n", elements=2)
    assert names(cluster).count("small/evaluate/base") == 2


def test_resubmit_completes_a_partly_refused_submission(cluster: Path, tmp_path: Path) -> None:
    fake_slurm.change(cluster, refuse_after=4, words="Batch job submission failed: Job violates accounting/QOS policy")
    with pytest.raises(SubmitError, match=r"sbatch refused small/\S+ \(exit 1\): .*accounting/QOS policy.*p\.toml"):
        give(tmp_path)
    first = names(cluster)
    assert len(first) == 4
    fake_slurm.change(cluster, refuse_after=100)
    give(tmp_path)
    assert len(names(cluster)) == len(set(names(cluster))) == 8


def test_dependants_of_a_failed_job_are_resubmitted_with_it(cluster: Path, tmp_path: Path) -> None:
    """Slurm has not updated the queue since the training failed: its evaluation still appears as pending."""
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


def test_dependants_that_never_started_are_not_counted_as_failed(cluster: Path, tmp_path: Path) -> None:
    """Slurm has updated the queue, but has not yet ended jobs whose dependency can never be satisfied."""
    give(tmp_path)
    fake_slurm.set_states(cluster, "FAILED", "train/strength=0")
    jobs = fake_slurm.load(cluster)["jobs"]
    for job in jobs:
        if job["name"].startswith("small/evaluate/strength=0"):
            job["reason"] = "DependencyNeverSatisfied"
    fake_slurm.change(cluster, jobs=jobs)
    give(tmp_path)
    again = [job["name"].split("-")[0] for job in fake_slurm.load(cluster)["jobs"][8:]]
    assert again == ["small/train/strength=0", "small/evaluate/strength=0", "small/report"]
    failed = [str(path.parent.parent.name) for path in (tmp_path / "runs" / "small").glob("*/*/failed.json")]
    assert failed == ["train"]


def test_a_job_is_found_after_a_lost_sbatch_answer(cluster: Path, tmp_path: Path) -> None:
    fake_slurm.change(cluster, lose_answer=3)
    assert give(tmp_path) == DONE
    assert len(names(cluster)) == len(set(names(cluster))) == 8


def test_an_intent_without_an_id_is_looked_up_first(cluster: Path, tmp_path: Path) -> None:
    """The submitter is killed right after sbatch, at each of its jobs in turn."""
    give(tmp_path)
    ledger = tmp_path / "runs" / "small" / "jobs.jsonl"
    whole, jobs = ledger.read_text().splitlines(keepends=True), fake_slurm.load(cluster)["jobs"]
    for cut in [i for i, line in enumerate(whole) if '"submitted"' in line]:
        ledger.write_text("".join(whole[:cut]))
        known = sum('"intent"' in line for line in whole[:cut])
        fake_slurm.change(cluster, jobs=jobs[:known])
        give(tmp_path)
        assert len(names(cluster)) == len(set(names(cluster))) == 8


def test_an_intent_unknown_to_slurm_is_submitted(cluster: Path, tmp_path: Path) -> None:
    give(tmp_path)
    ledger = tmp_path / "runs" / "small" / "jobs.jsonl"
    whole = ledger.read_text().splitlines(keepends=True)
    cut = next(i for i, line in enumerate(whole) if '"submitted"' in line)
    ledger.write_text("".join(whole[:cut]))
    fake_slurm.change(cluster, jobs=[])
    give(tmp_path)
    assert len(names(cluster)) == 8
    assert [job.outcome for job in Ledger(RunDir(ledger.parent)).read().jobs.values()].count("lost") == 1


def test_a_reused_job_id_is_another_job(cluster: Path, tmp_path: Path) -> None:
    give(tmp_path)
    jobs = fake_slurm.load(cluster)["jobs"]
    fake_slurm.change(cluster, jobs=[job | {"comment": "of-another-run-folder"} for job in jobs])
    give(tmp_path)
    assert len(fake_slurm.load(cluster)["jobs"]) == 16


def test_nothing_is_submitted_while_slurm_does_not_answer(cluster: Path, tmp_path: Path) -> None:
    fake_slurm.change(cluster, silent=["squeue"])
    with pytest.raises(SubmitError, match="Unable to contact slurm controller.*try again in a minute"):
        give(tmp_path)
    assert names(cluster) == []


def test_a_job_limit_defers_whole_runs_to_the_next_submit(
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
    assert "the limit on submitted jobs leaves out 4 stages" in capsys.readouterr().err
    assert give(tmp_path, limit) == UNFINISHED
    assert len(names(cluster)) == 4
    fake_slurm.set_states(cluster, "COMPLETED")
    fake_slurm.set_states(cluster, "CANCELLED", "evaluate")  # no output was written, so they are resubmitted
    give(tmp_path, "max_submitted = 100\n")
    assert names(cluster)[4:].count("small/report") == 1


def test_an_array_over_the_limit_is_submitted_in_parts(cluster: Path, tmp_path: Path) -> None:
    """The first elements that fit are submitted; the next follow as these leave the queue."""
    assert give(tmp_path, "max_submitted = 3\n", elements=2, strengths=[0.0]) == UNFINISHED
    assert [(job["name"].split("/")[1], job["elements"]) for job in fake_slurm.load(cluster)["jobs"]] == [
        ("tokens", 0),
        ("evaluate", 0),  # one of two
    ]


def test_the_limit_of_a_partition_is_respected(cluster: Path, tmp_path: Path) -> None:
    assert give(tmp_path, "max_submitted_in = { main = 2 }\n") == UNFINISHED
    assert len(names(cluster)) == 2


def test_local_and_slurm_jobs_do_not_mix(cluster: Path, tmp_path: Path) -> None:
    give(tmp_path)
    with pytest.raises(SubmitError, match=r"8 jobs of \S+ wait or run on Slurm; submit with the Slurm profile"):
        submit.run(settings(tmp_path, sweep=tmp_path / "small.toml", profile=None, yes=True))
    fake_slurm.set_states(cluster, "CANCELLED")
    check_other_executor(RunDir(tmp_path / "runs" / "small"), "local")  # allowed once they have left the queue


def test_a_running_local_job_prevents_submission_to_slurm(cluster: Path, tmp_path: Path) -> None:
    root = RunDir(tmp_path / "runs" / "small")
    Ledger(root).intent("t", "train", "a", "0")
    Ledger(root).submitted("t", "t", this_process())
    with pytest.raises(SubmitError, match=r"1 local jobs of \S+ still run; wait for them"):
        give(tmp_path)


def test_dependants_wait_for_the_last_job_of_a_chain(cluster: Path, tmp_path: Path) -> None:
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


def test_the_users_access_token_is_in_no_file(cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_a_secret")
    give(tmp_path)
    runs = tmp_path / "runs" / "small"
    assert not [path for path in runs.rglob("*") if path.is_file() and b"hf_a_secret" in path.read_bytes()]
    assert (runs / "jobs").stat().st_mode & 0o777 == 0o700


def test_a_time_limit_too_short_to_start_is_refused(cluster: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"resources\.train\.time_min = 3: allowed is at least 5"):
        give(tmp_path, sweep="[resources.train]\ntime_min = 3\n")


def test_dry_run_shows_one_script_per_stage(cluster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_experiment(tmp_path)
    (tmp_path / "p.toml").write_text(SLURM)
    assert submit.run(settings(tmp_path, sweep=path, dry_run=True)) == DONE
    shown = capsys.readouterr().out
    assert shown.count("=====") == 5
    assert "#SBATCH --dependency='afterok:<tokens/" in shown
    submit.run(settings(tmp_path, sweep=path, dry_run=True, scripts=True))
    assert capsys.readouterr().out.count("=====") == 8
    assert not (tmp_path / "runs").exists() and names(cluster) == []


def test_an_element_covers_its_cells_its_part_or_itself() -> None:
    assert covers(Element("1", ("--checkpoint", "1.0"), ("1.0:a.en", "1.0:b.en"))) == ("1.0:a.en", "1.0:b.en")
    assert covers(Element("1", ("--part", "1/4"))) == ("1/4",)
    assert covers(Element("0")) == ("0",)


# ---------------------------------------------------------------------------------------------- messages


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
def test_refused_jobs_name_the_setting_to_change(tmp_path: Path, words: str, key: str) -> None:
    node: Any = type("N", (), {"stage": "train"})()
    error = SchedulerError(f'`sbatch x.sh` (exit 1): "sbatch: error: {words}"', "refused")
    profile = build_profile({"executor": "slurm"}, "lumi.toml")
    said = str(explain_refusal(error, "paper/train/a", Path("/runs/submission.sh"), node, profile))
    assert said.startswith(f'sbatch refused paper/train/a (exit 1): "{words}"; ')
    assert key in said and "in lumi.toml" in said and said.endswith("Script: /runs/submission.sh")
