"""`status`, `logs` and `cancel` of an experiment on a real cluster, while it runs, afterwards, and without Slurm."""

from __future__ import annotations

import json
import re

import pytest

from hpc_ewc.launch.ledger.job_history import Ledger
from tests.slurm.sandbox import wait_for
from tests.slurm.world import World

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(900)]


def test_seen_cancelled_and_gone_on_with(world: World, undisturbed: World) -> None:
    """While it trains, everything is told; a cancel saves; the next submit ends with the same numbers."""
    world.must_submit()
    job = world.job("train")
    with world.held_with_checkpoint():
        rows = world.status()
        train = next(row for name, row in rows.items() if name.startswith("train/"))
        assert (train["state"], train["nodes"], train["restarts"]) == ("running", job.nodes, 0)
        assert train["jobs"][0]["slurm"] == "RUNNING"
        assert 0 < train["progress"]["done"] < train["progress"]["total"]
        assert train["progress"]["tokens_per_s"] > 0
        evaluate = next(row for name, row in rows.items() if name.startswith("evaluate/"))
        assert (evaluate["state"], evaluate["reason"]) == ("waiting", "Dependency")
        shown = world.run("status", str(world.root.root))
        assert shown.returncode == 3
        assert re.search(
            rf"train .* running .*{re.escape(job.nodes)}.*/{train['progress']['total']:.0f} step", shown.stdout
        )
        assert "waiting for Dependency" in shown.stdout
        one = world.run("logs", str(world.root.root), train["run"], "--stage", "train", "--rank", "1")
        assert one.returncode == 0, one.stderr
        assert one.stdout.startswith(f"job {job.job_id}: RUNNING on {job.nodes}")
    cancelled = world.run("cancel", str(world.root.root), "--yes")
    assert cancelled.returncode == 0, cancelled.stderr
    assert "have not ended" not in cancelled.stderr, "it saved and left by itself"
    wait_for(lambda: not world.jobs(), "the jobs to leave")
    step = world.newest_checkpoint()
    assert step > 0
    after = world.run("status", str(world.root.root), "--json")
    assert after.returncode == 3, after.stdout
    states = {row["stage"]: (row["state"], row["note"]) for row in json.loads(after.stdout)["stages"]}
    assert states["train"] == ("stopped", "cancelled; resubmit to resume")
    assert states["evaluate"][0] == "stopped"
    world.must_submit()
    world.finish()
    assert set(world.states().values()) == {"done"}
    assert world.numbers() == undisturbed.numbers()
    assert world.metrics()[step]["step"] == step + 1, "it went on, and did not begin again"


def test_told_from_files_where_slurm_does_not_answer(world: World) -> None:
    """Another port than the controller's: what Slurm has is not known, and is not called missing."""
    assert world.cluster is not None
    world.must_submit()
    world.job("train")
    conf = world.folder / "slurm.conf"
    text = (world.cluster.state / "etc" / "slurm.conf").read_text()
    conf.write_text(re.sub(r"(?m)^(SlurmctldPort|AccountingStoragePort)=.*", r"\1=1", text))
    (world.folder / "cgroup.conf").touch()
    away = world.with_environment(SLURM_CONF=str(conf))
    with world.held(1):
        shown = away.run("status", str(world.root.root))
        assert shown.returncode == 3
        assert "Slurm did not answer; status is from files only" in shown.stdout
        assert re.search(r"(?m)^train +\S+ +running\b", shown.stdout), "it has only just begun"
        assert re.search(r"(?m)^evaluate .* waiting .*unknown", shown.stdout)
        refused = away.run("cancel", str(world.root.root), "--yes")
        assert refused.returncode == 2
        assert "nothing was cancelled" in refused.stderr
    assert world.run("cancel", str(world.root.root), "--yes").returncode == 0


def test_two_calls_for_many_jobs(world: World) -> None:
    """Whatever the number of jobs: squeue once, sacct once."""
    assert world.cluster is not None
    counting = world.folder / "bin"
    counting.mkdir()
    for name in ("squeue", "sacct", "scontrol", "sinfo"):
        real = world.cluster.ask("which", name).stdout.strip()
        (counting / name).write_text(f'#!/bin/sh\necho {name} >> {counting}/calls\nexec {real} "$@"\n')
        (counting / name).chmod(0o755)
    out = world.cluster.slurm("sbatch", "--parsable", "-H", "-a", "0-799", "--wrap", "true", "-o", "/dev/null")
    main = out.strip()
    try:
        ledger = Ledger(world.root)
        world.root.root.mkdir(parents=True, exist_ok=True)
        ledger.graph([{"stage": "evaluate", "run": "a", "depends": []}])
        listed = [{"name": str(i), "covers": []} for i in range(800)]
        ledger.slurm_intent("token", "evaluate", "a", listed, 0)
        ledger.slurm_submitted("token", main, "")
        seen = world.with_environment(PATH=f"{counting}:{world.environment['PATH']}")
        done = seen.run("status", str(world.root.root), "--json")
        (row,) = json.loads(done.stdout)["stages"]
        assert (row["state"], len(row["jobs"])) == ("waiting", 800)
        assert row["note"] == "800 waiting: JobHeldUser (held: scontrol release)"
        assert (counting / "calls").read_text().split() == ["squeue", "sacct"]
    finally:
        world.cluster.slurm("scancel", main)
