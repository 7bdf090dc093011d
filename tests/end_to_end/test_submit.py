"""The whole graph with the real workers, on `tests/nano.toml`: interrupted, gone on with, widened, partly deleted."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpc_ewc import records
from hpc_ewc.launch.ledger.job_history import Ledger
from hpc_ewc.rundir import RunDir
from tests.conftest import link_miniature

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class World:
    """A folder with nano.toml, as a user has it; each step of the tests goes on from the one before."""

    def __init__(self, folder: Path, repository: Path, miniature: Path) -> None:
        self.folder = folder
        self.sweep = folder / "nano.toml"
        shutil.copy(repository / "tests" / "nano.toml", self.sweep)
        self.root = RunDir(folder / "runs" / "nano")
        self.environment = os.environ | {"HPC_EWC_CACHE": str(folder / "cache"), "PYTHONPATH": str(repository)}
        link_miniature(folder, miniature)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "hpc_ewc", *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = self.command(*arguments)
        return subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)

    def submit(self) -> subprocess.CompletedProcess[str]:
        return self.run("submit", "nano.toml")

    def change_strengths(self, values: str) -> None:
        text = self.sweep.read_text()
        self.sweep.write_text(re.sub(r"ewc\.strength = .*", f"ewc.strength = {values}", text))

    def jobs(self) -> list[str]:
        """`stage/run` without keys, of every job so far."""
        return [re.sub(r"-?[0-9a-f]{12}$", "", job.node) for job in Ledger(self.root).read().jobs.values()]

    def states(self) -> dict[str, str]:
        told = json.loads(self.run("status", str(self.root.root), "--json").stdout)
        names = (re.sub(r"-?[0-9a-f]{12}$", "", f"{stage['stage']}/{stage['run']}") for stage in told["stages"])
        return dict(zip(names, (stage["state"] for stage in told["stages"]), strict=True))

    def records(self) -> dict[str, float]:
        """When each record was written."""
        found = self.root.root.glob("evaluate/*/[0-9]*/*.json")
        return {str(path.relative_to(self.root.root)): path.stat().st_mtime for path in found}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, repository: Path, miniature: Path) -> World:
    return World(tmp_path_factory.mktemp("world"), repository, miniature)


def test_1_ctrl_c_in_the_middle_leaves_nothing_behind(world: World) -> None:
    process = subprocess.Popen(
        world.command("submit", "nano.toml"),
        cwd=world.folder,
        env=world.environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    while not list(world.root.root.glob("train/*/progress/0.json")):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert Ledger(world.root).read().live() == []
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(world.folder).encode() in _bytes(path)]
    assert left == [], "no rank, no agent, no launcher outlives its submit"
    assert not list(world.root.root.glob("*/*/failed.json"))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_2_the_same_command_goes_on_to_the_table(world: World) -> None:
    before = world.jobs()
    assert "tokens/" in before
    assert "fisher/" in before
    done = world.submit()
    assert done.returncode == 0, done.stderr
    again = world.jobs()[len(before) :]
    assert not {"tokens/", "fisher/"} & set(again), "what was done is not done again"
    assert set(world.states().values()) == {"done"}
    for word in ("base", "1e6", "English"):
        assert word in done.stdout
    assert list((world.folder / "runs" / "nano" / "report").iterdir())
    for metrics in world.root.root.glob("train/*/metrics.jsonl"):
        assert {line["step"] for line in records.read_lines(metrics)} == set(range(1, 21))


def test_3_again_there_is_nothing_to_do(world: World) -> None:
    before = world.jobs()
    done = world.submit()
    assert done.returncode == 0
    assert "nothing to do" in done.stderr
    assert "English" in done.stdout, "the table is shown all the same"
    assert world.jobs() == before


def test_4_a_deleted_record_is_the_one_cell_that_runs_again(world: World) -> None:
    before, jobs = world.records(), world.jobs()
    (gone,) = world.root.root.glob("evaluate/strength=0-*/*/arc_easy.en.json")
    gone.unlink()
    done = world.submit()
    assert done.returncode == 0, done.stderr
    assert world.jobs()[len(jobs) :] == ["evaluate/strength=0", "report"]
    changed = {name for name, at in world.records().items() if before[name] != at}
    assert changed == {str(gone.relative_to(world.root.root))}


def test_5_a_lambda_that_diverges_costs_only_itself_and_another_joins(world: World) -> None:
    jobs = world.jobs()
    world.change_strengths("[0, 1e3, 1e6, 1e30]")  # 1e30: λF overflows
    done = world.submit()
    assert done.returncode == 1, done.stderr
    states = world.states()
    assert states.pop("train/strength=1e+30") == "failed"
    assert states.pop("evaluate/strength=1e+30") == "blocked"
    assert set(states.values()) == {"done"}
    assert world.jobs()[len(jobs) :].count("train/strength=1000") == 1
    assert not {"tokens/", "fisher/", "train/strength=0", "evaluate/base"} & set(world.jobs()[len(jobs) :])
    assert "train/strength=1e+30" in done.stderr
    shown = world.run("logs", "runs/nano", "strength=1e+30").stdout
    assert re.match(r"train/strength=1e\+30-\w{12} failed: \w+Error: ", shown), shown[:300]
    assert "Traceback" in shown


def test_6_more_of_the_corpus_is_another_tokenisation_and_the_same_fisher(world: World) -> None:
    world.change_strengths("[0, 1e6]")
    text = world.sweep.read_text()
    world.sweep.write_text(text.replace("fraction = 0.2", "fraction = 0.3"))
    out = world.run("submit", "nano.toml", "--dry-run").stdout
    assert "tokens 0 of 1 done, fisher 1 of 1 done, train 0 of 2 done" in out
