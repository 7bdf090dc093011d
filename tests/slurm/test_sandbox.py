"""The sandbox itself: up, mended, powered off, twice at once, and gone without a trace."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.slurm.sandbox import Sandbox, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]
MakeSandbox = Callable[[], Sandbox]


HEARS = """
import os, signal, sys, time
name = "child" if os.fork() == 0 else "parent"
signal.signal(signal.SIGUSR2, lambda *_: print(name + "-hears", flush=True))
print(name + "-up", flush=True)
while True: time.sleep(0.05)
"""


def states(sandbox: Sandbox) -> dict[str, str]:
    lines = sandbox.slurm("sinfo", "-hN", "-p", "main", "-o", "%N %T").splitlines()
    return dict(line.split() for line in lines)


def test_a_job_runs_on_two_named_nodes_with_gpus_and_is_accounted(cluster: Sandbox) -> None:
    first, second = cluster.nodes[:2]
    script = 'echo "$(hostname) $CUDA_VISIBLE_DEVICES"; getent hosts ' + second
    out = cluster.slurm("srun", "-N2", "-w", f"{first},{second}", "--gpus-per-node=2", "bash", "-c", script)
    assert {f"{first} 0,1", f"{second} 0,1"} < set(out.splitlines())
    assert re.search(rf"127\.0\.1\.2\s+{second}", out), "each node finds the others by name"

    def accounted() -> str:
        return cluster.slurm("sacct", "-nXP", "-o", "nodelist,alloctres,state")

    line = rf"{first[:-1]}\[1-2\]\|.*gres/gpu=4.*\|COMPLETED"  # beside the jobs of whoever had the cluster before
    wait_for(lambda: re.search(line, accounted()), "the job, with its four GPUs, in sacct")


def test_the_folder_is_private_and_a_shell_needs_one_variable(cluster: Sandbox) -> None:
    assert cluster.state.stat().st_mode & 0o777 == 0o700
    assert cluster.do("env") == f"export SLURM_CONF={cluster.state}/etc/slurm.conf\n"
    for secret in ("munge/key", "etc/password", "etc/slurmdbd.conf", "etc/database.sql"):
        assert (cluster.state / secret).stat().st_mode & 0o077 == 0, secret


@pytest.mark.slow
def test_up_again_changes_nothing_and_mends_what_died(cluster: Sandbox) -> None:
    before = sorted(cluster.marked())
    cluster.do("up")
    assert sorted(cluster.marked()) == before
    first = cluster.nodes[0]
    cluster.save_state()
    cluster.do("kill-daemon", "slurmctld")
    cluster.do("kill-daemon", "mariadbd")
    cluster.do("kill-slurmd", first)
    assert cluster.run("status").returncode == 3
    cluster.do("up")
    assert cluster.run("status").returncode == 0
    assert cluster.slurm("srun", "-w", first, "hostname") == f"{first}\n"


@pytest.mark.slow
def test_a_power_loss_ends_everything_on_its_node_alone(cluster: Sandbox) -> None:
    first, second = cluster.nodes[:2]
    jobs = [
        cluster.slurm("sbatch", "--parsable", "-w", name, "-o/dev/null", "--wrap=sleep 987") for name in (first, second)
    ]
    wait_for(
        lambda: cluster.slurm("squeue", "-hj", ",".join(map(str.strip, jobs)), "-o%T") == "RUNNING\n" * 2, "both run"
    )
    sleepers = lambda: subprocess.run(["pgrep", "-fc", "^sleep 987$"], capture_output=True, text=True).stdout  # noqa: E731
    wait_for(lambda: sleepers() == "2\n", "both sleep")
    cluster.do("power-off", first)
    assert sleepers() == "1\n"
    cluster.do("power-on", first)
    assert states(cluster)[first] in ("idle", "mixed", "allocated", "completing")
    cluster.slurm("scancel", *map(str.strip, jobs))


@pytest.mark.slow
@pytest.mark.parametrize("proctrack", ["cgroup", "linuxproc"])
def test_signals_reach_what_each_tracker_says_and_nothing_outlives_down(
    make_sandbox: MakeSandbox, cluster: Sandbox, proctrack: str
) -> None:
    """A second cluster beside the first, with either tracker."""
    second = make_sandbox()
    started = second.run("up", "--nodes", "2", "--gpus", "1", "--proctrack", proctrack)
    if proctrack == "cgroup" and "needs a systemd" in " ".join(started.stderr.split()):
        pytest.skip(started.stderr)
    assert started.returncode == 0, started.stderr
    names = second.nodes
    assert len(names) == 2
    assert not set(names) & set(cluster.nodes), "cgroups are named by node: two clusters share no name"
    assert f"proctrack/{proctrack}" in second.slurm("scontrol", "show", "config")
    out = second.state.parent / "out"
    script = second.state.parent / "hears.py"
    script.write_text(HEARS)
    job = second.slurm("sbatch", "--parsable", f"-o{out}", "--wrap", f"srun {sys.executable} {script}").strip()
    wait_for(lambda: out.exists() and "child-up" in out.read_text(), "the job runs")
    second.slurm("scancel", "-s", "USR2", job)
    wait_for(lambda: "parent-hears" in out.read_text(), "USR2 is heard")
    time.sleep(0.5)
    assert ("child-hears" in out.read_text()) == (proctrack == "linuxproc"), "cgroup: the task alone hears it"
    second.do("down")
    assert second.marked() == []
    assert not second.state.exists()
    assert set(second.state.parent.iterdir()) == {out, script}, "no lock file either"
    assert not [path for name in names for path in Path("/sys/fs/cgroup").glob(f"*/slurm_{name}")]
    assert str(second.state) not in Path("/proc/mounts").read_text()
    assert set(states(cluster)) == set(cluster.nodes), "the other cluster did not notice"


@pytest.mark.slow
def test_after_an_unclean_death_up_starts_again_and_knows_its_jobs(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox()
    sandbox.do("up", "--nodes", "1")
    job = sandbox.slurm("sbatch", "--parsable", "-o/dev/null", "--wrap=sleep 600").strip()
    for pid in sandbox.marked():
        with suppress(ProcessLookupError):  # a node takes its own along
            os.kill(pid, signal.SIGKILL)
    assert "dead" in sandbox.run("status").stdout
    sandbox.do("up")
    wait_for(lambda: job in sandbox.slurm("sacct", "-nXP", "-oJobID").split(), "the job in the accounting")
    sandbox.do("down", "--keep")
    assert sandbox.marked() == []
    sandbox.do("up")
    assert job in sandbox.slurm("sacct", "-nXP", "-oJobID").split(), "kept through down --keep"


# ------------------------------------------------------------------------------------------ what it refuses


def test_another_shape_of_a_cluster_that_is_there_is_refused(cluster: Sandbox) -> None:
    refused = cluster.run("up", "--nodes", "3")
    assert refused.returncode == 2
    assert re.search(r"--nodes 3: the sandbox in .* has 4; down comes first", refused.stderr)


def test_an_unknown_node_or_daemon_is_answered_with_the_known_ones(cluster: Sandbox) -> None:
    assert f"no node 'x': this sandbox has {cluster.nodes[0]}, " in cluster.run("power-off", "x").stderr
    assert "no daemon 'x': munged, mariadbd, slurmdbd, slurmctld" in cluster.run("kill-daemon", "x").stderr


def test_a_folder_with_other_files_is_never_removed(can_start: None, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    other = Sandbox(REPOSITORY / "slurm" / "sandbox", tmp_path)
    for command in ("up", "down"):
        refused = other.run(command)
        assert refused.returncode == 2
        assert "is not a sandbox's: it holds other files" in refused.stderr or "at most" in refused.stderr
    assert (tmp_path / "thesis.tex").exists()


def test_commands_before_up_say_what_to_do(can_start: None, tmp_path: Path) -> None:
    none = Sandbox(REPOSITORY / "slurm" / "sandbox", tmp_path / "none")
    for arguments in (["status"], ["env"], ["power-off", "node1"]):
        refused = none.run(*arguments)
        assert refused.returncode == 2
        assert re.search("no sandbox in .*none: python slurm/sandbox up", refused.stderr)
    assert none.run("down").returncode == 0, "down is idempotent"


@pytest.mark.slow
def test_a_daemon_that_does_not_start_shows_its_log(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox()
    sandbox.do("up", "--nodes", "1")
    sandbox.do("kill-daemon", "munged")
    (sandbox.state / "munge" / "key").write_bytes(b"short")
    refused = sandbox.run("up")
    assert refused.returncode == 2
    assert re.search(r"munged ended with status \d+ at its start", refused.stderr)
    assert "log/munged.log:\n" in refused.stderr
    assert "Keyfile must be at least" in refused.stderr, "the log's last lines"


def test_without_root_or_packages_the_error_names_the_apt_line(can_start: None, tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import machine, settings\n"
        "{change}\n"
        "try: machine.check()\nexcept settings.SandboxError as error: print(error)"
    )
    changes = {
        "import os; os.geteuid = lambda: 1000": "needs root",
        "machine.PROGRAMS = ('slurmctl',)": "apt-get install",
    }
    for change, words in changes.items():
        command = [sys.executable, "-c", code.format(change=change), str(REPOSITORY / "slurm" / "sandbox")]
        assert words in subprocess.run(command, capture_output=True, text=True).stdout
