"""The ledger records submitted jobs; the lock allows one submit at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpc_ewc.errors import ArtefactError, SubmitError
from hpc_ewc.launch.ledger.job_history import Ledger
from hpc_ewc.launch.ledger.lock import lock_holder, submit_lock
from hpc_ewc.process import Process, children, kill_tree, process, start_time, this_process
from hpc_ewc.rundir import RunDir


@pytest.fixture
def root(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "runs" / "x")


def ended_process() -> Process:
    """Return the identity of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    seen = process(child.pid)
    child.communicate()
    return seen


# ---------------------------------------------------------------------------------------------- processes


def test_a_reused_pid_is_another_process() -> None:
    me = this_process()
    assert me.is_alive()
    assert not Process(me.host, me.pid, me.started + "0").is_alive()
    assert not ended_process().is_alive()
    assert Process("elsewhere", 1, "").is_alive(), "a process on another host is assumed alive"


def test_a_zombie_is_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    seen = process(child.pid)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not seen.is_alive()
    child.wait()


def test_a_process_tree_is_killed_across_sessions() -> None:
    inner = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}], start_new_session=True)"
    top = subprocess.Popen([sys.executable, "-c", program])
    while len(children(top.pid, recursive=True)) < 2:
        assert top.poll() is None
    under = [process(pid) for pid in children(top.pid, recursive=True)]
    assert children(top.pid) == [under[0].pid]
    kill_tree(top.pid)
    top.wait()
    while any(member.is_alive() for member in under):  # the process that adopts the last one reaps it
        pass
    assert start_time(top.pid) == ""


# ---------------------------------------------------------------------------------------------- the ledger


def test_ledger_records_a_job_from_intent_to_end(root: RunDir) -> None:
    ledger = Ledger(root)
    assert ledger.read().jobs == {}
    ledger.graph([{"stage": "train", "run": "a", "depends": []}])
    ledger.intent("t1", "train", "a", "0")
    ledger.intent("t2", "report", "", "0")
    (first, second) = ledger.read().jobs.values()
    assert (first.node, first.job_id, first.is_alive()) == ("train/a", "", False), "an intent is not a job yet"
    assert second.node == "report"
    ledger.submitted("t1", "j1", this_process())
    assert [job.token for job in ledger.read().live()] == ["t1"]
    ledger.ended("t1", "stopped")
    history = ledger.read()
    assert history.live() == []
    assert history.of("train/a")[0].outcome == "stopped"
    assert history.graph["nodes"][0]["run"] == "a"


def test_a_job_without_its_process_is_not_alive(root: RunDir) -> None:
    ledger = Ledger(root)
    ledger.intent("t1", "train", "a", "0")
    ledger.submitted("t1", "j1", ended_process())
    assert ledger.read().live() == []


def test_cancellation_counts_until_the_next_submit(root: RunDir) -> None:
    ledger = Ledger(root)
    ledger.graph([])
    ledger.cancelled("train/a")
    assert ledger.read().cancelled == {"train/a"}
    ledger.graph([])
    assert ledger.read().cancelled == set()


def test_a_truncated_last_line_is_skipped(root: RunDir) -> None:
    ledger = Ledger(root)
    ledger.intent("t1", "train", "a", "0")
    with root.ledger.open("a") as file:
        file.write('{"event": "submitted", "tok')
    assert list(ledger.read().jobs) == ["t1"]
    ledger.ended("t1", "failed")
    assert ledger.read().jobs["t1"].outcome == "failed"


def test_an_invalid_line_is_named(root: RunDir) -> None:
    Ledger(root).intent("t1", "train", "a", "0")
    with root.ledger.open("a") as file:
        file.write('{"event": "ended", "token": "unknown"}\n')
    with pytest.raises(ArtefactError, match=r"jobs\.jsonl: a line is not one that hpc-ewc writes"):
        Ledger(root).read()


# ---------------------------------------------------------------------------------------------- the lock


def test_a_second_submit_is_refused_while_the_first_runs(root: RunDir) -> None:
    with submit_lock(root):
        assert lock_holder(root) == this_process()
        with pytest.raises(SubmitError, match=f"another submit is running: pid {os.getpid()} on "), submit_lock(root):
            pass
        assert root.lock.exists(), "a refused submit does not remove the lock"
    assert not root.lock.exists()


def test_a_dead_processs_lock_is_taken_over(root: RunDir) -> None:
    gone = ended_process()
    root.root.mkdir(parents=True)
    root.lock.write_text(json.dumps({"host": gone.host, "pid": gone.pid, "started": gone.started}))
    with submit_lock(root):
        assert lock_holder(root) == this_process()
    assert list(root.root.iterdir()) == []


def test_a_lock_of_another_host_is_respected(root: RunDir) -> None:
    root.root.mkdir(parents=True)
    root.lock.write_text(json.dumps({"host": "login7", "pid": 1, "started": "x"}))
    with (
        pytest.raises(SubmitError, match=r"pid 1 on login7; .*if not, delete .*submit\.lock"),
        submit_lock(root),
    ):
        pass


def test_an_incomplete_lock_is_named(root: RunDir) -> None:
    root.root.mkdir(parents=True)
    root.lock.write_text("")
    with (
        pytest.raises(SubmitError, match=r"submit\.lock: another submit is starting, or was killed"),
        submit_lock(root),
    ):
        pass


def test_lock_is_released_after_an_error(root: RunDir) -> None:
    with pytest.raises(ZeroDivisionError), submit_lock(root):
        raise ZeroDivisionError
    assert not root.lock.exists()


def test_arrays_are_recorded_element_by_element(root: RunDir) -> None:
    ledger = Ledger(root)
    ledger.slurm_intent("t", "evaluate", "a", [{"name": "0", "covers": ["1.0:x"]}, {"name": "1", "covers": []}], 0)
    ledger.slurm_intent("u", "train", "a", [{"name": "0", "covers": ["0"]}], 2)
    assert [job.job_id for job in ledger.read().open()] == ["", "", ""], "an intent is open: Slurm may have it"
    ledger.slurm_submitted("t", "12", "afterok:11")
    ledger.slurm_submitted("u", "13", "")
    history = ledger.read()
    assert [job.job_id for job in history.jobs.values()] == ["12_0", "12_1", "13"]
    assert [job.main_id for job in history.submission("t")] == ["12", "12"]
    assert history.submission("t")[0].covers == ("1.0:x",) and history.submission("u")[0].link == 2
    assert not history.live(), "not a process on this machine"
    ledger.elements_ended([(history.submission("t")[1], "finished"), (history.submission("u")[0], "stopped")])
    assert [job.outcome for job in ledger.read().jobs.values()] == ["", "finished", "stopped"]
    assert [job.job_id for job in ledger.read().open()] == ["12_0"]
