"""`logs` and `cancel`: a run is selected, errors are shown first, and jobs save before they end."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from hpc_ewc import records, rundir
from hpc_ewc.errors import ConfigError, SubmitError
from hpc_ewc.launch.ledger.job_history import Ledger
from hpc_ewc.launch.slurm import client
from hpc_ewc.launch.slurm.output import SlurmJob, expand_hosts
from hpc_ewc.launch.watch import cancel as cancel_module
from hpc_ewc.launch.watch import logs as logs_module
from hpc_ewc.launch.watch import reader as reader_module
from hpc_ewc.launch.watch import run_status as run_status_module
from hpc_ewc.launch.watch.cancel import cancel, job_id_list, ranges, wait_for_jobs
from hpc_ewc.launch.watch.log_files import find_logs, global_ranks
from hpc_ewc.launch.watch.logs import logs
from hpc_ewc.launch.watch.reader import StatusReader, read_status
from hpc_ewc.launch.watch.select_run import select_run
from hpc_ewc.rundir import RunDir
from tests.unit.run_folders import AWAY, EVALUATE, KEY, TRAIN, Slurm, local_folder, rank_log, slurm_folder, start

# ---------------------------------------------------------------------------------------------- this machine


@pytest.fixture
def root(tmp_path: Path) -> RunDir:
    """Make a run folder: tokens and one run are done (job1), the other run failed (job2)."""
    return local_folder(tmp_path)


def show(root: RunDir, run: str, stage: str | None = None, **options: Any) -> int:
    chosen = {"follow": False, "rank": None, "element": None, "restart": None, **options}
    return logs(root.root, run, stage=stage, **chosen)


def test_logs_show_the_error_first(root: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    rank_log(root.job("job2"), 0, "stderr.log", "warming up\n")
    assert show(root, "strength=1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "train/strength=1-bb failed: ValueError: a loss of NaN"
    assert lines[1] == "  rank 1 on n7, job job2"
    assert lines[-1] == "warming up"


def test_logs_of_a_selected_rank_are_shown(root: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    for rank in (0, 1):
        rank_log(root.job("job1"), rank, "stdout.log", f"rank {rank}\n")
    assert show(root, "strength=0", rank=1) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["rank 1"]
    with pytest.raises(ConfigError, match="--rank 5: .* has no such rank"):
        show(root, "strength=0", rank=5)


def test_logs_show_the_failed_rank(root: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    for rank in range(8):
        rank_log(root.job("job2"), rank, "stderr.log", f"rank {rank} says\n")
    show(root, "strength=1")
    out = capsys.readouterr().out
    assert re.findall(r"rank \d says", out) == ["rank 1 says"]
    assert f"7 more ranks (--rank 0 … 7) in {rundir.rank_logs(root.job('job2'))}" in out


def test_launcher_log_is_shown_if_no_rank_printed(root: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    rank_log(root.job("job1"), 0, "stderr.log", "")
    (root.job("job1") / "123_0_log.err").write_text("ModuleNotFoundError")
    show(root, "strength=0")
    assert capsys.readouterr().out.splitlines()[-1] == "ModuleNotFoundError"


def test_following_ends_with_the_job(
    root: RunDir, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = start(root, "evaluate", "strength=1-bb", "job3")
    path = rank_log(job, 0, "stdout.log", "first\n")
    live = read_status(root).jobs["evaluate/strength=1-bb"][-1]
    looks = iter([True, True, False])
    monkeypatch.setattr(run_status_module.RunStatus, "is_live", lambda self, job: next(looks, False))
    monkeypatch.setattr(logs_module.time, "sleep", lambda s: path.write_text(path.read_text() + "more\n"))
    logs_module._follow(root, StatusReader(root), live, None)
    assert capsys.readouterr().out == "more\nmore\n"


def test_a_run_without_a_job_is_reported(root: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert show(root, "strength=1", "evaluate") == 0
    assert "evaluate/strength=1-bb: no job was started yet" in capsys.readouterr().err
    assert show(root, "report") == 0
    assert "report: no job was started yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("run", "stage", "message"),
    [
        ("strength", None, "several runs begin with 'strength': strength=0-aa, strength=1-bb"),
        ("lambda", None, "no run begins with 'lambda'; there are: "),
        ("strength", "tokens", f"no run begins with 'strength'; there are: {KEY} (tokens)"),
        ("train", None, "'train' has several runs: strength=0-aa, strength=1-bb"),
        ("strength=0", "fisher", "--stage fisher: this experiment has tokens, train, evaluate, report"),
    ],
)
def test_an_ambiguous_prefix_is_refused(root: RunDir, run: str, stage: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        select_run(read_status(root).rows, run, stage)


def test_a_prefix_selects_a_run_in_all_its_stages(root: RunDir) -> None:
    rows = read_status(root).rows
    assert [row.stage for row in select_run(rows, "strength=1", None)] == ["train", "evaluate"]
    assert [row.stage for row in select_run(rows, "strength=1", "evaluate")] == ["evaluate"]
    assert [row.run for row in select_run(rows, "0123", None)] == [KEY]
    assert [row.stage for row in select_run(rows, "report", None)] == ["report"]


def test_a_stage_selects_its_only_run(root: RunDir) -> None:
    assert [row.run for row in select_run(read_status(root).rows, "tokens", None)] == [KEY]


def test_cancel_stops_the_jobs_of_one_run(root: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    job = start(root, "train", "strength=1-bb", "job5")
    assert cancel(root.root, "strength=1", None, yes=True) == 0
    assert (
        "x: 1 running jobs save and stop, 0 waiting jobs do not start; to check: hpc-ewc status"
        in capsys.readouterr().err
    )
    assert rundir.stop_file(job, 0).exists()
    assert not rundir.stop_file(root.job("job1"), 0).exists()
    assert Ledger(root).read().cancelled == {"train/strength=1-bb"}


def test_cancel_needs_confirmation(root: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    job = start(root, "train", "strength=1-bb", "job5")
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(SubmitError, match="1 running jobs save and stop, 0 waiting jobs do not start: add --yes"):
        cancel(root.root, None, None, yes=False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdin.readline", lambda: "n\n", raising=False)
    with pytest.raises(SubmitError, match="nothing was cancelled"):
        cancel(root.root, None, None, yes=False)
    assert not rundir.stop_file(job, 0).exists()


def test_cancel_without_active_jobs_is_reported(root: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert cancel(root.root, None, None, yes=False) == 0
    assert "nothing to cancel: no such job is running or waiting" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- Slurm


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Slurm:
    stand_in = Slurm()
    monkeypatch.setattr(reader_module, "ask", stand_in)
    return stand_in


@pytest.fixture
def queued(tmp_path: Path, slurm: Slurm) -> RunDir:
    """Make a run folder: train (job 11) is running; evaluate (array 12) and the report are waiting."""
    root = slurm_folder(tmp_path)
    slurm.says("11", "RUNNING", nodes="n[1-2]", restarts=1)
    for i in range(3):
        slurm.says(f"12_{i}", "PENDING", reason="Dependency")
    slurm.says("13", "PENDING", reason="Dependency")
    return root


@pytest.fixture
def cancelled(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Record the arguments of each call of scancel."""
    found: list[list[str]] = []
    monkeypatch.setattr(client, "cancel", lambda ids: found.append(list(ids)))
    return found


def test_logs_cover_two_nodes_and_the_last_attempt(queued: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    for restart in (0, 1):
        for node in (0, 1):
            place = f"restart_{restart}/node_{node}/11.{restart}_x/attempt_0"
            for local in (0, 1):
                words = f"attempt {restart} node {node} rank {local}\n"
                rank_log(queued.job("11"), local, "stdout.log", words, place)
    show(queued, "strength", "train")
    out = capsys.readouterr().out
    assert out.startswith("job 11: RUNNING on n[1-2]; attempts 0, 1, the last is shown\n")
    assert re.findall(r"^attempt .*", out, re.M) == [f"attempt 1 node {n} rank {r}" for n in (0, 1) for r in (0, 1)]
    show(queued, "strength", "train", rank=2)
    assert re.findall(r"^attempt .*", capsys.readouterr().out, re.M) == ["attempt 1 node 1 rank 0"]
    show(queued, "strength", "train", rank=3, restart=0)
    assert re.findall(r"^attempt .*", capsys.readouterr().out, re.M) == ["attempt 0 node 1 rank 1"]
    with pytest.raises(ConfigError, match="--restart 7: job 11 has 0, 1"):
        show(queued, "strength", "train", restart=7)


def test_torchrun_numbers_ranks_by_node_name_as_text() -> None:
    places = [(0, node, local) for node in (0, 1) for local in (0, 1)]
    assert global_ranks(places) == [0, 1, 2, 3]
    assert global_ranks(places, ["n2", "n10"]) == [2, 3, 0, 1], "Slurm counts n2 first, torchrun n10"
    assert global_ranks(places, ["only one is known"]) == [0, 1, 2, 3]
    assert global_ranks([]) == []


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("n1", ["n1"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n1,rack[01-02]gpu[3,5],m", ["n1", "rack01gpu3", "rack01gpu5", "rack02gpu3", "rack02gpu5", "m"]),
        ("nid[000998-001000]", ["nid000998", "nid000999", "nid001000"]),
    ],
)
def test_node_lists_are_expanded(text: str, names: list[str]) -> None:
    assert expand_hosts(text) == names


def test_an_array_shows_the_failed_or_the_selected_element(
    queued: RunDir, slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, state in enumerate(["COMPLETED", "OUT_OF_MEMORY", "PENDING"]):
        slurm.says(f"12_{i}", state)
        words = f"element {i}\n"
        rank_log(queued.job(f"12_{i}"), 0, "stderr.log", words, f"restart_0/node_0/{i}")
    show(queued, "strength", "evaluate")
    assert "job 12_1: OUT_OF_MEMORY\n" in (out := capsys.readouterr().out)
    assert "element 1" in out
    slurm.says("12_2", "RUNNING")
    show(queued, "strength", "evaluate")
    assert "element 2" in capsys.readouterr().out, "a running element takes precedence over one that may be retried"
    for name in ("0", "12_0"):
        show(queued, "strength", "evaluate", element=name)
        assert "element 0" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=f"--element 9: evaluate/{re.escape(EVALUATE)} has 0, 1, 2"):
        show(queued, "strength", "evaluate", element="9")


def test_a_job_that_never_started_shows_the_output_of_its_batch_script(
    queued: RunDir, slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.says("11", "FAILED")
    queued.job("token-11").mkdir(parents=True)
    (queued.job("token-11") / "11_batch.out").write_text("module: command not found\n")
    show(queued, "strength", "train")
    assert "module: command not found" in capsys.readouterr().out


def test_following_a_job_through_a_restart(
    queued: RunDir, slurm: Slurm, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = rank_log(queued.job("11"), 0, "stdout.log", "old\n", "restart_1/node_0/x/attempt_0")
    reader = StatusReader(queued, query_interval_s=0.0)

    def requeue() -> None:
        first.write_text("old\nsaved\n")
        slurm.says("11", "PENDING", reason="BeginTime", restarts=2)

    def restart() -> None:
        slurm.says("11", "RUNNING", nodes="n3", restarts=2)
        rank_log(queued.job("11"), 0, "stdout.log", "resumed\n", "restart_2/node_0/x/attempt_0")

    def end() -> None:
        records.write_json(rundir.exit_file(queued.job("11"), 2), {"status": 0, "outcome": "finished"})

    steps = iter([requeue, restart, end])
    monkeypatch.setattr(logs_module.time, "sleep", lambda s: next(steps)())
    logs_module._follow(queued, reader, read_status(queued).jobs[f"train/{TRAIN}"][-1], None)
    captured = capsys.readouterr()
    assert captured.out == "saved\nresumed\n"
    assert captured.err == "job 11 is waiting for BeginTime\n"


def test_log_files_name_rank_and_attempt(queued: RunDir) -> None:
    job = read_status(queued).jobs[f"train/{TRAIN}"][-1]
    rank_log(queued.job("11"), 0, "stdout.log", "", "restart_3/node_1/x/attempt_0")
    rank_log(queued.job("11"), 0, "stdout.log", "", "restart_3/node_0/x/attempt_0")
    (queued.job("11") / "11_0_log.out").write_text("")
    found = find_logs(queued, job, None)
    assert [(file.rank, file.restart) for file in found] == [(0, 3), (1, 3), (None, 3)]


# ---------------------------------------------------------------------------------------------- cancel on Slurm


def test_cancel_on_slurm_asks_to_save_first(
    queued: RunDir,
    slurm: Slurm,
    cancelled: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def saved(seconds: float) -> None:
        stop = rundir.stop_file(queued.job("11"), 1)
        assert stop.exists(), "for the running attempt"
        assert stop.read_text() == "", "no signal name: the job is not requeued"
        assert Ledger(queued).read().cancelled == {f"train/{TRAIN}", f"evaluate/{EVALUATE}", "report"}
        records.write_json(rundir.exit_file(queued.job("11"), 1), {"status": 0, "outcome": "stopped"})

    monkeypatch.setattr(cancel_module.time, "sleep", saved)
    assert cancel(queued.root, None, None, yes=True) == 0
    assert cancelled == [["12_[0-2]", "13"]], "pending jobs are cancelled; jobs that have saved need no scancel"
    assert "1 running jobs save and stop, 4 waiting jobs do not start" in capsys.readouterr().err
    slurm.says("11", "FAILED", restarts=1)
    for i in range(3):
        slurm.says(f"12_{i}", "CANCELLED")
    assert [row.state for row in read_status(queued).rows] == ["done", "stopped", "stopped", "waiting"]


def test_jobs_that_do_not_end_go_to_scancel(
    queued: RunDir, cancelled: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(cancel_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(cancel_module.time, "sleep", lambda s: now.__setitem__(0, now[0] + 30))
    asked: list[set[str]] = []

    def look_up(ids: set[str]) -> dict[str, list[SlurmJob]]:
        asked.append(ids)
        return {}

    monkeypatch.setattr(client, "look_up", look_up)
    cancel(queued.root, "strength", "train", yes=True)
    assert cancelled == [[], ["11"]]
    assert asked
    assert "1 jobs have not ended: scancel" in capsys.readouterr().err
    assert Ledger(queued).read().cancelled == {f"train/{TRAIN}"}


def test_a_job_that_slurm_reports_as_ended_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(cancel_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(cancel_module.time, "sleep", lambda s: now.__setitem__(0, now[0] + 15))
    gone = {"5": [SlurmJob("5", "5", state="NODE_FAIL")]}
    monkeypatch.setattr(client, "look_up", lambda ids: gone)
    assert wait_for_jobs(RunDir(tmp_path), [SlurmJob("5", "5", state="RUNNING")]) == []


def test_slurm_is_queried_again_if_it_does_not_answer_while_jobs_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(cancel_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(cancel_module.time, "sleep", lambda s: now.__setitem__(0, now[0] + 15))
    answers: list[Any] = [AWAY, {"5": [SlurmJob("5", "5", state="CANCELLED")]}]

    def look_up(ids: set[str]) -> Any:
        answer = answers.pop(0)
        if answer is AWAY:
            raise AWAY
        return answer

    monkeypatch.setattr(client, "look_up", look_up)
    assert wait_for_jobs(RunDir(tmp_path), [SlurmJob("5", "5", state="RUNNING")]) == []
    assert not answers


def test_nothing_is_cancelled_while_slurm_does_not_answer(
    queued: RunDir, slurm: Slurm, cancelled: list[list[str]]
) -> None:
    slurm.unanswered = (AWAY, AWAY)
    with pytest.raises(
        SubmitError, match="nothing was cancelled, because Slurm must answer first: .*no answer in 20 s"
    ):
        cancel(queued.root, None, None, yes=True)
    assert cancelled == []
    assert Ledger(queued).read().cancelled == set()


def test_job_ids_are_abbreviated() -> None:
    jobs = [SlurmJob(f"12_{i}", "12", str(i)) for i in (3, 0, 1, 7)]
    assert job_id_list([*jobs, SlurmJob("9", "9")]) == ["12_[0-1,3,7]", "9"]
    assert ranges(range(1000)) == "0-999"
    assert job_id_list([]) == []
