"""Checkpoints given on a command line, scored as one array: ended half-way, gone on with, no cell twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_ewc.report import load_records
from tests.end_to_end.evaluation import MINIATURE, noised, stamps
from tests.slurm.sandbox import Sandbox, wait_for
from tests.slurm.world import World, make_world

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(1800)]
QUICK = (2, "arc_easy.en,winogrande.en,ppl_heldout.lt", 3)
WHOLE = (6, "en,lt,fluency", 18)
"""Checkpoints beside the base, what they are asked, cells of each."""


@pytest.mark.parametrize("size", [QUICK, pytest.param(WHOLE, marks=pytest.mark.slow)], ids=["quick", "fourteen"])
def test_checkpoints_are_scored_as_one_array_and_no_cell_twice(
    cluster: Sandbox, miniature: Path, tmp_path: Path, size: tuple[int, str, int]
) -> None:
    checkpoints, suites, cells = size
    world = make_world(tmp_path / f"given{checkpoints}", cluster, miniature)
    for i in range(checkpoints):
        noised(miniature / "model", world.folder / "trained" / f"run-{i}", 0.1 * (i + 1))
    profile = world.profile.read_text()
    world.profile.write_text(profile.replace("[resources.evaluate]", "[resources.evaluate]\nelements = 2"))

    def evaluate() -> int:
        asked = ["--suites", suites, "--limit", "4", "--dtype", "float32", "--name", world.name]
        given = ["trained/*/exports/*", *MINIATURE, "--profile", world.profile.name]
        done = world.run("evaluate", *given, *asked)
        assert done.returncode in (0, 3), done.stdout + done.stderr
        return done.returncode

    evaluate()
    runs = ["base", *(f"run-{i}" for i in range(checkpoints))]
    assert {job.stage for job in world.jobs()} == {"evaluate", "report"}
    elements = [job.job_id for job in world.jobs() if job.stage == "evaluate"]
    assert len(elements) == 2 * len(runs)
    assert len({job_id.partition("_")[0] for job_id in elements}) == 1  # one array, whatever run each is of
    wait_for(lambda: len(_stamps(world, runs)) >= max(2, cells // 2), "some records", 600, every_s=0.1)
    cluster.slurm("scancel", *{job.job_id.partition("_")[0] for job in world.jobs()})
    world.finish(600)
    before = _stamps(world, runs)
    assert 0 < len(before) < cells * len(runs)

    evaluate()
    world.finish(1200)
    after = _stamps(world, runs)
    assert len(after) == cells * len(runs)
    assert {name: after[name] for name in before} == before
    assert set(world.states().values()) == {"done"}, world.status()
    found = load_records(world.root.root)
    assert {record["run"] for record in found} == set(runs)
    assert (world.root.report / "table.csv").is_file()
    assert evaluate() == 0 and world.jobs() == []


def _stamps(world: World, runs: list[str]) -> dict[str, tuple[int, str]]:
    """Of every record there is, when it was written and by which job."""
    return {f"{run}/{name}": stamp for run in runs for name, stamp in stamps(world.root.evaluate(run)).items()}
