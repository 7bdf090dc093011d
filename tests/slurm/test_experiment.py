"""A whole experiment on the cluster; and when the cluster's services, the login node or the disk are in trouble."""

from __future__ import annotations

import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hpc_ewc.launch.ledger.job_history import Ledger
from tests.slurm.faults import fill
from tests.slurm.sandbox import Sandbox
from tests.slurm.world import ONCE, World, assert_done, make_world, tables_without_jobs

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
ALL = {"tokens": 1, "fisher": 1, "train": 1, "evaluate": 2, "report": 1}


def test_two_nodes_and_an_array_make_the_numbers_and_the_table_of_one_machine(
    cluster: Sandbox, miniature: Path, undisturbed: World, tmp_path: Path
) -> None:
    """From nothing: tokens, Fisher and training on two nodes of one rank, two elements of evaluation, the report."""
    world = make_world(tmp_path / "undisturbed", cluster, miniature)
    world.must_submit()
    assert world.submit().returncode in (0, 3)
    assert world.submissions() == ALL, "what is queued is not submitted again"
    assert len(cluster.slurm("scontrol", "show", "hostnames", world.job("fisher").nodes).split()) == 2
    world.finish()
    assert_done(world, undisturbed)
    assert world.submissions() == ALL
    assert tables_without_jobs(world) == tables_without_jobs(undisturbed)


@pytest.mark.slow
def test_a_training_that_fails_takes_only_its_own_along(
    cluster: Sandbox, miniature: Path, undisturbed: World, tmp_path: Path
) -> None:
    """λF overflows: that run and its evaluation end, the other is reported, and nothing waits for ever."""
    world = make_world(tmp_path / "diverges", cluster, miniature, given=undisturbed.root.root)
    text = world.sweep.read_text().replace("strength = 1e6", "")
    world.sweep.write_text(text + "[grid]\newc.strength = [1e6, 1e30]\n")
    world.must_submit()
    world.finish()
    states = world.states()
    assert states["train/strength=1e+30"] == "failed", states
    assert states["evaluate/strength=1e+30"] == "blocked", states
    assert states["evaluate/strength=1e+06"] == "done", states
    assert states["report"] == "done", states
    assert world.run("status", str(world.root.root)).returncode == 1
    found = list(world.numbers().results.values())
    assert sorted(map(str, found)) == sorted(map(str, undisturbed.numbers().results.values()))
    assert world.root.report.is_dir(), "the report ran after any end"
    shown = world.run("logs", str(world.root.root), "strength=1e+30").stdout
    assert "failed: " in shown.splitlines()[0], shown[:500]


# ------------------------------------------------------------------------------------------ services


@pytest.mark.slow
def test_slurmctld_is_down(world: World, undisturbed: World) -> None:
    """Submit refuses, saying so; status tells what files tell; afterwards the same commands work."""
    assert world.cluster
    world.must_submit()
    world.job("train")
    world.cluster.save_state()
    world.cluster.do("kill-daemon", "slurmctld")
    refused = world.submit()
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "slurm" in refused.stderr.lower(), refused.stderr
    assert len(refused.stderr.strip().splitlines()) <= 3, refused.stderr
    told = world.run("status", str(world.root.root))
    assert told.returncode in (0, 3), told.stderr
    assert "train" in told.stdout
    world.cluster.do("up")
    world.must_submit()
    world.finish()
    assert_done(world, undisturbed)
    assert world.submissions() == ONCE


@pytest.mark.slow
def test_slurmctld_goes_down_half_way_through_a_submit(world: World, undisturbed: World) -> None:
    """The part that was taken stays and is valid; the next submit adds what remains, and only that."""
    assert world.cluster
    world.cluster.save_state()
    after_first = f"sleep 6; {sys.executable} {world.cluster.tool} kill-daemon slurmctld --state {world.cluster.state}"
    refused = with_sbatch(world, after_first).submit()
    assert refused.returncode in (1, 2), refused.stdout + refused.stderr
    assert "submit again" in refused.stderr or "stays" in refused.stderr, refused.stderr
    world.cluster.do("up")
    world.must_submit()
    world.finish()
    assert_done(world, undisturbed)
    assert world.submissions() == ONCE


@pytest.mark.slow
def test_slurmdbd_is_down(world: World, undisturbed: World) -> None:
    """Accounting is a convenience: everything works without."""
    assert world.cluster
    world.cluster.do("kill-daemon", "slurmdbd")
    world.cluster.do("kill-daemon", "mariadbd")
    world.must_submit()
    world.job("train")
    assert world.states()["train/run"] == "running"
    world.finish()
    assert_done(world, undisturbed)
    assert world.submissions() == ONCE


# ------------------------------------------------------------------------------------------ the login node


def with_sbatch(world: World, command: str, number: int = 1) -> World:
    """The world with an sbatch that also runs a shell command, after its `number`-th call has succeeded."""
    folder = world.folder / "bin"
    folder.mkdir()
    real = shutil.which("sbatch")
    count = folder / "count"
    script = folder / "sbatch"
    script.write_text(
        f'#!/bin/bash\nout=$({real} "$@") || exit $?\n'
        f'echo x >>{count}\nif [ $(wc -l <{count}) = {number} ]; then {command}; fi\necho "$out"\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return world.with_environment(PATH=f"{folder}:{world.environment['PATH']}")


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_login_process_is_killed_after_submission(world: World, number: int) -> None:
    """In the worst moment: Slurm has the job, and its id is not written down. Nothing is submitted twice."""
    assert world.cluster
    world.cluster.slurm("scontrol", "update", "PartitionName=main", "State=DOWN")  # nothing starts meanwhile
    try:
        killed = with_sbatch(world, "kill -9 $PPID", number).submit()
        assert killed.returncode == -signal.SIGKILL
        assert len({job.job_id.partition("_")[0] for job in world.jobs()}) == number
        world.must_submit()
        stages = sorted(job.stage for job in world.jobs())
        assert stages == ["evaluate", "report", "train"]
        known = {job.job_id for job in Ledger(world.root).read().jobs.values() if not job.outcome}
        assert known == {job.job_id for job in world.jobs()}
        before = {job.job_id for job in world.jobs()}
        world.must_submit()
        assert {job.job_id for job in world.jobs()} == before
    finally:
        world.cluster.slurm("scontrol", "update", "PartitionName=main", "State=UP")


@pytest.mark.slow
def test_two_submits_at_once_do_not_double(world: World) -> None:
    assert world.cluster
    world.cluster.slurm("scontrol", "update", "PartitionName=main", "State=DOWN")
    try:
        command = world.command(*world.submit_arguments)
        both = [
            subprocess.Popen(command, cwd=world.folder, env=world.environment, stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        said = [process.communicate(timeout=120)[1] for process in both]
        codes = sorted(process.returncode for process in both)
        assert codes in ([0, 0], [0, 2], [3, 3], [2, 3]), said
        assert sorted(job.stage for job in world.jobs()) == ["evaluate", "report", "train"]
    finally:
        world.cluster.slurm("scontrol", "update", "PartitionName=main", "State=UP")


# ------------------------------------------------------------------------------------------ the disk


@pytest.mark.slow
def test_the_run_folder_is_full(
    make_sandbox: Callable[[], Sandbox], miniature: Path, undisturbed: World, tmp_path: Path
) -> None:
    """No room for a checkpoint: the job fails, saying so; with room again, the next submit goes on."""
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(small)], check=True)
    cluster = make_sandbox()
    try:
        cluster.do("up")  # after the mount: nodes see what is mounted when they start
        world = make_world(small / "full", cluster, miniature, given=undisturbed.root.root)
        world.must_submit()
        filler = small / "filler"
        with world.held_with_checkpoint():
            fill(filler)
        world.finish()
        assert world.states()["train/run"] == "failed", world.status()
        shown = world.run("logs", str(world.root.root), "run", "--stage", "train").stdout
        assert "No space left" in shown or "disk" in shown.lower(), shown[:2000]
        filler.unlink()
        world.must_submit()
        world.finish()
        assert_done(world, undisturbed)
    finally:
        cluster.run("down")
        subprocess.run(["umount", str(small)], check=True)
