"""Training interrupted in each way that a cluster has; afterwards the numbers of a run that never was."""

from __future__ import annotations

import pytest

from tests.slurm.sandbox import wait_for
from tests.slurm.world import World

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
ONCE = {"train": 1, "evaluate": 2, "report": 1}
"""Submissions of an experiment whose tokens and Fisher are there."""


def assert_done(world: World, undisturbed: World) -> None:
    """Everything is there, with the numbers of an undisturbed run; nothing lost, nothing counted twice."""
    assert set(world.states().values()) == {"done"}, world.status()
    found, wanted = world.numbers(), undisturbed.numbers()
    assert found.losses == wanted.losses
    assert found.exports == wanted.exports
    assert found.results == wanted.results
    assert world.leftovers() == []
    again = world.submit()
    assert again.returncode == 0
    assert "nothing to do" in again.stderr


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


def test_scontrol_requeue(world: World, undisturbed: World) -> None:
    world.must_submit()
    with world.held(3):
        assert world.cluster
        world.cluster.slurm("scontrol", "requeue", world.job("train").job_id)
        wait_for(world.stop_is_asked, "the launcher hears it")
    world.finish()
    assert_resumed(world)
    assert_done(world, undisturbed)
    assert world.submissions() == ONCE
