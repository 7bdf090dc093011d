"""`status` of local jobs, from files and processes."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from hpc_ewc import records
from hpc_ewc.errors import ConfigError
from hpc_ewc.launch.show.display import Display
from hpc_ewc.launch.show.rows import Progress, Row, count_by_stage, describe, duration, read_progress
from hpc_ewc.launch.show.table import render_table
from hpc_ewc.launch.watch.reader import read_status
from hpc_ewc.launch.watch.run_status import open_run
from hpc_ewc.launch.watch.status import exit_status, status
from hpc_ewc.rundir import RunDir, StageDir
from tests.unit.run_folders import GONE, KEY, local_folder, start


@pytest.fixture
def root(tmp_path: Path) -> RunDir:
    return local_folder(tmp_path)


def states(root: RunDir) -> list[str]:
    return [row.state for row in read_status(root).rows]


# ---------------------------------------------------------------------------------------------- status


def test_states_come_from_files(root: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert states(root) == ["done", "done", "failed", "blocked", "missing"]
    assert status(root.root, watch=False, as_json=False) == 1
    out = capsys.readouterr().out
    assert re.search(r"train +strength=1-bb +failed .*ValueError: a loss of NaN", out)
    assert "x: 1 failed, 1 blocked, 1 missing, 2 done; nothing is running: resubmit to resume" in out


def test_a_running_job_shows_its_progress(root: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    start(root, "evaluate", "strength=1-bb", "job3")
    folder = root.evaluate("strength=1-bb")
    line = {"schema": 1, "done": 1, "total": 1, "unit": "cell", "job_id": "an earlier one", "updated": 1.0}
    records.write_json(folder.progress("0"), line)
    assert read_status(root).rows[3] == Row("evaluate", "strength=1-bb", "running", None)
    records.write_json(folder.progress("1"), line | {"done": 0, "job_id": "job3", "cell": "b.en", "eta_s": 100})
    row = read_status(root).rows[3]
    assert row.progress is not None
    assert (row.progress.done, row.progress.total) == (1, 2), "the cell that is not assigned to this job is done"
    assert describe(row.progress) == "1/2 cell, b.en, 1 min 40 s left"
    assert exit_status(read_status(root).rows) == 3, "a job is running: not failed yet"
    status(root.root, watch=False, as_json=False)
    assert "nothing is running" not in capsys.readouterr().out


def test_a_job_without_its_process_is_not_running(root: RunDir) -> None:
    start(root, "evaluate", "strength=1-bb", "job3", process=GONE)
    assert states(root)[3] == "blocked"


def test_stopped_and_missing_runs_are_distinguished(root: RunDir) -> None:
    root.train("strength=1-bb").failed.unlink()
    assert states(root)[2:4] == ["missing", "missing"]
    start(root, "train", "strength=1-bb", "job4", outcome="stopped")
    assert states(root)[2] == "stopped"
    assert status(root.root, watch=True, as_json=True) == 3


def test_a_missing_output_is_named(root: RunDir) -> None:
    done = root.tokens(KEY).done
    records.write_json(done, records.read_json(done) | {"outputs": {"parts/0.bin": [3, "x"]}})
    row = read_status(root).rows[0]
    assert row.state == "missing"
    assert "0.bin: listed in" in row.note


def test_a_deleted_record_is_recomputed_by_a_resubmit(root: RunDir) -> None:
    done = {"schema": 1, "key": KEY, "finished_at": 1.0, "outputs": {"00000001/a.en.json": [3, "x"]}, "summary": {}}
    records.write_json(root.evaluate("strength=1-bb").done, done)
    row = read_status(root).rows[3]
    assert (row.state, row.note) == ("missing", "a record is missing or corrupt: resubmit to recompute it")


def test_json_has_all_stages_and_jobs(root: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(root.root, watch=False, as_json=True) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["exit_status"] == 1
    assert [entry["state"] for entry in told["stages"]] == states(root)
    assert told["stages"][2]["jobs"] == [{"job_id": "job2", "outcome": "failed", "slurm": ""}]


def test_a_wrong_folder_error_lists_nearby_run_folders(root: RunDir) -> None:
    with pytest.raises(ConfigError, match=rf"not a run folder, .*; run folders beside it: {re.escape(str(root.root))}"):
        open_run(root.root.with_name("y"))


# ---------------------------------------------------------------------------------------------- rendering


def test_durations_are_formatted() -> None:
    assert [duration(s) for s in (0.4, 59.6, 200, 7500, float("inf"))] == [
        "0 s",
        "1 min 00 s",
        "3 min 20 s",
        "2 h 05 min",
        "?",
    ]


def test_progress_is_described() -> None:
    progress = Progress(120, 180, "step", {"loss": 1.23456, "eta_s": 45.2})
    assert describe(progress) == "120/180 step, loss 1.235, 45 s left"
    assert describe(Progress(3, 0)) == ""
    assert Progress(3, 0).share == 0
    assert Progress(5, 4).share == 1


def test_a_damaged_progress_file_is_ignored(tmp_path: Path) -> None:
    folder = StageDir(tmp_path)
    folder.progress_dir.mkdir()
    folder.progress("0").write_text('{"done": ')
    assert read_progress(folder, ["j"]) is None


def test_a_long_table_keeps_the_important_rows() -> None:
    rows = [Row("train", f"r{i}", "waiting") for i in range(100)]
    rows[50] = Row("train", "r50", "running", Progress(1, 2, "step"))
    rows[70] = Row("train", "r70", "failed", note="NaN")
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(render_table(rows, console.width, limit=10))
    text = console.export_text()
    assert "train: 1 running, 1 failed, 98 waiting" in text
    assert "r50" in text
    assert "█████·····" in text
    assert "NaN" in text
    assert "r51" not in text
    assert count_by_stage(rows) == "train: 1 running, 1 failed, 98 waiting"


def test_without_a_terminal_a_line_is_printed_per_change(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(force_plain=True) as display:
        display.update([Row("train", "a", "waiting")])
        display.update([Row("train", "a", "running")])
        display.update([Row("train", "a", "running")])
        display.update([Row("train", "a", "failed", note="NaN")])
    lines = [line[10:] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["train a running", "train a failed: NaN"]
