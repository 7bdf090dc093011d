"""`hpc-ewc doctor` on a real cluster: each failed check comes with its fix."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.slurm.sandbox import Sandbox, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(300)]
Doctor = Callable[..., dict[str, dict[str, Any]]]
PROFILE = """
executor = "slurm"
runs = "{runs}"
env = {{ GLOO_SOCKET_IFNAME = "lo", CUDA_VISIBLE_DEVICES = "" }}
{top}
[slurm]
partition = "main"
signal_delay_s = 30
{slurm}
[resources.train]
nodes = {nodes}
gpus_per_node = 1
nproc_per_node = 1
cpus_per_task = 1
time_min = 5
"""


def write_profile(folder: Path, nodes: int = 1, slurm: str = "", top: str = "") -> Path:
    path = folder / "cluster.toml"
    path.write_text(PROFILE.format(runs=folder / "runs", nodes=nodes, slurm=slurm, top=top))
    return path


def command(profile: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "hpc_ewc", "doctor", "--profile", str(profile), *arguments]


def environment(cluster: Sandbox, folder: Path) -> dict[str, str]:
    return cluster.environment | {"PYTHONPATH": str(REPOSITORY), "HPC_EWC_CACHE": str(folder / "cache")}


@pytest.fixture
def doctor(cluster: Sandbox, tmp_path: Path) -> Doctor:
    """Run it; its findings by name. The exit status must say whether a check failed."""

    def ask(profile: Path, *arguments: str) -> dict[str, dict[str, Any]]:
        done = subprocess.run(
            command(profile, "--json", *arguments),
            env=environment(cluster, tmp_path),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.stdout, done.stderr
        findings = json.loads(done.stdout)["findings"]
        failed = [finding for finding in findings if finding["state"] == "fail"]
        assert done.returncode == (1 if failed else 0)
        assert not (tmp_path / "runs").exists(), "nothing is left"
        return {finding["check"]: finding for finding in findings}

    return ask


def test_a_cluster_that_is_ready(doctor: Doctor, cluster: Sandbox, tmp_path: Path) -> None:
    found = doctor(write_profile(tmp_path, nodes=2))
    assert {finding["state"] for finding in found.values()} == {"ok", "skipped"}, found
    assert found["Slurm"]["text"].startswith("22.05") or found["Slurm"]["text"][0].isdigit()
    assert found["accounting"]["text"] == "slurmdbd"
    assert "2 nodes, 1 GPU and 1 core each, 5 min: accepted" in found["train"]["text"]
    first, second = cluster.nodes[:2]
    assert f"ran on {first}, {second}" in found["nodes"]["text"]
    assert "is the same on every node" in found["shared folder"]["text"]
    assert f"GB/s over gloo, 2 ranks on {first}, {second}" in found["all-reduce"]["text"]


@pytest.mark.parametrize(
    ("slurm", "check", "words", "fix"),
    [
        ('stage.train.partition = "nowhere"', "train", "invalid partition", "set slurm.partition"),
        ('constraint = "a100"', "train", "feature", "correct slurm.constraint"),
        ("max_array_size = 5000", "arrays", "MaxArraySize is 1001", "set slurm.max_array_size = 1001"),
        ("grace_time_s = 1", "partition", "GraceTime = ", "set slurm.grace_time_s = "),
        ('stage.train.sbatch = { reservation = "mine" }', "train", "reservation", "correct slurm.sbatch.reservation"),
    ],
)
def test_what_is_not_granted(doctor: Doctor, tmp_path: Path, slurm: str, check: str, words: str, fix: str) -> None:
    found = doctor(write_profile(tmp_path, slurm=slurm), "--quick")
    assert found[check]["state"] == "fail", found
    assert words.lower() in found[check]["text"].lower()
    assert found[check]["fix"].startswith(fix)
    assert found["nodes"]["state"] == "skipped"


def test_a_python_that_the_nodes_do_not_have(doctor: Doctor, tmp_path: Path) -> None:
    found = doctor(write_profile(tmp_path, top='python = "/no/such/python"'))
    assert found["nodes"]["state"] == "fail"
    assert "/no/such/python" in found["nodes"]["text"], "the job's own last words"


def test_setup_lines_that_fail(doctor: Doctor, tmp_path: Path) -> None:
    found = doctor(write_profile(tmp_path, slurm='setup = ["module load nothing-of-the-kind || exit 3"]'))
    assert found["nodes"]["state"] == "fail"
    assert "FAILED 3:0" in found["nodes"]["text"] or "exit code 3" in found["nodes"]["text"]


def test_gpus_that_torch_does_not_see(doctor: Doctor, tmp_path: Path) -> None:
    profile = write_profile(tmp_path)
    profile.write_text(profile.read_text().replace(', CUDA_VISIBLE_DEVICES = ""', ""))
    found = doctor(profile)
    assert found["GPUs"]["state"] == "fail", "the sandbox's are null devices"
    assert "sees 0 of 1" in found["GPUs"]["text"]


def test_a_scheduler_that_is_away(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    here = os.environ | {"PATH": str(tmp_path / "bin"), "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command(write_profile(tmp_path)), env=here, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "fail     Slurm" in done.stdout
    assert "run this on a login node of the cluster" in done.stdout


def test_ctrl_c_takes_the_job_back(cluster: Sandbox, tmp_path: Path) -> None:
    profile = write_profile(tmp_path, slurm='setup = ["sleep 200"]')
    asked = subprocess.Popen(
        command(profile),
        env=environment(cluster, tmp_path),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        # a test runner in the background has it ignored, and its children with it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )

    def jobs() -> list[str]:
        return [line for line in cluster.slurm("squeue", "-h", "-o", "%i %j").splitlines() if " doctor-" in line]

    try:
        wait_for(jobs, "the job of doctor")
        asked.send_signal(signal.SIGINT)
        assert asked.wait(60) == 130
    finally:
        asked.kill()
        asked.communicate()
    wait_for(lambda: not jobs(), "the job to leave", timeout_s=60)
    assert not (tmp_path / "runs").exists()
