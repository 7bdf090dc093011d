"""Training interrupted in each way that a cluster has; afterwards the numbers of a run that never was."""

from __future__ import annotations

import os
import signal

import pytest

from tests.slurm.sandbox import wait_for
from tests.slurm.world import ONCE, World, assert_done

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(900)]


def assert_resumed(world: World, restarts: int = 1) -> None:
    """The last attempt went on from a checkpoint: it made some of the steps, not all."""
    made = world.restarts()
    assert max(made) == restarts, made
    assert 0 < made.count(restarts) < len(made), made


def test_usr2(world: World, undisturbed: World) -> None:
    """What Slurm sends before the time limit."""
    world.must_submit()
    with world.held(3):
        job = world.job("train").job_id
        assert world.cluster
        world.cluster.slurm("scancel", "-s", "USR2", job)
        wait_for(world.stop_is_asked, "the launcher hears it")
    world.finish()
    assert_resumed(world)
    assert_done(world, undisturbed)
    assert world.submissions() == ONCE


@pytest.mark.slow
@pytest.mark.parametrize("partition", ["main", "nograce"])
def test_preempted_from(world: World, undisturbed: World, partition: str) -> None:
    """Pushed aside by a job of a higher partition: told, and ended after the grace time, or KillWait without one.

    Without one it is what `scontrol requeue` does.
    """
    assert world.cluster
    world.change_profile('partition = "main"', f'partition = "{partition}"')
    world.must_submit()
    urgent = ["-p", "urgent", "-N4", "--exclusive", "-o/dev/null", "--wrap=sleep 3"]
    with world.held(3):
        world.cluster.slurm("sbatch", *urgent)
        wait_for(world.stop_is_asked, "the launcher hears it")
    world.job("train", "PENDING", timeout_s=120)
    world.finish()
    assert_resumed(world)
    assert_done(world, undisturbed)
    assert world.submissions() == ONCE


@pytest.mark.slow
def test_time_limits(world: World, undisturbed: World) -> None:
    """Four limits in a row, more than the three after which submitit gives up a job that it does not understand."""
    assert world.cluster
    world.must_submit()
    limits = 4
    for restart in range(limits):
        with world.held(3 + 5 * restart):
            job = world.job("train").job_id
            # a limit is a whole number of minutes: nearer by moving the end, which Slurm looks at every 30 s
            world.cluster.slurm("scontrol", "update", f"JobId={job}", "EndTime=now+50")
            wait_for(lambda restart=restart: world.stop_is_asked(restart), "USR2 is heard")
        world.job("train", "PENDING")
        world.cluster.slurm("scontrol", "update", f"JobId={job}", "TimeLimit=20")  # it had become the nearer one
        world.hurry()
    world.finish()
    assert_resumed(world, limits)
    assert sorted(set(world.restarts())) == list(range(limits + 1)), "each attempt made steps that stayed"
    assert_done(world, undisturbed)
    assert world.submissions() == ONCE


@pytest.mark.slow
@pytest.mark.parametrize("node", [0, 1])
def test_power_loss_of_node(world: World, undisturbed: World, node: int) -> None:
    """Nobody was told anything; Slurm notices after its time-out and starts the job on other nodes."""
    assert world.cluster
    world.must_submit()
    with world.held_with_checkpoint() as ranks:
        lost = world.cluster.slurm("scontrol", "show", "hostnames", world.job("train").nodes).split()[node]
        world.cluster.do("power-off", lost)
    assert len(ranks) == 2
    world.job("train", "PENDING", timeout_s=120)
    world.finish()
    assert_resumed(world)
    assert_done(world, undisturbed)
    assert world.submissions() == ONCE
    world.cluster.do("power-on", lost)


@pytest.mark.slow
def test_slurmd_is_killed_and_the_job_lives_on(world: World, undisturbed: World) -> None:
    """Slurm starts the job elsewhere while the old ranks may still write: two writers, one result."""
    assert world.cluster
    world.must_submit()
    with world.held_with_checkpoint() as ranks:
        lost = world.cluster.slurm("scontrol", "show", "hostnames", world.job("train").nodes).split()[0]
        world.cluster.do("kill-slurmd", lost)
        world.job("train", "PENDING", timeout_s=120)
        world.hurry()
        wait_for(lambda: set(world.ranks()) - set(ranks), "the next attempt's ranks")
    world.finish()
    assert_done(world, undisturbed)
    assert world.submissions() == ONCE
    world.cluster.do("restart-slurmd", lost)


def test_a_rank_is_killed(world: World, undisturbed: World) -> None:
    """The job fails on both nodes, says which rank died, takes its dependants along; the next submit goes on."""
    assert world.cluster
    world.must_submit()
    with world.held_with_checkpoint() as ranks:
        saved, before = world.newest_checkpoint(), world.metrics()
        os.kill(ranks[-1], signal.SIGKILL)
    world.finish()
    states = world.states()
    assert states["train/run"] == "failed", states
    assert world.numbers().results == {}
    shown = world.run("logs", str(world.root.root), "run", "--stage", "train").stdout
    assert "SIGKILL" in shown or "signal 9" in shown, shown[:2000]
    world.must_submit()
    world.finish()
    assert world.metrics()[:saved] == before[:saved], "these steps were not made again"
    assert_done(world, undisturbed)
    assert world.submissions() == {"train": 2, "evaluate": 2, "report": 2}


@pytest.mark.slow
def test_scancel(world: World, undisturbed: World) -> None:
    """Saved, and not started again by Slurm; the next submit goes on."""
    assert world.cluster
    world.must_submit()
    with world.held(3):
        world.cluster.slurm("scancel", world.job("train").job_id)
        wait_for(world.stop_is_asked, "the launcher hears it")
    world.finish()
    assert world.states()["train/run"] != "failed", "nothing failed: it was asked to stop"
    saved, before = world.newest_checkpoint(), world.metrics()
    assert saved >= 3
    world.must_submit()
    world.finish()
    assert world.metrics()[:saved] == before[:saved], "these steps were not made again"
    assert_done(world, undisturbed)
