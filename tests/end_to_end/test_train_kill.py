"""A training under real torchrun, killed in every way: it ends with the bits of one that nothing happened to."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hpc_ewc import records
from hpc_ewc.stage import Stage
from tests.distributed.ranks import run_ranks
from tests.distributed.training_folder import (
    build_fisher,
    build_model,
    build_stage,
    build_tokens,
    read_metrics,
    run_training,
)

COMPARED = ("step", "tokens", "loss", "penalty", "distance", "largest_step", "grad_norm", "learning_rate")
RANKS = 2
STEPS = 40


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    base = tmp_path_factory.mktemp("kill")
    model = build_model(base / "model")
    tokens = build_tokens(base / "tokens", base / "model")
    return {
        "model": base / "model",
        "tokens": tokens,
        "fisher": build_fisher(base / "fisher", model),
        "ewc": {"strength": 100.0},
        "export_at": (0.5, 1.0),
        "checkpoint_every_s": 0.1,
    }


def undisturbed(rank: int, world_size: int, folder: Path) -> None:
    run_training(folder)


@contextmanager
def torchrun(
    folder: Path, restart: int = 0, worker: tuple[str, ...] = ("-m", "hpc_ewc.worker", "train")
) -> Iterator[subprocess.Popen[str]]:
    """The worker as anyone would start it; what is left of it at the end is killed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "HPC_EWC_JOB_ID": "77",
        "SLURM_RESTART_COUNT": str(restart),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    log = (folder / f"log.{restart}").open("w+")
    process = subprocess.Popen(
        [*command, *worker, str(folder)],
        stdout=log,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    ranks: set[int] = set()
    try:
        process.ranks = ranks  # type: ignore[attr-defined]
        yield process
    finally:
        for pid in children(process.pid) | {process.pid} | ranks:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait()
        log.close()


def children(pid: int) -> set[int]:
    """The ranks of a torchrun, by pid."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.add(int(stat.parent.name))
    return found


def last_step(folder: Path) -> int:
    """The step of the last line of metrics.jsonl, as it stands."""
    lines = read_metrics(folder)
    return lines[-1]["step"] if lines else 0


def last_saved(folder: Path) -> int:
    """The step of the newest checkpoint that is whole; 0 where there is none."""
    return max((int(done.parent.name) for done in (folder / "checkpoints").glob("[0-9]*/done.json")), default=0)


def wait_for(condition: Any, process: subprocess.Popen[str] | None = None, timeout_s: float = 120) -> bool:
    """Until it holds: True; until the process ended: False."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if condition():
            return True
        if process is not None and process.poll() is not None:
            return False
        time.sleep(0.02)
    raise AssertionError(f"nothing happened in {timeout_s} s")


def gone(pids: set[int]) -> bool:
    """None of the processes runs any more (a zombie does not)."""
    for pid in pids:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX":
                return False
        except OSError:
            continue
    return True


def assert_same(whole: Path, killed: Path) -> None:
    a, b = ({line["step"]: line for line in read_metrics(run)} for run in (whole, killed))  # the last of each step
    assert [{k: line[k] for k in COMPARED} for line in b.values()] == [
        {k: line[k] for k in COMPARED} for line in a.values()
    ]
    exports = sorted(path.name for path in (whole / "exports").iterdir())
    assert sorted(path.name for path in (killed / "exports").iterdir()) == exports
    for export in exports:
        hashes = [records.read_json(run / "exports" / export / "hpc_ewc.json")["model_hash"] for run in (whole, killed)]
        assert hashes[0] == hashes[1]


@pytest.mark.slow
def test_a_dead_rank_a_dead_torchrun_and_ctrl_c_cost_no_bit(inputs: dict[str, Any], tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    build_stage(whole, **inputs | {"checkpoint_every_s": 600.0}, steps=STEPS)
    build_stage(run, **inputs, steps=STEPS)
    run_ranks(RANKS, undisturbed, whole)

    # one rank dies: the other leaves at once, and failed.json says that a rank is gone
    with torchrun(run, 0) as process:
        assert wait_for(lambda: 0 < last_saved(run) < STEPS, process), "a checkpoint is due every tenth of a second"
        ranks = children(process.pid)
        assert len(ranks) == RANKS
        os.kill(max(ranks), signal.SIGKILL)
        assert process.wait(timeout=90) != 0
        assert gone(ranks)
    assert "another rank of this job ended" in records.read_json(run / "failed.json")["error"]

    # torchrun dies, as under the out-of-memory killer: its ranks see that the parent is gone, save and leave
    saved = last_saved(run)
    with torchrun(run, 1) as process:
        start = last_step(run)
        assert wait_for(lambda: last_step(run) >= start + 2, process)
        assert f"resuming after step {saved} of {STEPS}" in (run / "log.1").read_text()
        ranks = children(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert wait_for(lambda: gone(ranks))
    saved = last_saved(run)

    # Ctrl-C in the terminal: everything in the foreground gets INT, the ranks save, torchrun ends
    with torchrun(run, 2) as process:
        assert wait_for(lambda: last_step(run) >= saved + 2, process)
        assert f"resuming after step {saved} of {STEPS}" in (run / "log.2").read_text()
        for pid in children(process.pid) | {process.pid}:
            os.kill(pid, signal.SIGINT)
        process.wait(timeout=90)
    assert "stopped after step" in (run / "log.2").read_text()
    assert not Stage(run).is_done()
    stopped_at = last_step(run)
    assert (run / "checkpoints" / f"{stopped_at:08}" / "done.json").exists()

    with torchrun(run, 3) as process:
        assert process.wait(timeout=120) == 0
    assert Stage(run).is_done()
    assert not (run / "failed.json").exists()
    assert f"resuming after step {stopped_at} of {STEPS}" in (run / "log.3").read_text()
    assert_same(whole, run)

    # and once more, by hand and with nothing to do: it does not even import torch
    again = [sys.executable, "-X", "importtime", "-m", "hpc_ewc.worker", "train", str(run)]
    result = subprocess.run(again, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0
    assert " torch\n" not in result.stderr


BROKEN = """
import os, sys, time
from hpc_ewc.train import run
make_step = run.Run._one_step
def step(self, batch, waited_s):
    if batch.step == 2:
        self.watchdog.timeout_s = 3.0  # from here on: a busy machine may take longer to start
        if os.environ["RANK"] == "1":
            {what}
    return make_step(self, batch, waited_s)
run.Run._one_step = step
from hpc_ewc.worker import train
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("what", "rank", "said"),
    [
        ('raise ValueError("the own error of rank 1")', 1, "ValueError: the own error of rank 1"),
        pytest.param(
            *("time.sleep(1000)", None, r"no progress for .* s \(train.watchdog_s = 3\) while (in|saving) step"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["raises", "hangs"],
)
def test_a_rank_that_fails_or_hangs_ends_the_others_with_its_own_error_first(
    inputs: dict[str, Any], tmp_path: Path, what: str, rank: int | None, said: str
) -> None:
    run = tmp_path / "run"
    build_stage(run, **inputs)
    program = tmp_path / "broken.py"
    program.write_text(BROKEN.replace("{what}", what))
    with torchrun(run, worker=(str(program),)) as process:
        assert wait_for(lambda: len(children(process.pid)) == RANKS, process)
        ranks = children(process.pid)
        assert process.wait(timeout=200) != 0
        assert gone(ranks)
    assert last_step(run) == 2
    failed = records.read_json(run / "failed.json")
    assert re.search(said, failed["error"])
    assert rank is None or failed["rank"] == rank
    log = (run / "log.0").read_text()
    assert ("time.sleep" in what) == ("WATCHDOG: no progress" in log)
    assert "broken.py" in (log if "sleep" in what else failed["traceback"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [0])
def test_twenty_kills_at_random_moments_cost_no_bit(inputs: dict[str, Any], tmp_path: Path, seed: int) -> None:
    """While it starts, reads, steps, saves or exports; a rank, all ranks, torchrun, or all at once as by power loss."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    build_stage(whole, **inputs | {"checkpoint_every_s": 600.0}, steps=600)
    build_stage(run, **inputs, steps=600)
    run_ranks(RANKS, undisturbed, whole, timeout_s=700)
    dice = random.Random(seed)
    kills = 0
    attempt = 0
    while kills < 20:
        with torchrun(run, attempt) as process:
            attempt += 1
            start = last_step(run)
            early = dice.random() < 0.2
            if early:
                time.sleep(dice.uniform(1.0, 8.0))
            elif not wait_for(lambda at=start: last_step(run) > at + 1 or last_step(run) < at, process):
                break
            else:
                time.sleep(dice.uniform(0.0, 0.8))
            ranks = sorted(children(process.pid))
            if process.poll() is not None:
                break
            victims = dice.choice([ranks[:1], ranks[-1:], ranks, [process.pid], [process.pid, *ranks]]) or [process.pid]
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            kills += 1
            process.ranks |= set(ranks)  # type: ignore[attr-defined]
            if process.pid not in victims:
                process.wait(timeout=60)
            elif victims == [process.pid]:
                time.sleep(dice.uniform(0.0, 1.0))  # its orphans may be saving when the next attempt starts, or killed
    assert kills == 20
    with torchrun(run, attempt) as process:
        assert process.wait(timeout=900) == 0
    assert Stage(run).is_done()
    assert_same(whole, run)
