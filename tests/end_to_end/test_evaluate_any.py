"""Checkpoints given on a command line: asked as an array, killed and gone on with, reported against their base."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from hpc_ewc import records
from hpc_ewc.report import load_records
from hpc_ewc.rundir import RunDir
from tests.conftest import link_miniature
from tests.end_to_end.evaluation import FOUR, MINIATURE, noised, primary, stamps

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
ASKED = ("--suites", "arc_easy.en,ppl_heldout.lt", "--shots", "arc_easy=1", "--limit", "6", "--dtype", "float32")
QUICK = ((0.4,), ",".join(FOUR), 4)
WHOLE = ((0.0, 0.05, 0.1, 0.2, 0.4, 0.8), "en,lt,fluency", 18)
"""Noise of each checkpoint beside the base, what they are asked, cells of each."""


class World:
    """A folder with checkpoints, as a user has it."""

    def __init__(self, folder: Path, repository: Path, miniature: Path) -> None:
        self.folder, self.root = folder, RunDir(folder / "runs" / "checkpoints")
        self.base = miniature / "model"
        self.environment = os.environ | {"PYTHONPATH": str(repository), "HPC_EWC_CACHE": str(folder / "cache")}
        link_miniature(folder, miniature)

    def start(self, given: Sequence[str], *asked: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "hpc_ewc", "evaluate", *given, *MINIATURE, *asked]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=pipe, stderr=pipe, text=True)

    def run(self, given: Sequence[str], *asked: str) -> tuple[int, str, str]:
        process = self.start(given, *asked)
        out, err = process.communicate()
        return process.returncode, out, err

    def stamps(self) -> dict[str, tuple[int, str]]:
        """Return when each record was written, and by which job."""
        runs = self.root.root.glob("evaluate/*")
        return {f"{run.name}/{name}": s for run in runs for name, s in stamps(self.root.evaluate(run.name)).items()}

    def kill(self) -> None:
        """All that runs in this folder, as when the power goes."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if str(self.folder).encode() in path.read_bytes():
                    os.kill(int(path.parent.name), signal.SIGKILL)


@pytest.mark.parametrize(
    "size", [QUICK, pytest.param(WHOLE, marks=pytest.mark.slow)], ids=["two checkpoints", "seven checkpoints"]
)
def test_an_array_that_was_killed_half_way_goes_on_and_computes_no_cell_twice(
    miniature: Path, repository: Path, tmp_path: Path, size: tuple[Sequence[float], str, int]
) -> None:
    sigmas, suites, cells = size
    world = World(tmp_path, repository, miniature)
    for sigma in sigmas:
        noised(world.base, tmp_path / "train" / f"sigma={sigma}", sigma)
    profile = tmp_path / "here.toml"
    profile.write_text(f"[local]\ncpus = {min(2, len(sigmas))}\n")
    asked = ("--suites", suites, "--shots", "gsm8k=2", "--limit", "4", "--batch-size", "8", "--dtype", "float32")
    asked += ("--profile", str(profile), "--runs", str(world.root.root.parent))
    submit = world.start(["train/*/exports/*"], *asked)
    while len(world.stamps()) < cells * (1 + len(sigmas)) // 2 - 1:
        assert submit.poll() is None, submit.communicate()
        time.sleep(0.02)
    submit.kill()
    world.kill()
    submit.communicate()
    before = world.stamps()
    assert 0 < len(before) < cells * (1 + len(sigmas))

    profile.write_text("[local]\ncpus = 2\n[resources.evaluate]\nelements = 2\n")
    status, out, err = world.run(["train/*/exports/*"], *asked)
    assert (status, "points against the base" in out) == (0, True), out + err
    after = world.stamps()
    assert len(after) == cells * (1 + len(sigmas))
    assert {name: after[name] for name in before} == before
    assert all(run.done.is_file() for run in map(world.root.evaluate, ["base", *(f"sigma={s}" for s in sigmas)]))
    bits = [primary(world.root.evaluate(f"sigma={sigma}"), 10, "ppl_heldout.en")["value"] for sigma in sigmas]
    same = primary(world.root.evaluate("base"), 0, "ppl_heldout.en")["value"]
    assert bits == sorted(bits) and bits[-1] > same  # more noise, worse English
    assert sigmas[0] > 0 or bits[0] == pytest.approx(same, rel=1e-9)  # no noise is the base


@pytest.mark.slow  # seven processes that import everything
def test_a_glob_of_checkpoints_is_asked_and_compared_with_its_base(
    miniature: Path, repository: Path, tmp_path: Path
) -> None:
    world = World(tmp_path, repository, miniature)
    noised(world.base, tmp_path / "train" / "r-1", 0.4)
    foreign = tmp_path / "foreign"
    shutil.copytree(noised(world.base, tmp_path / "scratch", 0.2) / "exports" / "00000010", foreign)
    (foreign / "hpc_ewc.json").unlink()  # somebody else's: it says nothing of itself
    given, root = ["train/*/exports/*", "foreign"], world.root

    status, out, err = world.run(given, *ASKED)
    assert (status, "points against the base" in out) == (0, True), out + err
    found = {record["run"]: record for record in load_records(root.root) if record["task"] == "arc_easy"}
    own = next(run for run in found if run.startswith("foreign-"))
    assert found.keys() == {"base", "r-1", own}
    assert found["r-1"]["coordinates"] == {"ewc.strength": 0.4}
    assert (found["r-1"]["step"], found["r-1"]["fraction"], found[own]["step"]) == (10, 1.0, 0)
    assert {record["base_hash"] for record in found.values()} == {records.model_hash(world.base)}

    before = world.stamps()
    status, _, err = world.run(given, *ASKED)
    assert (status, "nothing to do" in err) == (0, True)
    root.evaluate(own).cell(0, "arc_easy.en").unlink()
    assert world.run(given, *ASKED)[0] == 0
    after = world.stamps()
    assert {name for name in after if after[name] != before[name]} == {f"{own}/arc_easy.en.json"}
