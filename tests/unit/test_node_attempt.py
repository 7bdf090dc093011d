"""The launcher inside a Slurm job: ends of attempts, coordination between nodes, and command lines."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpc_ewc import records, rundir
from hpc_ewc.artefacts.artefact import Element
from hpc_ewc.artefacts.outcome import read_exit, read_outcome
from hpc_ewc.errors import StageError
from hpc_ewc.node import node_attempt, slurm_attempt
from hpc_ewc.node.attempts import progress_mark
from hpc_ewc.node.commands import plain_command, python_command, torchrun_command
from hpc_ewc.node.container import ContainerConfig
from hpc_ewc.node.slurm_attempt import StageTask, StoppedError
from hpc_ewc.node.slurm_command import SchedulerError
from hpc_ewc.node.task import JobTask
from hpc_ewc.rundir import RunDir, StageDir
from tests.unit.launch_world import order, read_events, write_experiment

WORLD = Path(__file__).with_name("launch_world.py")


@pytest.fixture
def folder(tmp_path: Path) -> StageDir:
    """Prepare the folder of a stage for the fake worker."""
    write_experiment(tmp_path)
    stage = RunDir(tmp_path / "runs").fisher("0123456789ab")
    facts = {"schema": records.SCHEMA, "stage": "tokens", "run": "0123456789ab", "key": "0123456789ab"}
    records.write_json(stage.stage_json, facts | {"inputs": {}, "coordinates": {}, "expected": []})
    text = (tmp_path / "small.toml").read_text()
    records.write_text(stage.config_toml, text.partition("[grid]")[0])
    return stage


@pytest.fixture
def task(tmp_path: Path, folder: StageDir, monkeypatch: pytest.MonkeyPatch) -> StageTask:
    """Return the task of a one-node job whose Python runs the fake worker."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} {WORLD} {tmp_path / "orders"} "$@"\n')
    python.chmod(0o755)
    (tmp_path / "orders").mkdir()
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "n1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setattr(slurm_attempt, "KILL_WAIT_S", 2.0)
    return StageTask(
        name="small/tokens/0123456789ab",
        stage="tokens",
        folder=str(folder.path),
        jobs=str(tmp_path / "runs" / "jobs"),
        token="t",
        elements=((Element("0"),),),
        python=str(python),
        environment={"PYTHONPATH": str(WORLD.parents[2])},
        grace_time_s=0,
    )


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def job(task: JobTask) -> Path:
    return Path(task.jobs) / "7"


def when_it_waits(tmp_path: Path, then: Any) -> threading.Thread:
    """Call `then` once the worker has begun."""

    def watch() -> None:
        while not any(event["what"] == "begin" for event in read_events(tmp_path / "orders")):
            time.sleep(0.05)
        time.sleep(0.5)  # time for its handlers to be installed
        then()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


# ---------------------------------------------------------------------------------------------- ends of attempts


def test_a_complete_stage_is_finished(task: JobTask) -> None:
    assert task() == "finished"
    assert read_outcome(rundir.exit_file(job(task), 0)) == "finished"
    assert read_exit(rundir.exit_file(job(task), 0))["status"] == 0


def test_an_error_fails_the_job_with_its_traceback_first(
    task: JobTask, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    order(tmp_path / "orders", "raise", "tokens")
    with pytest.raises(StageError, match="ValueError: as it was told") as caught:
        task()
    assert str(caught.value).startswith("Traceback (most recent call last)")
    assert capfd.readouterr().err.strip().startswith("Traceback (most recent call last)")
    assert read_outcome(rundir.exit_file(job(task), 0)) == "failed"


def test_exit_status_0_without_done_json_is_a_failure(task: JobTask, tmp_path: Path, folder: StageDir) -> None:
    order(tmp_path / "orders", "leave", "tokens")
    with pytest.raises(StageError, match="the worker ended with status 0, not done"):
        task()
    assert records.read_json(folder.failed)["job_id"] == "7"


def test_a_killed_worker_names_the_signal(task: JobTask, tmp_path: Path) -> None:
    order(tmp_path / "orders", "die", "tokens")
    with pytest.raises(StageError, match="was killed by signal 9"):
        task()


def test_sigusr2_saves_requeues_and_never_returns(
    task: JobTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the task exits before Slurm ends the job, the job becomes COMPLETED or FAILED."""
    told: list[tuple[str, ...]] = []
    monkeypatch.setattr(slurm_attempt, "scontrol", lambda *words: told.append(words) or "")
    order(tmp_path / "orders", "wait", "tokens")
    when_it_waits(tmp_path, lambda: os.kill(os.getpid(), signal.SIGUSR2))
    with pytest.raises(StoppedError, match=r"stopped \(SIGUSR2\) and saved; resubmit to resume"):
        task()
    assert told == [("requeue", "7")]
    assert rundir.stop_file(job(task), 0).read_text() == "SIGUSR2"
    assert read_outcome(rundir.exit_file(job(task), 0)) == "stopped"
    assert [event["what"] for event in read_events(tmp_path / "orders")] == ["begin", "end"], "it exited by itself"


def test_a_refused_requeue_is_retried(task: JobTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, ...]] = []

    def silent(*words: str) -> str:
        told.append(words)
        raise SchedulerError("no answer", "silent")

    monkeypatch.setattr(slurm_attempt, "scontrol", silent)
    monkeypatch.setattr(slurm_attempt, "REQUEUE_EVERY_S", 0.5)
    monkeypatch.setattr(slurm_attempt, "KILL_WAIT_S", 5.0)
    order(tmp_path / "orders", "wait", "tokens")
    when_it_waits(tmp_path, lambda: os.kill(os.getpid(), signal.SIGUSR2))
    with pytest.raises(StoppedError):
        task()
    assert len(told) > 1


def test_sigterm_waits_and_requests_no_requeue(task: JobTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After preemption, scancel or requeue, Slurm has already decided the job's next state."""
    monkeypatch.setattr(slurm_attempt, "scontrol", lambda *words: pytest.fail(str(words)))
    order(tmp_path / "orders", "wait", "tokens")
    when_it_waits(tmp_path, lambda: os.kill(os.getpid(), signal.SIGTERM))
    began = time.monotonic()
    with pytest.raises(StoppedError, match=r"stopped \(SIGTERM\)"):
        task()
    assert time.monotonic() - began >= slurm_attempt.KILL_WAIT_S


def test_a_users_stop_file_ends_the_job_at_once(task: JobTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_attempt, "KILL_WAIT_S", 600.0)
    order(tmp_path / "orders", "wait", "tokens")
    when_it_waits(tmp_path, rundir.stop_file(job(task), 0).touch)
    with pytest.raises(StoppedError, match=r"stopped \(on request\)"):
        task()


def test_a_job_cancelled_before_it_starts_runs_no_worker(task: JobTask, tmp_path: Path) -> None:
    records.write_text(rundir.stop_file(job(task), 0), "")
    with pytest.raises(StoppedError, match=r"stopped \(on request\)"):
        task()
    assert read_events(tmp_path / "orders") == []


def test_a_chained_job_leaves_work_to_its_successor(
    task: JobTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_attempt, "scontrol", lambda *words: pytest.fail(str(words)))
    monkeypatch.setattr(slurm_attempt, "KILL_WAIT_S", 600.0)
    order(tmp_path / "orders", "wait", "tokens")
    when_it_waits(tmp_path, lambda: os.kill(os.getpid(), signal.SIGUSR2))
    with pytest.raises(StoppedError):
        replace(task, requeue=False)()


def test_a_successor_with_nothing_to_do_exits_at_once(
    task: JobTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task()
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert replace(task, link=1)() == "finished"
    assert len([event for event in read_events(tmp_path / "orders") if event["what"] == "begin"]) == 1


def test_a_successor_does_not_retry_a_failure(task: JobTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order(tmp_path / "orders", "raise", "tokens")
    with pytest.raises(StageError):
        task()
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    with pytest.raises(StageError, match="job 7, the previous one of the chain, failed"):
        replace(task, link=1)()


def test_the_job_fails_after_three_restarts_without_progress(
    task: JobTask, tmp_path: Path, folder: StageDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    order(tmp_path / "orders", "leave", "tokens")
    for restart in range(3):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        with pytest.raises(StageError, match="ended with status 0"):
            task()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    with pytest.raises(StageError, match=r"3 restarts without progress: still at nothing\. Give it more .*time_min"):
        task()
    said = records.read_json(folder.failed)["error"]
    assert "3 restarts without progress" in said and said.endswith(
        "The last error: the worker ended with status 0, not done"
    )
    assert len(read_events(tmp_path / "orders")) == 6, "the fourth attempt started no worker"


def test_progress_resets_the_restart_count(
    task: JobTask, tmp_path: Path, folder: StageDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    order(tmp_path / "orders", "leave", "tokens")
    for restart in range(5):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        records.write_json(folder.parts / f"{restart}.json", {})
        with pytest.raises(StageError, match="ended with status 0"):
            task()


def test_an_error_pickle_of_an_earlier_attempt_is_removed(task: JobTask) -> None:
    records.write_bytes(job(task) / "7_0_result.pkl", b"error")
    task()
    assert not (job(task) / "7_0_result.pkl").exists()


@pytest.mark.parametrize(
    ("stage", "path", "mark"),
    [
        ("train", "checkpoints/00000120/x", "step 00000120"),
        ("train", "exports/00000200/x", "step 00000200"),
        ("train", "checkpoints/.00000130.7.0/x", ""),
        ("fisher", "partial/00000064/x", "example 00000064"),
        ("tokens", "parts/0.json", "1 parts"),
        ("evaluate", "00000200/mmlu.en.json", "1 cells"),
        ("evaluate", "00000200/mmlu.lt.json", ""),
    ],
)
def test_each_stage_has_a_progress_mark(tmp_path: Path, stage: str, path: str, mark: str) -> None:
    records.write_text(tmp_path / path, "")
    assert progress_mark(StageDir(tmp_path), stage, [Element("0", (), ("1.0:mmlu.en",))]) == mark


# ---------------------------------------------------------------------------------------------- several nodes


def second_node(task: JobTask, monkeypatch: pytest.MonkeyPatch) -> StageTask:
    monkeypatch.setenv("SLURM_NODEID", "1")
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    return task


@pytest.mark.parametrize(("wrote", "error"), [("finished", None), ("failed", StageError), ("stopped", StoppedError)])
def test_other_nodes_end_with_the_outcome_of_node_0(
    task: JobTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrote: str, error: type[Exception] | None
) -> None:
    order(tmp_path / "orders", "leave", "tokens")
    monkeypatch.setattr(slurm_attempt, "KILL_WAIT_S", 60.0)
    task = second_node(task, monkeypatch)
    facts = {"status": 0, "outcome": wrote}
    writer = threading.Timer(1.5, lambda: records.write_json(rundir.exit_file(job(task), 0), facts))
    writer.start()
    if error is None:
        assert task() == "finished"
    else:
        with pytest.raises(error):
            task()
    writer.join()


def test_a_lost_node_requeues_the_job(
    task: JobTask, tmp_path: Path, folder: StageDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ranks lost a peer and no other node reports a cause: the machine failed, not the run."""
    told: list[tuple[str, ...]] = []
    monkeypatch.setattr(slurm_attempt, "scontrol", lambda *words: told.append(words) or "")
    monkeypatch.setattr(slurm_attempt, "PEER_REPORT_S", 0.5)
    order(tmp_path / "orders", "lose", "tokens")
    with pytest.raises(StoppedError):
        second_node(task, monkeypatch)()
    assert told == [("requeue", "7")]


def test_an_error_on_another_node_is_the_reported_cause(
    task: JobTask, tmp_path: Path, folder: StageDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_attempt, "scontrol", lambda *words: pytest.fail(str(words)))
    order(tmp_path / "orders", "lose", "tokens")
    task = second_node(task, monkeypatch)

    def other_node() -> None:
        facts = {"schema": records.SCHEMA, "error": "rank 1: Signal 9 (SIGKILL) received by PID 5", "traceback": ""}
        records.write_json(folder.failed, facts | {"rank": 1, "job_id": "7", "restart": 0})
        records.write_json(rundir.exit_file(job(task), 0), {"status": -9, "outcome": "failed"})

    writer = threading.Timer(2.0, other_node)
    writer.start()
    with pytest.raises(StageError, match="Signal 9"):
        task()
    writer.join()


def test_a_torchrun_waiting_for_lost_nodes_is_ended(
    task: JobTask, tmp_path: Path, folder: StageDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stop signal arrives during rendezvous, and the other nodes never join."""
    monkeypatch.setattr(node_attempt, "RENDEZVOUS_IDLE_S", 0.5)
    monkeypatch.setattr(node_attempt, "uses_torchrun", lambda stage: True)
    monkeypatch.setattr(slurm_attempt, "scontrol", lambda *words: "")
    (tmp_path / "python").write_text(f"#!/bin/sh\ntouch {tmp_path}/meeting; exec sleep 600\n")

    def stop() -> None:
        while not (tmp_path / "meeting").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGUSR2)

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    with pytest.raises(StoppedError):
        task()
    thread.join()


# ---------------------------------------------------------------------------------------------- several elements


TWO_AT_ONCE = """#!/bin/sh
touch {here}/running/$$
echo "$CUDA_VISIBLE_DEVICES" >> {here}/seen
for part; do :; done
case $part in 0/4 | 1/4) begun=2 ;; *) begun=4 ;; esac
while [ $(wc -l < {here}/seen) -lt $begun ]; do sleep 0.05; done
ls {here}/running | wc -l >> {here}/most
rm {here}/running/$$
"""
"""Worker that ends once the other one of its pair has begun."""


def test_a_whole_node_runs_a_worker_on_each_gpu(task: JobTask, tmp_path: Path) -> None:
    """Four elements on two GPUs: at most two run at once, and each sees one GPU."""
    script = tmp_path / "python"
    (tmp_path / "running").mkdir()
    script.write_text(TWO_AT_ONCE.format(here=tmp_path))
    elements = tuple(Element(str(i), ("--part", f"{i}/4")) for i in range(4))
    whole = replace(task, elements=(elements,), slots=2, gpus_per_node=2, cpus_per_task=8)
    assert whole() == "finished"
    assert sorted((tmp_path / "seen").read_text().split()) == ["0", "0", "1", "1"]
    assert max(map(int, (tmp_path / "most").read_text().split())) == 2
    logs = rundir.rank_logs(job(task)) / "restart_0" / "node_0"
    assert sorted(path.name for path in logs.iterdir()) == ["0", "1", "2", "3"]


# ---------------------------------------------------------------------------------------------- command lines


def test_torchrun_gets_rendezvous_and_log_arguments_by_node(task: JobTask, tmp_path: Path) -> None:
    train = replace(task, stage="train", nproc_per_node=4)
    command = torchrun_command(train, Element("0"), ("--nnodes=2",), tmp_path / "logs")
    assert command[:3] == (task.python, "-m", "torch.distributed.run")
    assert {"--nnodes=2", "--nproc-per-node=4", "--max-restarts=0", f"--log-dir={tmp_path}/logs"} <= set(command)
    assert command[-4:] == ("-m", "hpc_ewc.worker", "train", task.folder)


def test_only_torchrun_runs_in_apptainer(task: JobTask) -> None:
    box = ContainerConfig(runtime="apptainer", image="/proj/x.sif", binds=("/scratch",))
    command = plain_command(replace(task, container=box, gpus_per_node=1), Element("0"))
    assert command[:3] == ("apptainer", "exec", "--nv")
    assert command[command.index("/proj/x.sif") + 1] == "python3"
    assert "/scratch" in command and str(Path(task.jobs).parent) in command
    assert command[-4:] == ("-m", "hpc_ewc.worker", "tokens", task.folder)
    rocm = ContainerConfig(runtime="singularity", image="/proj/x.sif", args=("--rocm",))
    assert plain_command(replace(task, container=rocm, gpus_per_node=1), Element("0"))[:3] == (
        "singularity",
        "exec",
        "--rocm",
    )


def test_pyxis_runs_as_a_step_on_this_node(task: JobTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    box = ContainerConfig(runtime="pyxis", image="/proj/x.sqsh", binds=("/scratch",))
    command = python_command(replace(task, container=box), ("-m", "x"))
    assert command[0] == "srun" and {"--overlap", "--nodelist=n1", "--container-image=/proj/x.sqsh"} <= set(command)
    mounts = next(word for word in command if word.startswith("--container-mounts="))
    assert "/scratch:/scratch" in mounts
