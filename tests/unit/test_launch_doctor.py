"""`hpc-ewc doctor`: the finding of each check. tests/slurm/test_doctor.py runs on a real cluster."""

from __future__ import annotations

import json
import math
import os
import re
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from hpc_ewc import records
from hpc_ewc.config import build_experiment
from hpc_ewc.errors import ConfigError
from hpc_ewc.launch.doctor import cluster, machine, node_check
from hpc_ewc.launch.doctor.cluster import check_accounting, check_limits, distinct_requests, probe_request
from hpc_ewc.launch.doctor.doctor import doctor
from hpc_ewc.launch.doctor.findings import Finding, fail, ok, warn
from hpc_ewc.launch.doctor.free_space import (
    FreeSpace,
    check_folders,
    check_free_space,
    free_space,
    parse_quota,
    write_error,
)
from hpc_ewc.launch.doctor.machine import (
    check_gpus,
    check_inputs,
    check_memory,
    check_python,
    probe_machine,
)
from hpc_ewc.launch.doctor.node_check import (
    check_all_reduce,
    check_clocks,
    check_nodes,
    check_shared,
    describe_resources,
    log_excerpt,
    temporary_run,
    wait_for_job,
)
from hpc_ewc.launch.profile.keys import Profile
from hpc_ewc.launch.profile.reading import build_profile
from hpc_ewc.launch.profile.resources import JobResources
from hpc_ewc.launch.slurm import client
from hpc_ewc.launch.slurm.output import SlurmJob
from hpc_ewc.node.slurm_command import SchedulerError
from hpc_ewc.rundir import RunDir
from tests.conftest import use_hub_cache

NODE: dict[str, Any] = {
    "host": "n1",
    "python": ".".join(map(str, sys.version_info[:3])),
    "interpreter": "/v/bin/python",
    "package": "0.1",
    "missing": [],
    "torch": "2.13.0+cu126",
    "runtime": "12.6",
    "gpus": ["NVIDIA H200"] * 4,
    "driver": "570.1",
    "clock": 100.0,
    "file_clock": 100.0,
    "nonce": "abc",
}


def profile(**slurm: Any) -> Profile:
    return build_profile({"executor": "slurm", "slurm": slurm}, "p.toml")


def only(found: Any) -> Finding:
    (finding,) = found
    return finding


# ---------------------------------------------------------------------------------------------- Python, GPUs, memory


def test_python_torch_and_packages_are_checked() -> None:
    assert [finding.state for finding in check_python([NODE], sys.executable)] == ["ok", "ok"]
    assert list(check_python([NODE], None))[1].text == "2.13.0+cu126, runtime 12.6"
    older = NODE | {"python": "3.9.2"}
    assert list(check_python([older], sys.executable))[1].state == "warn"
    assert len(list(check_python([older], None))) == 2
    found = list(check_python([NODE, NODE | {"host": "n2", "missing": ["lm_eval", "zstandard"]}], None))
    assert (found[1].state, found[1].text) == ("fail", "lm_eval zstandard: not installed on n2")
    assert found[1].fix == "/v/bin/python -m pip install lm_eval zstandard"
    broken = {"host": "n2", "torch": None, "torch_error": "OSError: libcudart.so.12"}
    found = list(check_python([NODE, NODE | broken], None))
    assert (found[1].state, found[1].text) == ("fail", "n2: OSError: libcudart.so.12")


def test_gpus_are_checked() -> None:
    assert check_gpus([NODE], 4, {}).text == "4 × NVIDIA H200 on each node; 570.1"
    found = check_gpus([NODE, NODE | {"host": "n2", "gpus": [], "gpu_error": "RuntimeError: driver too old"}], 4, {})
    assert found.state == "fail"
    assert found.text == "n2: torch 2.13.0+cu126 sees 0 of 4: RuntimeError: driver too old (driver: 570.1)"
    found = check_gpus([NODE | {"gpus": [], "runtime": None, "torch": "2.13.0+cpu"}], 4, {})
    assert "built for CPUs" in found.fix
    assert check_gpus([NODE], 8, {"CUDA_VISIBLE_DEVICES": ""}).state == "skipped"


def test_memory_is_checked() -> None:
    table = {"model": {"path": "a/model"}, "data": {"source": "a/corpus"}, "resources": {"train": {"mem_gb": 500}}}
    experiment = build_experiment(table, "x.toml")
    found = check_memory(Profile(), experiment, 64.0)
    assert (found.state, found.text) == ("warn", "64 GB available, resources.train.mem_gb = 500")
    assert check_memory(Profile(), None, 64.0).state == "ok"


def test_a_missing_or_failing_interpreter_is_reported(tmp_path: Path) -> None:
    assert probe_machine("/no/such/python", {}) == ({}, "/no/such/python: No such file or directory")
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho 'No module named hpc_ewc' >&2\nexit 1\n")
    script.chmod(stat.S_IRWXU)
    assert probe_machine(str(script), {}) == ({}, f"{script}: No module named hpc_ewc")


def test_this_machine_is_probed_with_the_jobs_python() -> None:
    facts, trouble = probe_machine(sys.executable, {})
    assert trouble == ""
    assert facts["missing"] == []
    assert facts["torch"] is not None
    assert facts["cpus"] == len(os.sched_getaffinity(0))


# ---------------------------------------------------------------------------------------------- folders

LFS = "/scratch/project_1 9100000000 0 10000000000 - 999990 0 1000000 -\n"
LFS_WRAPPED = "/lustre/a/very/long/name/of/a/project\n    950* 0 1000 6d 10 0 0 -\n"
QUOTA = "Disk quotas for user me (uid 1000):\n/home 1000 2000 4000 none 10 0 0 none\n"


def test_quotas_are_parsed_as_the_commands_print_them() -> None:
    assert parse_quota(LFS, Path("/scratch/project_1/me")) == FreeSpace(900000000 * 1024, 10, " of your quota")
    wrapped = parse_quota(LFS_WRAPPED, Path("/lustre/a/very/long/name/of/a/project/x"))
    assert wrapped == FreeSpace(50 * 1024, math.inf, " of your quota")
    assert parse_quota(QUOTA, Path("/home/me")) == FreeSpace(3000 * 1024, math.inf, " of your quota")
    assert parse_quota(QUOTA, Path("/elsewhere")) is None
    assert parse_quota("/home 1000 0 0 none 10 0 0 none\n", Path("/home/me")) is None, "no limit"
    assert parse_quota("lfs quota: not a Lustre file system\n", Path("/home")) is None
    both = "/ 10 0 20 - 1 0 0 -\n/home 10 0 110 - 1 0 0 -\n"
    assert parse_quota(both, Path("/home/me")) == FreeSpace(100 * 1024, math.inf, " of your quota")


def test_a_quota_below_the_free_space_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert free_space(tmp_path).source == ""
    lfs = tmp_path / "lfs"
    lfs.write_text('#!/bin/sh\necho "/ 0 0 2048 - 0 0 7 -"\n')
    lfs.chmod(stat.S_IRWXU)
    assert free_space(tmp_path / "not" / "yet") == FreeSpace(2 << 20, 7, " of your quota")
    lfs.write_text("#!/bin/sh\nexit 1\n")
    assert free_space(tmp_path).source == ""


@pytest.mark.parametrize(
    ("left", "state"),
    [
        (FreeSpace(1 << 40, 10**7), "ok"),
        (FreeSpace(10 << 30, 10**7), "warn"),
        (FreeSpace(1 << 40, 20_000), "warn"),
        (FreeSpace(1 << 20, 10**7), "fail"),
        (FreeSpace(1 << 40, 10), "fail"),
        (FreeSpace(), "ok"),
    ],
)
def test_free_space_is_checked(left: FreeSpace, state: str) -> None:
    assert check_free_space("runs", Path("/r"), left).state == state


def test_free_space_is_described() -> None:
    text = check_free_space("runs", Path("/r"), FreeSpace(3 * 10**12, 1234567, " of your quota")).text
    assert text == "/r: 3,000 GB and 1,234,567 files free of your quota"
    assert check_free_space("runs", Path("/r"), FreeSpace()).text == "/r: free space unknown"


def test_unwritable_folders_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPC_EWC_CACHE", str(tmp_path / "cache"))
    assert [finding.check for finding in check_folders(tmp_path / "runs")] == ["runs", "cache"]
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"
    assert "proc" in write_error(Path("/proc/nowhere"))
    monkeypatch.setenv("HPC_EWC_CACHE", "/proc/nowhere")
    runs, cache = check_folders(Path("/proc/runs"))
    assert (runs.state, cache.state) == ("fail", "fail")
    assert "`runs` of the profile" in runs.fix
    assert "HPC_EWC_CACHE" in cache.fix


def test_inputs_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub_cache(monkeypatch, tmp_path)
    monkeypatch.setenv("HPC_EWC_CACHE", str(tmp_path / "cache"))
    assert only(check_inputs(None, None)).state == "skipped"
    table = {"model": {"path": "some/model"}, "data": {"source": "a/corpus"}}
    found = only(check_inputs(Path("x.toml"), build_experiment(table, "x.toml")))
    assert found.state == "fail"
    assert "some/model" in found.text


# ---------------------------------------------------------------------------------------------- cluster commands


def test_accounting_and_limits_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_accounting({"AccountingStorageType": "accounting_storage/none"}).state == "warn"
    monkeypatch.setattr(client, "accounted", lambda **_: [])
    assert check_accounting({"AccountingStorageType": "accounting_storage/slurmdbd"}) == ok("accounting", "slurmdbd")

    def away(**_: Any) -> list[SlurmJob]:
        raise SchedulerError("`sacct`: no answer in 20 s", "silent")

    monkeypatch.setattr(client, "accounted", away)
    assert (
        check_accounting({"AccountingStorageType": "accounting_storage/slurmdbd"}).text == "`sacct`: no answer in 20 s"
    )
    found = list(check_limits(profile(max_array_size=2000), {"MaxArraySize": "1001", "KillWait": "30 sec"}))
    assert [finding.state for finding in found] == ["fail", "ok"]
    assert found[0].fix == "set slurm.max_array_size = 1001"
    assert "30 sec (KillWait)" in found[1].text


def test_partitions_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "PartitionName=p GraceTime=600 Hidden=NO State=DOWN TotalCPUs=16"
    monkeypatch.setattr(cluster, "scontrol", lambda *_: said)
    down, grace, _ = check_limits(profile(partition="p"), {})
    assert (down.state, down.text) == ("warn", "p is DOWN: jobs wait until it is UP")
    assert (grace.state, grace.text) == ("fail", "p: GraceTime = 600 s, slurm.grace_time_s = 300")

    def unknown(*_: str) -> str:
        raise SchedulerError("Partition p not found", "refused")

    monkeypatch.setattr(cluster, "scontrol", unknown)
    assert [finding.state for finding in check_limits(profile(partition="p"), {})] == ["fail", "ok"]
    assert [finding.state for finding in check_limits(profile(partition="p,q"), {})] == ["ok"]


def test_equal_requests_are_checked_once() -> None:
    table = {"nodes": 4, "gpus_per_node": 8, "cpus_per_task": 56, "mem_gb": 400, "time_min": 120}
    found = distinct_requests(build_profile({"executor": "slurm", "resources": {"train": table}}, "p.toml"), None)
    assert [request.stages for request in found] == [("tokens", "fisher", "evaluate", "report"), ("train",)]
    assert describe_resources(found[1].resources) == "4 nodes, 8 GPUs and 56 cores, 400 GB each, 120 min"
    assert describe_resources(found[0].resources) == "1 node, 1 core, 60 min"
    stage, small = probe_request(found, profile(signal_delay_s=600))
    assert (stage, small.nodes, small.gpus_per_node, small.time_min) == ("train", 2, 8, 13)


# ---------------------------------------------------------------------------------------------- node reports


def test_a_folder_that_differs_on_a_node_is_reported(tmp_path: Path) -> None:
    root = RunDir(tmp_path / "doctor-x")
    assert check_shared([NODE], root, "abc").state == "ok"
    found = check_shared([NODE, NODE | {"host": "n2", "nonce": ""}], root, "abc")
    assert (found.state, found.text) == ("fail", f"{tmp_path} is a different folder on n2")


def test_clock_skew_is_reported(tmp_path: Path) -> None:
    root = RunDir(tmp_path)
    assert check_clocks([NODE], root).state == "ok"
    found = check_clocks([NODE, NODE | {"host": "n2", "clock": 70.0}], root)
    assert found.state == "warn"
    assert re.match(r"-(29\.9|30\.\d) s on n2", found.text)


def test_all_reduce_is_checked(tmp_path: Path) -> None:
    resources = JobResources(2, 4, 4, 8, None, 10, 1)
    found = check_all_reduce(tmp_path, resources, "FAILED 1:0; its log: Connection refused")
    assert found.state == "fail"
    assert found.text.startswith("8 ranks on 2 nodes did not connect: FAILED 1:0; its log: Connection refused")
    assert "NCCL_SOCKET_IFNAME" in found.fix
    facts = {"backend": "nccl", "world_size": 8, "hosts": ["n1", "n2"], "bus_gb_s": 180.0, "correct": True}
    records.write_json(tmp_path / "all-reduce.json", facts)
    assert check_all_reduce(tmp_path, resources, "") == ok("all-reduce", "180.00 GB/s over nccl, 8 ranks on n1, n2")
    records.write_json(tmp_path / "all-reduce.json", facts | {"bus_gb_s": 0.1})
    assert check_all_reduce(tmp_path, resources, "").state == "warn"
    records.write_json(tmp_path / "all-reduce.json", facts | {"correct": False})
    assert check_all_reduce(tmp_path, resources, "").state == "fail"


def test_waiting_for_the_job_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_check.time, "sleep", lambda s: None)
    answers = [
        {},
        {"7": [SlurmJob("7", "7", reason="Priority")]},
        {"7": [SlurmJob("7", "7", state="RUNNING")]},
        {"7": [SlurmJob("7", "7", state="FAILED", exit_code="1:0", nodes="n1")]},
    ]
    monkeypatch.setattr(client, "look_up", lambda ids: answers.pop(0))
    assert wait_for_job("7")[0] == "FAILED 1:0 on n1"
    clock = iter(range(0, 10**6, 200))
    monkeypatch.setattr(node_check.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(client, "look_up", lambda ids: {"7": [SlurmJob("7", "7", reason="Priority")]})
    assert wait_for_job("7")[0] == "did not end within 10 min, cancelled (still PENDING: Priority)"


def test_ctrl_c_during_sbatch_cancels_the_job_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def call(command: list[str], *_: Any) -> str:
        asked.append(command)
        if command[0] == "sbatch":
            raise KeyboardInterrupt
        return ""

    monkeypatch.setattr(node_check, "call", call)
    root = RunDir(tmp_path / "doctor-x1")
    root.root.mkdir()
    with pytest.raises(KeyboardInterrupt):
        list(check_nodes(root, profile(), "train", JobResources(1, 1, 0, 1, None, 10, 1)))
    assert [command[0] for command in asked] == ["sbatch", "scancel"]
    assert asked[1] == ["scancel", "--name=doctor-x1/train"]


def test_missing_node_reports_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resources = JobResources(1, 1, 0, 1, None, 10, 1)
    root = RunDir(tmp_path)
    cancelled: list[str] = []
    monkeypatch.setattr(node_check, "FILE_DELAY_S", 0.0)
    monkeypatch.setattr(node_check, "submit_probe", lambda *_: "7")
    monkeypatch.setattr(node_check, "cancel_job", cancelled.append)
    monkeypatch.setattr(node_check, "wait_for_job", lambda job_id: ("", 3.0))
    found = only(check_nodes(root, profile(), "train", resources))
    assert (found.check, found.state) == ("shared folder", "fail")
    monkeypatch.setattr(node_check, "wait_for_job", lambda job_id: ("NODE_FAIL  on n1", 3.0))
    found = only(check_nodes(root, profile(), "train", resources))
    assert (found.check, found.text) == ("nodes", "job 7, 1 node, 1 core, 10 min: NODE_FAIL  on n1")
    records.write_json(root.root / "found" / "node-n1.json", NODE)
    (root.root / "found" / "node-n2.json").write_text("{half")
    monkeypatch.setattr(node_check, "wait_for_job", lambda job_id: ("", 3.0))
    names = [finding.check for finding in check_nodes(root, profile(), "train", resources)]
    assert names == ["nodes", "shared folder", "python", "torch", "clocks"]
    assert cancelled == ["7"] * 3

    def refused(*_: Any) -> str:
        raise SchedulerError("no", "refused")

    monkeypatch.setattr(node_check, "submit_probe", refused)
    assert only(check_nodes(root, profile(), "train", resources)).text == "no"


def test_the_log_excerpt_prefers_error_lines(tmp_path: Path) -> None:
    root = RunDir(tmp_path)
    assert log_excerpt(root, "7") == ""
    root.job("probe").mkdir(parents=True)
    (root.job("probe") / "7_batch.out").write_text("Loading modules\nLmod has detected the following error: x\nbye\n")
    assert log_excerpt(root, "7") == "; its log: Lmod has detected the following error: x"
    (root.job("probe") / "7_batch.out").write_text("one\n\ntwo\n")
    assert log_excerpt(root, "7") == "; its log: one / two"


def test_the_temporary_run_folder_is_removed(tmp_path: Path) -> None:
    with temporary_run(tmp_path / "a" / "runs") as root:
        assert root is not None
        assert root.root.is_dir()
        assert root.name.startswith("doctor-")
    assert not (tmp_path / "a" / "runs").exists()
    (tmp_path / "runs").mkdir()
    with temporary_run(tmp_path / "runs"):
        pass
    assert list((tmp_path / "runs").iterdir()) == []
    with temporary_run(Path("/proc/runs")) as root:
        assert root is None


# ---------------------------------------------------------------------------------------------- the command


def test_doctor_runs_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPC_EWC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(machine, "probe_machine", lambda *_: (NODE | {"cpus": 10**6, "memory_gb": 64.0}, ""))
    assert doctor(None, None, quick=False, as_json=False) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("ok       python ")
    assert out[-1] == "ready: this machine"
    path = tmp_path / "p.toml"
    path.write_text("[local]\ngpus = 8\n")
    assert doctor(path, None, quick=False, as_json=True) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["exit_status"] == 1
    (gpus,) = [finding for finding in told["findings"] if finding["check"] == "GPUs"]
    assert (gpus["state"], gpus["text"][:24]) == ("fail", "n1: torch 2.13.0+cu126 s")
    monkeypatch.setattr(machine, "probe_machine", lambda *_: ({}, "/p: no such"))
    assert doctor(None, None, quick=False, as_json=False) == 1
    assert "1 to fix: this machine" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="no-such.toml: no such file"):
        doctor(Path("no-such.toml"), None, quick=False, as_json=False)


def test_a_finding_is_a_line_with_its_fix_below() -> None:
    assert ok("torch", "2.13").render() == "ok       torch             2.13\n"
    assert fail("torch", "none", "install it").render().splitlines() == [
        "fail     torch             none",
        "                           → install it",
    ]
    assert warn("a", "b", "c").render().startswith("warn ")
