"""`status`, `logs`, `cancel`: told from files alone."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from hpc_ewc import records, rundir
from hpc_ewc.errors import ConfigError, SubmitError
from hpc_ewc.launch import logs as logs_module
from hpc_ewc.launch.ledger import Ledger
from hpc_ewc.launch.logs import cancel, log_files, logs, pick
from hpc_ewc.launch.process import Process, this_process
from hpc_ewc.launch.status import exit_status, status
from hpc_ewc.launch.survey import open_run, survey
from hpc_ewc.launch.view import Display, Progress, Row, by_stage, describe, duration, read_progress, render_table
from hpc_ewc.rundir import RunDir, StageDir

KEY = "0123456789ab"
RUNS = [("tokens", KEY), ("train", "strength=0-aa"), ("train", "strength=1-bb"), ("evaluate", "strength=1-bb")]
GONE = Process(this_process().host, this_process().pid, "before")


@pytest.fixture
def root(tmp_path: Path) -> RunDir:
    """Tokens and one run done, the other failed, its evaluation not started."""
    root = RunDir(tmp_path / "runs" / "x")
    ledger = Ledger(root)
    nodes = [{"stage": stage, "run": run, "depends": []} for stage, run in RUNS]
    nodes[3]["depends"] = ["train/strength=1-bb"]
    ledger.graph([*nodes, {"stage": "report", "run": "", "depends": ["evaluate/strength=1-bb"]}])
    for number, (stage, run) in enumerate(RUNS):
        folder = root.stage(stage, run)
        facts = {"schema": 1, "stage": stage, "run": run, "key": KEY, "inputs": {}, "coordinates": {}}
        records.write_json(folder.stage_json, facts | {"expected": ["1.0:a.en", "1.0:b.en"] if number == 3 else []})
    for stage, run in RUNS[:2]:
        done = {"schema": 1, "key": KEY, "finished_at": 1.0, "outputs": {}, "summary": {}}
        records.write_json(root.stage(stage, run).done, done)
    fail(root, "train", "strength=1-bb", "job2")
    start(root, "train", "strength=0-aa", "job1", outcome="finished")
    start(root, "train", "strength=1-bb", "job2", outcome="failed")
    return root


def fail(root: RunDir, stage: str, run: str, job: str) -> None:
    facts = {"schema": 1, "error": "ValueError: a loss of NaN", "traceback": "Traceback …\nValueError: a loss of NaN"}
    records.write_json(root.stage(stage, run).failed, facts | {"rank": 1, "node": "n7", "job_id": job, "restart": 0})


def start(root: RunDir, stage: str, run: str, job: str, outcome: str = "", process: Process | None = None) -> Path:
    ledger = Ledger(root)
    ledger.intent(job, stage, run, "0")
    ledger.submitted(job, job, process or this_process())
    if outcome:
        ledger.ended(job, outcome)
    folder = root.job(job)
    folder.mkdir(parents=True)
    return folder


def rank_log(job: Path, rank: int, name: str, text: str) -> Path:
    path = rundir.rank_logs(job) / "none_abc" / "attempt_0" / str(rank) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def states(root: RunDir) -> list[str]:
    return [row.state for row in survey(root).rows]


# ---------------------------------------------------------------------------------------------- status


def test_states_come_from_files(root: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert states(root) == ["done", "done", "failed", "blocked", "missing"]
    assert status(root.root, watch=False, as_json=False) == 1
    out = capsys.readouterr().out
    assert re.search(r"train +strength=1-bb +failed .*ValueError: a loss of NaN", out)
    assert "x: 1 failed, 1 blocked, 1 missing, 2 done" in out


def test_a_job_that_runs_shows_how_far_it_is(root: RunDir) -> None:
    start(root, "evaluate", "strength=1-bb", "job3")
    folder = root.evaluate("strength=1-bb")
    line = {"done": 1, "total": 1, "unit": "cell", "job_id": "an earlier one", "updated": 1.0}
    records.write_json(folder.progress("0"), line)
    assert survey(root).rows[3] == Row("evaluate", "strength=1-bb", "running", None)
    records.write_json(folder.progress("1"), line | {"done": 0, "job_id": "job3", "cell": "b.en", "eta_s": 100})
    row = survey(root).rows[3]
    assert row.progress is not None
    assert (row.progress.done, row.progress.total) == (1, 2), "the cell that this job was not given is done"
    assert describe(row.progress) == "1/2 cell, b.en, 1 min 40 s left"
    assert exit_status(survey(root).rows) == 3, "something runs: not failed yet"


def test_a_job_whose_process_is_gone_does_not_run(root: RunDir) -> None:
    start(root, "evaluate", "strength=1-bb", "job3", process=GONE)
    assert states(root)[3] == "blocked"


def test_stopped_and_missing(root: RunDir) -> None:
    root.train("strength=1-bb").failed.unlink()
    assert states(root)[2:4] == ["missing", "missing"]
    start(root, "train", "strength=1-bb", "job4", outcome="stopped")
    assert states(root)[2] == "stopped"
    assert status(root.root, watch=True, as_json=True) == 3


def test_an_output_that_went_away_is_named(root: RunDir) -> None:
    done = root.tokens(KEY).done
    records.write_json(done, records.read_json(done) | {"outputs": {"parts/0.bin": [3, "x"]}})
    row = survey(root).rows[0]
    assert row.state == "missing"
    assert "0.bin: named by" in row.note


def test_json_is_whole(root: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(root.root, watch=False, as_json=True) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["exit_status"] == 1
    assert [entry["state"] for entry in told["stages"]] == states(root)
    assert told["stages"][2]["jobs"] == [{"job_id": "job2", "outcome": "failed", "slurm": ""}]


def test_a_folder_that_is_none_is_told_its_neighbours(root: RunDir) -> None:
    with pytest.raises(ConfigError, match=rf"not a run folder, .*; there are: {re.escape(str(root.root))}"):
        open_run(root.root.with_name("y"))


# ---------------------------------------------------------------------------------------------- rendering


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 59.6, 200, 7500, float("inf"))] == [
        "0 s",
        "1 min 00 s",
        "3 min 20 s",
        "2 h 05 min",
        "?",
    ]


def test_progress_in_words() -> None:
    progress = Progress(120, 180, "step", {"loss": 1.23456, "eta_s": 45.2})
    assert describe(progress) == "120/180 step, loss 1.235, 45 s left"
    assert describe(Progress(3, 0)) == ""
    assert Progress(3, 0).share == 0
    assert Progress(5, 4).share == 1


def test_a_damaged_progress_file_says_nothing(tmp_path: Path) -> None:
    folder = StageDir(tmp_path)
    folder.progress_dir.mkdir()
    folder.progress("0").write_text('{"done": ')
    assert read_progress(folder, ["j"]) is None


def test_a_long_table_keeps_what_matters() -> None:
    rows = [Row("train", f"r{i}", "waiting") for i in range(100)]
    rows[50] = Row("train", "r50", "running", Progress(1, 2, "step"))
    rows[70] = Row("train", "r70", "failed", note="NaN")
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(render_table(rows, limit=10))
    text = console.export_text()
    assert "train: 1 running, 1 failed, 98 waiting" in text
    assert "r50" in text
    assert "████████········" in text
    assert "NaN" in text
    assert "r51" not in text
    assert by_stage(rows) == [("train", "1 running, 1 failed, 98 waiting")]


def test_without_a_terminal_there_is_a_line_a_change(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(force_plain=True) as display:
        display.update([Row("train", "a", "waiting")])
        display.update([Row("train", "a", "running")])
        display.update([Row("train", "a", "running")])
        display.update([Row("train", "a", "failed", note="NaN")])
    lines = [line[10:] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["train a running", "train a failed: NaN"]


# ---------------------------------------------------------------------------------------------- logs


def test_the_error_comes_first(root: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    rank_log(root.job("job2"), 0, "stderr.log", "warming up\n")
    assert logs(root.root, "strength=1", None, follow=False, rank=None) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "train/strength=1-bb failed: ValueError: a loss of NaN"
    assert lines[1] == "  rank 1 on n7, job job2"
    assert lines[-1] == "warming up"


def test_one_rank_alone(root: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    for rank in (0, 1):
        rank_log(root.job("job1"), rank, "stdout.log", f"rank {rank}\n")
    assert logs(root.root, "strength=0", None, follow=False, rank=1) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["rank 1"]
    with pytest.raises(ConfigError, match="--rank 5: .* has no such rank"):
        logs(root.root, "strength=0", None, follow=False, rank=5)


def test_where_no_rank_printed_the_launcher_s_log_is_shown(root: RunDir) -> None:
    empty = rank_log(root.job("job1"), 0, "stderr.log", "")
    task = root.job("job1") / "123_0_log.err"
    task.write_text("ModuleNotFoundError")
    assert log_files(root.job("job1")) == [empty, task]


def test_following_ends_with_the_job(
    root: RunDir, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = start(root, "evaluate", "strength=1-bb", "job3")
    path = rank_log(job, 0, "stdout.log", "first\n")
    live = survey(root).jobs["evaluate/strength=1-bb"][-1]
    alive = iter([True, True, False])
    monkeypatch.setattr("hpc_ewc.launch.ledger.Job.is_alive", lambda self: next(alive, False))
    monkeypatch.setattr(logs_module.time, "sleep", lambda s: path.write_text(path.read_text() + "more\n"))
    logs_module._follow(root, live, None)
    assert "more" in capsys.readouterr().out


def test_a_run_without_a_job_says_so(root: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert logs(root.root, "strength=1", "evaluate", follow=False, rank=None) == 0
    assert "evaluate/strength=1-bb: no job of it was started yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("run", "stage", "message"),
    [
        ("strength", None, "several runs begin with 'strength': strength=0-aa, strength=1-bb"),
        ("lambda", None, "no run begins with 'lambda'; there are: "),
        ("strength", "tokens", f"no run begins with 'strength'; there are: {KEY}"),
        ("strength=0", "fisher", "--stage fisher: this experiment has tokens, train, evaluate, report"),
    ],
)
def test_a_prefix_must_name_one_run(root: RunDir, run: str, stage: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        pick(survey(root).rows, run, stage)


def test_a_prefix_names_a_run_in_all_its_stages(root: RunDir) -> None:
    rows = survey(root).rows
    assert [row.stage for row in pick(rows, "strength=1", None)] == ["train", "evaluate"]
    assert [row.stage for row in pick(rows, "strength=1", "evaluate")] == ["evaluate"]
    assert [row.run for row in pick(rows, "0123", None)] == [KEY]


# ---------------------------------------------------------------------------------------------- cancel


def test_cancel_asks_the_jobs_of_one_run_to_stop(root: RunDir) -> None:
    job = start(root, "train", "strength=1-bb", "job5")
    assert cancel(root.root, "strength=1", None, yes=True) == 0
    assert rundir.stop_file(job, 0).exists()
    assert not rundir.stop_file(root.job("job1"), 0).exists()
    assert Ledger(root).read().cancelled == {"train/strength=1-bb"}


def test_cancel_wants_a_yes(root: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    job = start(root, "train", "strength=1-bb", "job5")
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(SubmitError, match="1 running jobs save and stop, 0 do not start: say --yes"):
        cancel(root.root, None, None, yes=False)
    assert not rundir.stop_file(job, 0).exists()


def test_cancel_with_nothing_to_cancel(root: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert cancel(root.root, None, None, yes=False) == 0
    assert "nothing of that runs or waits" in capsys.readouterr().err
