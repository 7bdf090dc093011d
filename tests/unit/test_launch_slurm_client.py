"""Output of squeue, sacct and scontrol is parsed into jobs; a missing, slow or refusing Slurm is reported."""

from __future__ import annotations

import os
import re
import stat
import time
from pathlib import Path

import pytest

from hpc_ewc.errors import SubmitError
from hpc_ewc.launch.slurm.client import accounted, ask, cancel, look_up, queue, settings, version
from hpc_ewc.launch.slurm.output import (
    ACCOUNT_FIELDS,
    QUEUE_FIELDS,
    QUEUE_FORMAT,
    SEPARATOR,
    SlurmJob,
    base_state,
    count_gpus,
    parse_accounting,
    parse_details,
    parse_duration,
    parse_queue,
    parse_settings,
    split_id,
)
from hpc_ewc.node.slurm_command import SchedulerError, call, scontrol

NAME = "paper/train/strength=1e+06,seed=0-3f2a9c1b77de"

# ---------------------------------------------------------------------------------------------- recorded output
# squeue -h -r -t all -O … and sacct -X -D -n -P …, Slurm 22.05.8, the separator shown as ␟, columns narrowed, names
# shortened

SQUEUE = """\
6      ␟FAILED   ␟NonZeroExitCode␟node1␟0␟0:00 ␟768␟cpu=1,mem=100M,node=1,billing=1␟main␟bad␟(null)␟
2_11   ␟PENDING  ␟JobArrayTaskLimit␟     ␟0␟0:00 ␟0␟cpu=1,mem=100M,node=1,billing=1␟main␟EVALUATE␟20261121-083000-001␟
3      ␟PENDING  ␟Dependency␟     ␟0␟0:00 ␟0␟cpu=1,mem=100M,node=1,billing=1␟main␟paper/report␟(null)␟
1      ␟RUNNING  ␟None␟node1␟1␟1-00:00:39␟0␟cpu=1,mem=100M,node=1,billing=1,gres/gpu=1␟main␟TRAIN␟tok|en x␟
2_0    ␟RUNNING  ␟None␟node[1-2]␟0␟3:00 ␟0␟cpu=1,mem=100M,node=2,billing=1␟main␟EVALUATE␟20261121-083000-001␟
"""
SACCT = """\
1␟REQUEUED␟None␟node1␟19␟0:0␟billing=1,cpu=1,gres/gpu=1,mem=100M,node=1␟main␟TRAIN␟
1␟RUNNING␟None␟node1␟21␟0:0␟billing=1,cpu=1,gres/gpu=1,mem=100M,node=1␟main␟TRAIN␟
3␟PENDING␟Dependency␟None assigned␟0␟0:0␟␟main␟paper/report␟
6␟FAILED␟None␟node1␟0␟3:0␟billing=1,cpu=1,mem=100M,node=1␟main␟bad␟
2_1␟CANCELLED by 0␟None␟node1␟21␟0:0␟billing=1,cpu=1,mem=100M,node=1␟main␟EVALUATE␟
2_[2-11%2]␟PENDING␟JobArrayTaskLimit␟None assigned␟0␟0:0␟␟main␟EVALUATE␟
"""
# `scontrol -o show job` of 22.05.8, without the fields that are not read
SCONTROL_22 = """\
JobId=1 JobName=paper/train/strength=1e+06,seed=0-3f2a9c1b77de UserId=me(0) GroupId=me(0) MCS_label=N/A Priority=429 \
JobState=PENDING Reason=BeginTime Dependency=(null) Requeue=1 Restarts=1 BatchFlag=1 Reboot=0 ExitCode=0:0 \
RunTime=00:00:00 TimeLimit=00:10:00 Partition=main NodeList= TRES=cpu=1,mem=100M,node=1,billing=1,gres/gpu=1 \
Command=/tmp/j.sh WorkDir=/tmp Comment=tok|en x  StdErr=/dev/null StdIn=/dev/null StdOut=/dev/null Power= \
TresPerNode=gres:gpu:1
JobId=4 ArrayJobId=2 ArrayTaskId=0 ArrayTaskThrottle=2 JobName=paper/evaluate/a UserId=me(0) JobState=RUNNING \
Reason=None Restarts=0 ExitCode=0:0 RunTime=00:00:23 NodeList=node1 BatchHost=node1 TRES=cpu=1 Comment=t  StdErr=/dev
JobId=2 ArrayJobId=2 ArrayTaskId=3-4,7%2 ArrayTaskThrottle=2 JobName=paper/evaluate/a UserId=me(0) JobState=PENDING \
Reason=JobArrayTaskLimit Restarts=0 ExitCode=0:0 RunTime=00:00:00 NodeList= TRES=cpu=1 StdErr=/dev/null
"""
# since 23.02 there are ReqTRES and AllocTRES (a public example from HPC2N, on one line)
SCONTROL_24 = """\
JobId=34815931 JobName=compiler-run UserId=someone(2897) GroupId=folk(3001) MCS_label=N/A Priority=2748684 Nice=0 \
Account=staff QOS=normal JobState=COMPLETED Reason=None Dependency=(null) Requeue=0 Restarts=0 BatchFlag=1 Reboot=0 \
ExitCode=0:0 RunTime=00:00:07 TimeLimit=00:10:00 TimeMin=N/A ReqNodeList=(null) ExcNodeList=(null) \
NodeList=b-cn[1703,1705] BatchHost=b-cn1703 NumNodes=2 NumCPUs=12 NumTasks=12 CPUs/Task=1 ReqB:S:C:T=0:0:*:* \
ReqTRES=cpu=12,mem=30192M,node=1,billing=12 AllocTRES=cpu=12,mem=30192M,node=2,billing=12,gres/gpu=8 Socks/Node=* \
Command=/pfs/compile-run.sh WorkDir=/pfs StdErr=/pfs/slurm-34815931.out StdIn=/dev/null Power=
"""


def recorded(text: str) -> str:
    """Return the recorded output with the real separator and names."""
    return text.replace("␟", SEPARATOR).replace("TRAIN", NAME).replace("EVALUATE", NAME.replace("train", "evaluate"))


AWAY = "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1"


def by_id(jobs: list[SlurmJob]) -> dict[str, SlurmJob]:
    return {job.job_id: job for job in jobs}


# ---------------------------------------------------------------------------------------------- parsing


def test_recorded_squeue_output_is_parsed() -> None:
    jobs = by_id(parse_queue(recorded(SQUEUE)))
    assert list(jobs) == ["6", "2_11", "3", "1", "2_0"]
    assert jobs["1"] == SlurmJob(
        job_id="1",
        main_id="1",
        name=NAME,
        comment="tok|en x",
        state="RUNNING",
        nodes="node1",
        restarts=1,
        exit_code="0:0",
        gpus=1,
        gpu_s=86439.0,
        partition="main",
    )
    assert (jobs["2_11"].main_id, jobs["2_11"].element, jobs["2_11"].reason) == ("2", "11", "JobArrayTaskLimit")
    assert (jobs["6"].exit_code, jobs["6"].comment, jobs["6"].ended) == ("3:0", "", True)
    assert jobs["2_0"].nodes == "node[1-2]"


def test_recorded_sacct_output_is_parsed() -> None:
    jobs = by_id(parse_accounting(recorded(SACCT)))
    assert set(jobs) == {"1", "3", "6", "2_1", *(f"2_{i}" for i in range(2, 12))}
    assert (jobs["1"].state, jobs["1"].restarts, jobs["1"].gpu_s) == ("RUNNING", 1, 40.0)
    assert (jobs["2_1"].state, jobs["2_1"].ended) == ("CANCELLED", True)
    assert jobs["2_7"].waits
    assert jobs["2_7"].partition == "main"
    assert jobs["2_7"].nodes == "", "None assigned"


@pytest.mark.parametrize("ending", ["REQUEUED", "PENDING"])
def test_a_requeued_job_counts_its_attempts(ending: str) -> None:
    line = "1␟{}␟None␟n1␟10␟0:0␟gres/gpu=2␟main␟a␟\n"
    lines = [line.format(state) for state in ("PREEMPTED", "NODE_FAIL")]
    lines += [line.format(ending)] if ending == "PENDING" else ["1␟REQUEUED␟None␟n1␟10␟0:0␟gres/gpu=2␟main␟a␟\n"]
    job = parse_accounting(recorded("".join(lines)))[0]
    assert job.restarts == (3 if ending == "REQUEUED" else 2)
    assert job.gpu_s == 60.0


def test_a_reused_job_id_is_another_job() -> None:
    text = (
        "1␟COMPLETED␟None␟n1␟500␟0:0␟gres/gpu=2␟main␟of last year␟\n1␟COMPLETED␟None␟n1␟10␟0:0␟gres/gpu=2␟main␟mine␟\n"
    )
    job = parse_accounting(recorded(text))[0]
    assert (job.name, job.restarts, job.gpu_s) == ("mine", 0, 20.0)


def test_scontrol_output_of_two_versions_is_parsed() -> None:
    jobs = by_id(parse_details(SCONTROL_22 + SCONTROL_24))
    assert list(jobs) == ["1", "2_0", "2_3", "2_4", "2_7", "34815931"]
    first = jobs["1"]
    assert (first.name, first.comment, first.state, first.reason) == (NAME, "tok|en x", "PENDING", "BeginTime")
    assert (first.restarts, first.gpus, first.nodes, first.partition) == (1, 1, "", "main")
    assert (jobs["2_0"].nodes, jobs["2_0"].comment) == ("node1", "t")
    other = jobs["34815931"]
    assert (other.nodes, other.gpus, other.gpu_s, other.exit_code) == ("b-cn[1703,1705]", 8, 56.0, "0:0")


def test_job_names_that_resemble_other_fields_are_parsed() -> None:
    hostile = "x JobState=FAILED ExitCode=9:9 $(rm -rf /) ;|'\""
    line = f"JobId=5 JobName={hostile} UserId=me(0) JobState=RUNNING Reason=None NodeList=n1 ExitCode=0:0 TRES=cpu=1"
    assert parse_details(line)[0] == SlurmJob("5", "5", name=hostile, state="RUNNING", nodes="n1", exit_code="0:0")
    fields = ["5", "RUNNING", "None", "n1", "0", "0:07", "0", "cpu=1", "main", hostile, "a␟b"]
    assert parse_queue(recorded("␟".join(fields) + "␟")) == [], (
        "a job with a separator in its comment is not one of ours"
    )
    job = parse_queue(recorded("␟".join([*fields[:10], "a,b=c|d"]) + "␟"))[0]
    assert (job.name, job.comment) == (hostile, "a,b=c|d")


def test_lines_that_are_not_jobs_are_skipped() -> None:
    noise = "CLUSTER: sandbox\n\nWelcome to the cluster!\nthe second line of a comment\n"
    assert len(parse_queue(noise + recorded(SQUEUE))) == 5
    assert len(parse_accounting(noise + recorded(SACCT))) == 14
    assert parse_details("No jobs in the system\n") == []
    assert parse_queue(recorded("␟".join(["not an id", *[""] * 10]) + "␟")) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("123", [("123", "")]),
        (" 123_4 ", [("123", "4")]),
        ("123_[4-6,9%2]", [("123", str(i)) for i in (4, 5, 6, 9)]),
        ("123_[0-8:4]", [("123", str(i)) for i in (0, 4, 8)]),
        ("123_[1,3,...]", [("123", "1"), ("123", "3")]),
        ("123_[1,3-5...", [("123", str(i)) for i in (1, 3, 4, 5)]),
        ("123.batch", []),
        ("123+0", []),
        ("N/A", []),
        ("", []),
    ],
)
def test_job_ids_are_split(text: str, found: list[tuple[str, str]]) -> None:
    assert split_id(text) == found


def test_job_states_of_any_version_are_read() -> None:
    assert [base_state(s) for s in ("CANCELLED by 1000", "CANCELLED+", "COMPLETED,REVOKED", " running ")] == [
        "CANCELLED",
        "CANCELLED",
        "COMPLETED",
        "RUNNING",
    ]
    groups = {
        state: SlurmJob("1", "1", state=state) for state in ("COMPLETING", "SUSPENDED", "EXPEDITING", "STAGE_OUT")
    }
    assert all(job.runs and not job.ended and not job.waits for job in groups.values())
    for state in ("TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL", "COMPLETED"):
        assert SlurmJob("1", "1", state=state).ended
    for state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"):
        assert SlurmJob("1", "1", state=state).waits


def test_durations_and_gpus_are_parsed() -> None:
    assert [parse_duration(t) for t in ("0:00", "45:10", "2:03:04", "1-02:03:04", "00:10.250", "INVALID", "")] == [
        0.0,
        2710.0,
        7384.0,
        93784.0,
        10.0,
        0.0,
        0.0,
    ]
    assert count_gpus("cpu=1,gres/gpu=4,gres/gpu:a100=4") == 4
    assert count_gpus("cpu=1,gres/gpu:a100=2,gres/gpu:h100=3") == 5
    assert count_gpus("cpu=1,gres/gpumem=40G") == 0


def test_slurm_settings_are_parsed() -> None:
    text = "As of 2026\nKillWait      = 30 sec\nSLURM_VERSION = 22.05.8\nSlurmctld(primary) at x is UP\n"
    assert parse_settings(text) == {"KillWait": "30 sec", "SLURM_VERSION": "22.05.8"}


# ---------------------------------------------------------------------------------------------- calls


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a folder for fake Slurm commands first in PATH; each call is recorded in calls.txt."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    for name in ("squeue", "sacct", "scontrol", "scancel", "sinfo"):
        fake(folder, name, "echo 'not of this test' >&2; exit 9")
    return folder


def fake(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f'#!/bin/sh\necho "{name} $*" >> "$(dirname "$0")/calls.txt"\n{script}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def prints(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.out").write_text(text)
    fake(folder, name, f'cat "$(dirname "$0")/{name}.out"')


def calls(folder: Path) -> list[str]:
    path = folder / "calls.txt"
    return path.read_text().replace(SEPARATOR, "␟").splitlines() if path.exists() else []


def test_queue_needs_one_call(commands: Path) -> None:
    prints(commands, "squeue", recorded(SQUEUE))
    assert {job.job_id for job in queue()} == {"2_11", "3", "1", "2_0"}
    assert {job.job_id for job in queue("someone", ended=True)} == {"6", "2_11", "3", "1", "2_0"}
    first, second = calls(commands)
    assert first.startswith(f"squeue -h -r -u {os.getuid()} -O JobArrayID:60␟,State:24␟")
    assert second.endswith("-t all")
    assert "-u someone" in second


def test_user_environment_settings_change_nothing(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEUE_FORMAT", "%i")
    monkeypatch.setenv("SACCT_FORMAT", "jobid")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "%s")
    fake(commands, "sinfo", 'echo "$SQUEUE_FORMAT$SACCT_FORMAT$SLURM_TIME_FORMAT.$SLURM_BITSTR_LEN.$LC_ALL"')
    assert call(["sinfo"]) == "standard.0.C\n"


def test_an_empty_queue_is_no_error(commands: Path) -> None:
    prints(commands, "squeue", "")
    assert queue() == []


def test_scontrol_replaces_an_unsupported_squeue(commands: Path) -> None:
    fake(commands, "squeue", "echo 'squeue: error: Invalid job format specification: -O' >&2; exit 1")
    prints(commands, "scontrol", SCONTROL_22)
    assert [job.job_id for job in queue()] == ["1", "2_0", "2_3", "2_4", "2_7"]
    prints(commands, "squeue", "JOBID PARTITION NAME\n12 main x\n")
    assert len(queue()) == 5
    prints(commands, "scontrol", "No jobs in the system\n")
    assert queue() == []
    fake(commands, "scontrol", "exit 1")
    with pytest.raises(SchedulerError, match="squeue printed an unknown format: 'JOBID PARTITION NAME'"):
        queue()


def test_accounting_finds_jobs_by_id_and_by_name(commands: Path) -> None:
    prints(commands, "sacct", recorded(SACCT))
    assert len(accounted(job_ids=["2_3", "1", "1"])) == 14, "sacct returns the requested jobs"
    assert [job.job_id for job in accounted(names=[NAME, "bad"], since=time.time())] == ["1", "6"]
    by_ids, by_names = calls(commands)
    assert "-a -j 1,2 -S 1970-01-01" in by_ids
    assert f"-u {os.getuid()} -S 20" in by_names
    assert "--name" not in by_names, "sacct splits names at commas"


def test_long_id_lists_are_split_into_several_calls(commands: Path) -> None:
    prints(commands, "sacct", recorded(SACCT))
    jobs = accounted(job_ids=["1", "6", *(str(10**9 + i) for i in range(20_000))])
    assert {job.job_id for job in jobs} == {"1", "6"}
    assert " -j " not in calls(commands)[0]


def test_any_number_of_jobs_needs_two_calls(commands: Path) -> None:
    prints(commands, "squeue", recorded(SQUEUE))
    prints(commands, "sacct", recorded(SACCT))
    jobs = look_up(["1", "2", "6", "99"])
    assert [line.split()[0] for line in calls(commands)] == ["squeue", "sacct"]
    assert set(jobs) == {"1", "2", "6"}, "job 99 is unknown"
    assert [job.element for job in jobs["2"]] == [str(i) for i in range(12)]
    assert [job.state for job in jobs["2"]][:3] == ["RUNNING", "CANCELLED", "PENDING"]
    assert jobs["1"][0].gpu_s == 86439.0, "squeue is newer"
    assert look_up([]) == {}
    assert len(calls(commands)) == 2


def test_one_answering_command_is_enough(commands: Path) -> None:
    prints(commands, "squeue", recorded(SQUEUE))
    fake(commands, "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    answer = ask(["1", "2", "6"])
    assert len(answer.jobs["2"]) == 2
    assert [error.kind for error in answer.unanswered] == ["missing"]
    assert "this cluster keeps no accounting" in str(answer.unanswered[0])
    prints(commands, "sacct", recorded(SACCT))
    fake(
        commands,
        "squeue",
        "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1",
    )
    answer = ask(["1", "2", "6"])
    assert len(answer.jobs["2"]) == 11
    assert [error.kind for error in answer.unanswered] == ["silent"]
    assert [line.split()[0] for line in calls(commands)] == ["squeue", "sacct"] * 2, "no third call"


def test_no_answering_command_is_an_error(commands: Path) -> None:
    fake(
        commands,
        "squeue",
        "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1",
    )
    fake(commands, "sacct", "echo 'sacct: error: Problem talking to the database: Connection refused' >&2; exit 1")
    with pytest.raises(SchedulerError, match=r"Unable to contact.*try again in a minute.*Connection refused"):
        look_up(["1"])


def test_a_timeout_is_an_error(commands: Path) -> None:
    fake(commands, "squeue", "sleep 60; echo")  # a wrapper script whose child keeps the pipes open
    with pytest.raises(
        SchedulerError, match=r"`sleeper .*`: no answer in 0.2 s; the scheduler is busy or down"
    ) as caught:
        fake(commands, "sleeper", "exec sleep 60")
        call(["sleeper", "-x"], time_limit_s=0.2)
    assert caught.value.kind == "silent"


def test_missing_slurm_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SubmitError, match="`sinfo --version`: No such file or directory; is this a login node"):
        version()


def test_an_error_names_the_command(commands: Path) -> None:
    fake(commands, "scontrol", "echo 'Access/permission denied for job 7' >&2; exit 1")
    with pytest.raises(SchedulerError, match=r'`scontrol requeue 7` \(exit 1\): "Access/permission denied') as caught:
        scontrol("requeue", "7")
    assert caught.value.kind == "refused"
    fake(commands, "scontrol", "exit 4")
    with pytest.raises(SchedulerError, match=re.escape('`scontrol show config` (exit 4): "no message"')):
        settings()


def test_cancel_needs_few_calls_and_no_shell(commands: Path) -> None:
    fake(commands, "scancel", "")
    cancel([str(i) for i in range(1500)] + ["7_3", "7_3"])
    assert len(calls(commands)) == 2
    assert calls(commands)[1].endswith(" 1499 7_3")
    cancel([])
    assert len(calls(commands)) == 2


@pytest.mark.parametrize(
    "words", ["Kill job error on job id 9: Invalid job id specified", "Job/step already completing or completed"]
)
def test_cancelling_ended_jobs_is_no_error(commands: Path, words: str) -> None:
    fake(commands, "scancel", f"echo 'scancel: error: {words}' >&2; exit 1")
    cancel(["9"])
    fake(commands, "scancel", "echo 'scancel: error: Kill job error on job id 9: Access/permission denied' >&2; exit 1")
    with pytest.raises(SchedulerError, match="Access/permission denied"):
        cancel(["9"])


def test_slurm_version_is_parsed(commands: Path) -> None:
    fake(commands, "sinfo", "echo slurm-wlm 22.05.8")
    assert version() == "22.05.8"


def test_queue_format_matches_its_fields() -> None:
    assert QUEUE_FORMAT.count(SEPARATOR) == len(QUEUE_FIELDS)
    assert len(ACCOUNT_FIELDS) == len(set(ACCOUNT_FIELDS))
