"""`status` of a run on Slurm: files first, then Slurm's answer, with two commands a minute."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from hpc_ewc import records, rundir
from hpc_ewc.launch.ledger.job_history import Ledger
from hpc_ewc.launch.show.rows import Progress, Row
from hpc_ewc.launch.show.table import render_table
from hpc_ewc.launch.watch import reader as reader_module
from hpc_ewc.launch.watch import status as status_module
from hpc_ewc.launch.watch.reader import StatusReader, read_status
from hpc_ewc.launch.watch.status import exit_status, status, summary
from hpc_ewc.node.slurm_command import SchedulerError
from hpc_ewc.process import this_process
from hpc_ewc.rundir import RunDir
from tests.unit.run_folders import AWAY, EVALUATE, TRAIN, Slurm, at_work, finish, slurm_folder, submit


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Slurm:
    stand_in = Slurm()
    monkeypatch.setattr(reader_module, "ask", stand_in)
    return stand_in


@pytest.fixture
def root(tmp_path: Path) -> RunDir:
    return slurm_folder(tmp_path)


def rows(root: RunDir) -> dict[str, Row]:
    return {row.stage: row for row in read_status(root).rows}


# ---------------------------------------------------------------------------------------------- states


def test_the_table_combines_slurm_and_files(root: RunDir, slurm: Slurm, capsys: pytest.CaptureFixture[str]) -> None:
    slurm.says("10", "COMPLETED", gpu_s=1800.0)
    slurm.says("11", "RUNNING", nodes="node[3-4]", restarts=2, gpus=8, gpu_s=36000.0)
    for i in range(3):
        slurm.says(f"12_{i}", "PENDING", reason="Dependency")
    slurm.says("13", "PENDING", reason="Dependency")
    at_work(root, "train", TRAIN, "11", loss=2.34567, eta_s=200.0)
    root.train(TRAIN).metrics.write_text('{"tokens_per_s": 1.0}\n{"step": 120, "tokens_per_s": 12345.6}\n{"torn')
    assert status(root.root, watch=False, as_json=False) == 3
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == [
        "stage",
        "run",
        "state",
        "restarts",
        "node",
        "progress",
        "tokens/s",
        "loss",
        "left",
        "GPU-h",
    ]
    assert out[2].split() == [
        *(
            "train",
            TRAIN,
            "running",
            "2",
            "node[3-4]",
            "120/180",
            "step",
            "12,346",
            "2.346",
            "3",
            "min",
            "20",
            "s",
            "10.0",
        )
    ]
    assert "3 waiting: Dependency (for its inputs)" in out[3]
    assert out[-1] == "x: 1 running, 2 waiting, 1 done; waiting for Dependency (2); 10.5 GPU-hours"
    assert slurm.asked == [{"10", "11", "12", "13"}]


def test_progress_of_an_array_sums_its_elements(root: RunDir, slurm: Slurm) -> None:
    finish(root, "train", TRAIN)
    slurm.says("12_0", "RUNNING", nodes="n1", restarts=1)
    slurm.says("12_1", "RUNNING", nodes="n2")
    slurm.says("12_2", "PENDING", reason="JobArrayTaskLimit")
    at_work(root, "evaluate", EVALUATE, "12_0", "0", done=1, total=2, unit="cell")
    at_work(root, "evaluate", EVALUATE, "12_1", "1", done=0, total=2, unit="cell", cell="c2.en")
    row = rows(root)["evaluate"]
    assert (row.state, row.note, row.restarts, row.nodes) == ("running", "2 running, 1 waiting", 1, "n1,n2")
    assert row.progress is not None
    assert (row.progress.done, row.progress.total) == (1, 6), "pending elements are not done"


def test_successors_in_a_chain_do_not_count(root: RunDir, slurm: Slurm) -> None:
    for link, job_id in enumerate(["21", "22", "23"], 1):
        submit(root, job_id, "train", TRAIN, [("0", [])], link)
        slurm.says(job_id, "PENDING", reason="Dependency")
    slurm.says("11", "RUNNING", nodes="n1")
    row = rows(root)["train"]
    assert (row.state, row.note, row.restarts, row.nodes) == ("running", "", 0, "n1")
    slurm.says("11", "TIMEOUT")
    row = rows(root)["train"]
    assert (row.state, row.note) == ("waiting", "Dependency (for the job before it in the chain to end)")
    slurm.says("21", "RUNNING", nodes="n2")
    row = rows(root)["train"]
    assert (row.state, row.restarts, row.nodes) == ("running", 1, "n2")


def test_long_node_lists_are_shortened(root: RunDir, slurm: Slurm) -> None:
    for i in range(3):
        slurm.says(f"12_{i}", "RUNNING", nodes=f"n{i}")
    assert rows(root)["evaluate"].nodes == "n0,n1 +1"


@pytest.mark.parametrize(
    ("reason", "restarts", "note"),
    [
        ("Priority", 0, "Priority (other jobs go first)"),
        ("BeginTime", 1, "BeginTime (requeued; Slurm delays it by two minutes)"),
        ("BeginTime", 0, "BeginTime (its start time has not come)"),
        (
            "launch failed requeued held",
            1,
            "launch failed requeued held (it could not be started: cancel it with hpc-ewc cancel, then submit again)",
        ),
        (
            "ReqNodeNotAvail, UnavailableNodes:n[1-9]",
            0,
            "ReqNodeNotAvail, UnavailableNodes:n[1-9] (nodes are down or reserved)",
        ),
        ("SomethingNew", 0, "SomethingNew"),
        ("", 0, "in the queue"),
    ],
)
def test_pending_reason_is_shown(root: RunDir, slurm: Slurm, reason: str, restarts: int, note: str) -> None:
    slurm.says("11", "PENDING", reason=reason, restarts=restarts)
    row = rows(root)["train"]
    assert (row.state, row.note, row.reason) == ("waiting", note, reason)


@pytest.mark.parametrize(
    ("state", "facts", "becomes", "note"),
    [
        (
            "TIMEOUT",
            {"nodes": "n3", "restarts": 2},
            "stopped",
            "TIMEOUT on n3 after 2 restarts (it reached its time limit",
        ),
        ("FAILED", {"exit_code": "3:0"}, "failed", "FAILED 3:0"),
        ("OUT_OF_MEMORY", {"restarts": 1}, "failed", "OUT_OF_MEMORY after 1 restart (it needed more memory"),
        ("NODE_FAIL", {}, "stopped", "NODE_FAIL (its node failed); resubmit to resume"),
        ("CANCELLED", {}, "stopped", "CANCELLED (removed from the queue); resubmit to resume"),
    ],
)
def test_end_reason_is_shown(
    root: RunDir, slurm: Slurm, state: str, facts: dict[str, object], becomes: str, note: str
) -> None:
    slurm.says("11", state, **facts)
    row = rows(root)["train"]
    assert row.state == becomes
    assert row.note.startswith(note)


def test_the_jobs_own_error_comes_before_slurms_state(root: RunDir, slurm: Slurm) -> None:
    facts = {"schema": 1, "error": "ValueError: a loss of NaN", "traceback": "", "job_id": "11", "restart": 0}
    records.write_json(root.train(TRAIN).failed, facts)
    slurm.says("11", "RUNNING")
    assert rows(root)["train"].state == "running", "the error is from an earlier attempt"
    slurm.says("11", "FAILED")
    assert rows(root)["train"].note == "ValueError: a loss of NaN"
    assert exit_status(read_status(root).rows) == 1


def test_a_done_stage_is_done_in_any_slurm_state(root: RunDir, slurm: Slurm) -> None:
    finish(root, "train", TRAIN, gpu_hours=3.5)
    slurm.says("11", "COMPLETING")
    assert rows(root)["train"].state == "done"
    slurm.says("11", "FAILED", gpu_s=7200.0)
    assert rows(root)["train"].gpu_hours == 2.0
    slurm.jobs.clear()
    assert rows(root)["train"].gpu_hours == 3.5, "GPU-hours recorded by the job"


def test_dependants_of_a_failure_are_blocked(root: RunDir, slurm: Slurm) -> None:
    slurm.says("11", "FAILED")
    slurm.says("12_0", "PENDING", reason="DependencyNeverSatisfied")
    row = rows(root)["evaluate"]
    assert (row.state, row.note) == ("blocked", f"needs train/{TRAIN}")
    slurm.says("12_0", "CANCELLED", reason="DependencyNeverSatisfied")
    assert rows(root)["evaluate"].state == "blocked"
    assert exit_status(read_status(root).rows) == 1


def test_stopped_and_cancelled_jobs_are_distinguished(root: RunDir, slurm: Slurm) -> None:
    slurm.says("11", "FAILED", restarts=1, exit_code="1:0")
    root.job("11").mkdir(parents=True)
    records.write_json(rundir.exit_file(root.job("11"), 0), {"status": 0, "outcome": "stopped"})
    assert rows(root)["train"].state == "failed", "the record is from an earlier attempt"
    records.write_json(rundir.exit_file(root.job("11"), 1), {"status": 0, "outcome": "stopped"})
    assert (rows(root)["train"].state, rows(root)["train"].note) == ("stopped", "resubmit to resume")
    Ledger(root).cancelled(f"train/{TRAIN}")
    assert rows(root)["train"].note == "cancelled; resubmit to resume"
    slurm.says("12_0", "OUT_OF_MEMORY")
    slurm.says("12_1", "CANCELLED")
    assert rows(root)["evaluate"].state == "failed", "at least one element failed"
    Ledger(root).cancelled(f"evaluate/{EVALUATE}")
    assert rows(root)["evaluate"].state == "stopped"


def test_a_job_unknown_to_slurm_is_shown(root: RunDir, slurm: Slurm) -> None:
    row = rows(root)["train"]
    assert (row.state, row.note) == ("missing", "job 11 is no longer known to Slurm: resubmit to resume")
    slurm.says("11", "COMPLETED")
    assert rows(root)["train"].note == "job 11 ended before its output was complete: resubmit to resume"


def test_an_intent_without_an_id_is_shown(root: RunDir, slurm: Slurm) -> None:
    other = {"stage": "train", "run": "strength=0-bb", "depends": []}
    Ledger(root).graph([other])
    Ledger(root).slurm_intent("token-x", "train", "strength=0-bb", [{"name": "0", "covers": []}], 0)
    (row,) = read_status(root).rows
    assert (row.state, row.note) == (
        "missing",
        "submit was interrupted before it recorded the job id: resubmit to look for the job",
    )
    me = this_process()
    root.lock.write_text(json.dumps({"host": me.host, "pid": me.pid, "started": me.started}))
    (row,) = read_status(root).rows
    assert (row.state, row.note) == ("waiting", "being submitted")


def test_the_report_job_is_shown(root: RunDir, slurm: Slurm) -> None:
    slurm.says("13", "RUNNING")
    assert rows(root)["report"].state == "running"
    slurm.says("13", "FAILED", exit_code="1:0")
    assert rows(root)["report"].note == "FAILED 1:0"
    slurm.says("13", "CANCELLED")
    assert rows(root)["report"].state == "stopped"
    slurm.says("13", "COMPLETED")
    assert (rows(root)["report"].state, rows(root)["report"].note) == ("done", "/results/x")
    slurm.jobs.clear()
    assert rows(root)["report"].state == "missing"
    root.job("13").mkdir(parents=True)
    records.write_json(rundir.exit_file(root.job("13"), 0), {"status": 0})
    assert rows(root)["report"].state == "done", "unknown to Slurm, recorded by its launcher"
    records.write_json(rundir.exit_file(root.job("13"), 0), {"status": 1})
    Ledger(root).ended("token-13", "failed")
    assert rows(root)["report"].state == "failed", "a later submit recorded the outcome"


# ---------------------------------------------------------------------------------------------- Slurm does not answer


def test_status_uses_files_alone_if_slurm_does_not_answer(
    root: RunDir, slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.unanswered = (AWAY, AWAY)
    path = at_work(root, "train", TRAIN, "11")
    assert status(root.root, watch=False, as_json=False) == 3
    out = capsys.readouterr().out
    assert "Slurm did not answer; status is from files only: `squeue`: no answer in 20 s" in out
    found = rows(root)
    assert (found["train"].state, found["train"].nodes) == ("running", "n9")
    assert found["evaluate"].note == "unknown: Slurm did not answer"
    os.utime(path, (0, 0))
    assert rows(root)["train"].state == "waiting", "an old progress file is ignored"
    root.job("11").mkdir(parents=True)
    assert rows(root)["train"].state == "running", "it has started"
    records.write_json(rundir.exit_file(root.job("11"), 0), {"status": 0, "outcome": "stopped"})
    assert rows(root)["train"].state == "waiting"
    finish(root, "train", TRAIN)
    assert rows(root)["train"].state == "done"


def test_without_accounting_jobs_no_longer_queued_have_ended(root: RunDir, slurm: Slurm) -> None:
    slurm.unanswered = (SchedulerError("`sacct` (exit 1): this cluster keeps no accounting", "missing"),)
    slurm.says("12_0", "PENDING", reason="Priority")
    found = read_status(root)
    assert found.rows[1].state == "missing"
    assert found.slurm.warnings == ["Slurm's answer is incomplete: `sacct` (exit 1): this cluster keeps no accounting"]
    slurm.queue_answered = False
    assert read_status(root).rows[1].state == "waiting"


# ---------------------------------------------------------------------------------------------- query frequency


def test_slurm_is_queried_once_a_minute_and_files_at_every_read(
    root: RunDir, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(reader_module.time, "monotonic", lambda: now[0])
    slurm.says("11", "RUNNING")
    reader = StatusReader(root)
    assert reader.read().rows[1].progress is None
    at_work(root, "train", TRAIN, "11")
    for _ in range(59):
        now[0] += 1
        row = reader.read().rows[1]
    assert row.progress is not None
    assert len(slurm.asked) == 1
    submit(root, "14", "train", TRAIN, [("0", [])])
    assert reader.read().rows[1].state == "running"
    slurm.says("11", "FAILED")
    now[0] += 1
    assert reader.read().rows[1].state == "failed"
    assert [len(ids) for ids in slurm.asked] == [4, 5]


def test_a_job_submitted_after_the_query_is_shown_as_submitted(root: RunDir, slurm: Slurm) -> None:
    reader = StatusReader(root)
    reader.read()
    submit(root, "14", "train", TRAIN, [("0", [])])
    assert reader.read().rows[1].note == "just submitted"


def test_without_slurm_jobs_slurm_is_not_queried(tmp_path: Path, slurm: Slurm) -> None:
    root = RunDir(tmp_path / "runs" / "y")
    Ledger(root).graph([{"stage": "train", "run": "a", "depends": []}])
    assert [row.state for row in read_status(root).rows] == ["missing"]
    assert slurm.asked == []


def test_watching_on_a_terminal_ends_when_nothing_runs(
    root: RunDir, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, screen = [1000.0], io.StringIO()
    monkeypatch.setattr(reader_module.time, "monotonic", lambda: now[0])
    terminal = Console(file=screen, force_terminal=True, width=100, height=30, color_system=None)
    monkeypatch.setattr(status_module, "Console", lambda **_: terminal)
    slurm.says("11", "RUNNING", nodes="node7")
    slurm.unanswered = (SchedulerError("`sacct`: no answer in 20 s", "silent"),)

    def later(seconds: float) -> None:
        now[0] += 30.0
        if now[0] > 1100:
            slurm.says("11", "FAILED", exit_code="1:0")

    monkeypatch.setattr(status_module.time, "sleep", later)
    assert status(root.root, watch=True, as_json=False) == 1
    assert "node7" in screen.getvalue()
    assert "Slurm's answer is incomplete: `sacct`: no answer in 20 s" in screen.getvalue()
    assert "FAILED 1:0" in screen.getvalue()
    assert len(slurm.asked) == 3, "once a minute"


def test_watching_without_a_terminal_prints_a_line_per_change(
    root: RunDir, slurm: Slurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [1000.0]
    monkeypatch.setattr(reader_module.time, "monotonic", lambda: now[0])
    slurm.says("11", "PENDING", reason="Priority")
    states = iter(["PENDING", "RUNNING", "FAILED"])

    def later(seconds: float) -> None:
        now[0] += 60.0
        slurm.says("11", next(states))

    monkeypatch.setattr(status_module.time, "sleep", later)
    assert status(root.root, watch=True, as_json=False) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("x: ")]
    assert [line.split(",")[0] for line in lines] == ["x: 1 waiting", "x: 1 running", "x: 1 failed"]


# ---------------------------------------------------------------------------------------------- rendering


def test_json_has_nodes_progress_and_reasons(root: RunDir, slurm: Slurm, capsys: pytest.CaptureFixture[str]) -> None:
    slurm.says("11", "RUNNING", nodes="n1", restarts=1, gpu_s=3600.0)
    slurm.says("12_0", "PENDING", reason="Priority")
    at_work(root, "train", TRAIN, "11", loss=2.0, tokens_per_s=500.0)
    assert status(root.root, watch=True, as_json=True) == 3
    told = json.loads(capsys.readouterr().out)
    train, evaluate = told["stages"][1:3]
    assert (train["nodes"], train["restarts"], train["gpu_hours"]) == ("n1", 1, 1.0)
    assert train["jobs"] == [{"job_id": "11", "outcome": "", "slurm": "RUNNING"}]
    assert (train["progress"]["loss"], train["progress"]["tokens_per_s"]) == (2.0, 500.0)
    assert (evaluate["state"], evaluate["reason"]) == ("waiting", "Priority")
    assert [job["job_id"] for job in evaluate["jobs"]] == ["12_0", "12_1", "12_2"]
    assert (told["gpu_hours"], told["unanswered"], told["exit_status"]) == (1.0, [], 3)


def test_empty_columns_are_left_out() -> None:
    assert render_table([Row("train", "a", "waiting")]).plain == "stage  run  state\ntrain  a    waiting"
    text = render_table([Row("train", "a", "failed", note="two\nlines", restarts=3, gpu_hours=12.0)]).plain
    assert text.splitlines()[0].split() == ["stage", "run", "state", "restarts", "GPU-h"]
    assert text.splitlines()[1].split() == ["train", "a", "failed", "3", "12.0", "two", "lines"]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_important_columns_fit_any_terminal_width(width: int) -> None:
    fields = {"tokens_per_s": 61204.2, "loss": 2.117, "eta_s": 7500.0}
    name = "strength=1e+06,seed=0-d05b095a51ca"
    listed = [
        Row(
            "train",
            name,
            "running",
            Progress(4810, 9000, "step", fields),
            restarts=2,
            nodes="nid[005-006]",
            gpu_hours=5,
        ),
        Row("train", "b", "failed", note="ValueError: a loss of NaN at step 12; stopped before the optimizer"),
        Row("report", "", "waiting", note="Priority"),
    ]
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(render_table(listed, width))
    lines = console.export_text().splitlines()
    assert all(len(line) <= width for line in lines)
    assert "running" in lines[1]
    assert "strength=1e+06,seed=0" in lines[1]
    for wide, words in ((80, "4810/9000 step"), (200, "█████·····"), (200, "nid[005-006]"), (200, name)):
        assert width < wide or words in lines[1]
    told = " ".join(line.strip() for line in lines)
    assert "ValueError: a loss of NaN at step 12; stopped before the optimizer" in told
    assert "Priority" in told


def test_a_long_table_keeps_important_rows_and_counts_pending_reasons(root: RunDir, slurm: Slurm) -> None:
    listed = [Row("train", f"r{i}", "waiting", reason="Priority") for i in range(100)]
    listed[50] = Row("train", "r50", "running", nodes="n1")
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(render_table(listed, 100, limit=10))
    text = console.export_text()
    assert "train: 1 running, 99 waiting" in text
    assert "r50" in text
    assert "r51" not in text
    found = read_status(root)
    found.rows = listed
    assert "waiting for Priority (99)" in summary(found)
