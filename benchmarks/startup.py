"""Measure the time between a job's start on Slurm and its first training step, part by part.

    sudo .venv/bin/python benchmarks/startup.py [--out benchmarks/results/startup.json] [--repeats 3]

Starts a sandbox of its own (root, Debian's Slurm packages: docs/sandbox.md), submits the experiment of the fault tests
with tokens and Fisher already made, and checks every ten milliseconds for the files that each part leaves. Two nodes
with one rank each run on this machine's cores, so imports on one node share them with those on the other. The time of
`import torch` in the same run shows how busy the machine was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.slurm.world import World

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results" / "startup.json"
PARTS = {
    "sbatch": "submit called → the job's script runs (submit itself, the queue, slurmd)",
    "launcher": "script runs → our launcher decides to work (srun, Python, submitit, reading the artefact)",
    "rendezvous": "launcher → node 0 has published a port",
    "torchrun": "port → the ranks' processes exist (import of torch in torchrun, meeting of the nodes)",
    "first step": "ranks exist → first line of metrics.jsonl (imports, model into shards, one step)",
}


def watch(world: World, limit_s: float = 300.0) -> dict[str, float]:
    """Submit once and return the seconds of each part."""
    root = world.root

    def first(pattern: str) -> Callable[[], bool]:
        return lambda: any(True for _ in root.root.glob(pattern))

    signs = {
        "sbatch": first("jobs/[0-9]*/[0-9]*_submitted.pkl"),
        "launcher": first("jobs/*/attempts.*.json"),
        "rendezvous": first("jobs/*/port.0"),
        "torchrun": first("jobs/*/ranks/restart_0/node_*/**/stdout.log"),
        "first step": first("train/*/metrics.jsonl"),
    }
    found: dict[str, float] = {}
    last = started = time.perf_counter()
    submit = subprocess.Popen(
        world.command(*world.submit_arguments),
        cwd=world.folder,
        env=world.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for name, is_there in signs.items():
        while not is_there():
            assert time.perf_counter() - started < limit_s, f"{name}: not within {limit_s:.0f} s"
            time.sleep(0.01)
        now = time.perf_counter()
        found[name], last = now - last, now
    found["all"] = last - started
    submit.wait(limit_s)
    world.run("cancel", str(world.root.root), "--yes")
    return found


def import_torch_s() -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    sys.path[:0] = [str(REPOSITORY), str(Path(__file__).parent)]
    from miniature_files import make_miniature

    from tests.slurm.sandbox import Sandbox
    from tests.slurm.world import make_world

    miniature = make_miniature()
    measured: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="hpc-ewc-bench-") as name:
        place = Path(name)
        sandbox = Sandbox(REPOSITORY / "slurm" / "sandbox", place / "s")
        tried = sandbox.run("up")
        if tried.returncode:
            print(f"not measured: {tried.stderr.strip()}")
            return
        try:
            prepared = make_world(place / "prepared", None, miniature)  # tokens and Fisher
            assert prepared.submit().returncode == 0
            for i in range(arguments.repeats):
                measured.append(watch(make_world(place / f"run{i}", sandbox, miniature, given=prepared.root.root)))
        finally:
            sandbox.do("down")
    torch_s = [import_torch_s() for _ in range(3)]
    from environment import environment

    facts = {
        "what": "median seconds of each part, from `hpc-ewc submit` to the first line of metrics.jsonl; two nodes",
        "parts": PARTS,
        "median_s": {part: round(statistics.median(run[part] for run in measured), 2) for part in measured[0]},
        "runs_s": [{part: round(seconds, 2) for part, seconds in run.items()} for run in measured],
        "import_torch_s": round(statistics.median(torch_s), 2),
        "environment": environment("cpu"),
    }
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
