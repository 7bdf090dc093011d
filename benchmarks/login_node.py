"""Measure the login node's commands: help, dry run, submit of a large array, status of ten thousand jobs.

    python benchmarks/login_node.py [--out benchmarks/results/login_node.json]

Each figure is the wall time of whole processes, interpreter start included; `python -c pass` and
`python -c 'import torch'` in the same run show how fast this machine was at the time. No Slurm is needed: sbatch,
squeue and sacct are scripts on PATH that print output in the form of Slurm 22.05 (whose own time is not in the figures)
and record each call, so that the number of calls is a figure too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results" / "login_node.json"
BARS = {
    "help": {"seconds": 0.5},
    "dry run of 1,000 runs": {"seconds": 2.0},
    "status of 10,000 jobs": {"calls": 2},
    "submit of a 1,000-cell array": {"sbatch_calls_an_array": 1},
}
RUNS, ELEMENTS = 1000, 9
"""Trainings, and elements of each evaluation: 10,000 jobs."""


class Bench:
    """A folder with a fake Slurm on PATH and the package of this checkout."""

    def __init__(self, folder: Path, repeats: int) -> None:
        self.folder, self.repeats = folder, repeats
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.environment = os.environ | {
            "PYTHONPATH": str(REPOSITORY),
            "HPC_EWC_CACHE": str(folder / "cache"),
            "HF_HOME": str(folder / "hf"),
            "PATH": f"{self.bin}:{os.environ['PATH']}",
        }
        for name in ("squeue", "sacct"):
            self.fake(name, f"cat {self.bin}/{name}.out 2>/dev/null || true")
        self.fake("sbatch", f'n=$(grep -c "^sbatch" {self.bin}/calls); echo $((1000000 + n))')

    def fake(self, name: str, script: str) -> None:
        path = self.bin / name
        path.write_text(f'#!/bin/sh\necho "{name}" >> {self.bin}/calls\n{script}\n')
        path.chmod(0o755)

    def calls(self) -> list[str]:
        path = self.bin / "calls"
        return path.read_text().split() if path.exists() else []

    def forget_calls(self) -> None:
        (self.bin / "calls").unlink(missing_ok=True)

    def seconds(
        self, command: list[str], repeats: int | None = None, before: Any = None, statuses: tuple[int, ...] = (0,)
    ) -> dict[str, float | int]:
        """Return the median and smallest wall time of a command; `before` is called before each repeat."""
        measured = []
        for _ in range(repeats or self.repeats):
            if before is not None:
                before()
            started = time.perf_counter()
            done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
            measured.append(time.perf_counter() - started)
            assert done.returncode in statuses, f"{command}: {done.returncode}: {done.stderr}"
        return {
            "median_s": round(statistics.median(measured), 3),
            "min_s": round(min(measured), 3),
            "repeats": len(measured),
        }


def make_done(bench: Bench, sweep: Path) -> None:
    """Give every stage of an experiment a `done.json`, as if it had run."""
    os.environ |= {name: bench.environment[name] for name in ("HPC_EWC_CACHE", "HF_HOME")}
    from hpc_ewc.artefacts.completeness import write_stage_files
    from hpc_ewc.launch.plan.plan import make_plan, record_plan
    from hpc_ewc.launch.plan.request import load_request, run_folder
    from hpc_ewc.launch.profile.reading import load_profile
    from hpc_ewc.launch.show.display import Display
    from hpc_ewc.stage import Stage

    profile = load_profile(None)
    root = run_folder(sweep.stem, str(sweep), profile, bench.folder / "runs")
    plan = make_plan(load_request(sweep), profile, root, bench.folder / "results", Display())
    record_plan(plan)
    for node in plan.graph.nodes.values():
        if node.stage != "report":
            write_stage_files(node)
            Stage(node.folder.path).finish([])


# ---------------------------------------------------------------------------------------------- Slurm


def submit_array(bench: Bench) -> dict[str, Any]:
    """Measure the submit of an evaluation of 500 checkpoints × 2 cells, an element each, and count the sbatch calls."""
    import shutil

    from tests.unit.launch_world import write_experiment

    fractions = [round((i + 1) / 500, 3) for i in range(500)]
    more = f"\n[train]\nexport_at = {fractions}\nsteps = 1000\n[resources.train]\ntime_min = 60\n"
    sweep = write_experiment(bench.folder / "array", [0.0], name="array", elements=2, more=more)
    sweep.write_text(sweep.read_text().replace("[evaluate]\n", '[evaluate]\ncheckpoints = "all"\nbase = false\n'))
    profile = bench.folder / "cluster.toml"
    profile.write_text('executor = "slurm"\n[slurm]\npartition = "main"\nmax_array_size = 1001\n')

    def fresh() -> None:
        shutil.rmtree(bench.folder / "runs" / "array", ignore_errors=True)
        bench.forget_calls()

    command = [*OURS, "submit", str(sweep), "--profile", str(profile), "--yes"]
    found: dict[str, Any] = bench.seconds(command, 3, before=fresh)
    calls = bench.calls()
    script = next(bench.folder.glob("runs/array/jobs/*/submission.sh")).parent.parent
    arrays = [path for path in script.glob("*/submission.sh") if "--array=0-999" in path.read_text()]
    assert len(arrays) == 1, "one array of a thousand elements"
    return found | {
        "sbatch_calls": calls.count("sbatch"),
        "arrays": len(arrays),
        "other_calls": len(calls) - calls.count("sbatch"),
    }


def status_of_many(bench: Bench) -> dict[str, Any]:
    """Measure `status` on a run folder with ten thousand jobs in its ledger, and in the output of squeue and sacct."""
    from hpc_ewc import records
    from hpc_ewc.launch.ledger.job_history import Ledger
    from hpc_ewc.rundir import RunDir

    root = RunDir(bench.folder / "runs" / "many")
    names = [f"strength={i},seed=0-{i:012x}" for i in range(RUNS)]
    nodes = [{"stage": "train", "run": name, "depends": []} for name in names]
    nodes += [{"stage": "evaluate", "run": name, "depends": [f"train/{name}"]} for name in names]
    ledger = Ledger(root)
    ledger.graph(nodes)
    lines, squeue, sacct = [], [], []
    for i, name in enumerate(names):
        job, array = 10 * i + 1, 10 * i + 2
        lines += events("train", name, job, ["0"]) + events("evaluate", name, array, list(map(str, range(ELEMENTS))))
        facts = {"schema": 1, "key": "k", "inputs": {}, "coordinates": {}, "expected": [], "run": name}
        for stage in ("train", "evaluate"):
            records.write_json(root.stage(stage, name).stage_json, facts | {"stage": stage})
        if i % 4:  # trained, and in the accounting
            done = {"schema": 1, "key": "k", "finished_at": 1.0, "outputs": {}, "summary": {}}
            records.write_json(root.train(name).done, done)
            sacct.append(accounted(str(job), "COMPLETED", f"many/train/{name}"))
        else:
            squeue.append(queued(str(job), "RUNNING", "None", f"node{i}", f"many/train/{name}"))
            progress = {"schema": 1, "done": i, "total": 2 * RUNS, "unit": "step", "updated": time.time(), "loss": 2.0}
            records.write_json(root.train(name).progress(), progress | {"job_id": str(job), "restart": 0, "node": "n"})
        reason = "Priority" if i % 4 else "Dependency"
        squeue += [queued(f"{array}_{n}", "PENDING", reason, "", f"many/evaluate/{name}") for n in range(ELEMENTS)]
        sacct.append(accounted(f"{array}_[0-{ELEMENTS - 1}]", "PENDING", f"many/evaluate/{name}"))
    with root.ledger.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    (bench.bin / "squeue.out").write_text("".join(squeue))
    (bench.bin / "sacct.out").write_text("".join(sacct))
    found: dict[str, Any] = bench.seconds(
        [*OURS, "status", str(root.root), "--json"], 3, before=bench.forget_calls, statuses=(3,)
    )
    calls = bench.calls()
    return found | {"jobs": len(Ledger(root).read().jobs), "calls": len(calls), "which": sorted(set(calls))}


def events(stage: str, run: str, job_id: int, elements: list[str]) -> list[dict[str, Any]]:
    token = f"20261121-083000-{job_id:05d}"
    listed = [{"name": name, "covers": []} for name in elements]
    intent = {"event": "intent", "token": token, "stage": stage, "run": run, "elements": listed, "link": 0, "at": 1.0}
    submitted = {"event": "submitted", "token": token, "job_id": str(job_id), "dependencies": "", "at": 1.0}
    return [line | {"scheduler": "slurm"} for line in (intent, submitted)]


def queued(job_id: str, state: str, reason: str, nodes: str, name: str) -> str:
    """Return a line of squeue as Slurm prints it, padding included."""
    from hpc_ewc.launch.slurm.output import QUEUE_FIELDS, SEPARATOR

    tres = "cpu=56,mem=400G,node=1,billing=56,gres/gpu=8"
    values = [job_id, state, reason, nodes, "1", "1:02:03", "0", tres, "standard-g", name, "20261121-083000-00001"]
    padded = [f"{value:<{width}}{SEPARATOR}" for value, width in zip(values, QUEUE_FIELDS.values(), strict=True)]
    return "".join(padded) + "\n"


def accounted(job_id: str, state: str, name: str) -> str:
    """Return a line of sacct."""
    from hpc_ewc.launch.slurm.output import ACCOUNT_FIELDS, SEPARATOR

    tres = "billing=56,cpu=56,gres/gpu=8,mem=400G,node=1"
    values = [job_id, state, "None", "node1", "3723", "0:0", tres, "standard-g", name, ""]
    assert len(values) == len(ACCOUNT_FIELDS)
    return SEPARATOR.join(values) + "\n"


OURS = [sys.executable, "-m", "hpc_ewc"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    sys.path[:0] = [str(REPOSITORY), str(Path(__file__).parent)]
    from tests.unit.launch_world import write_experiment

    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), arguments.repeats)
        sweep = write_experiment(bench.folder, [float(i) for i in range(RUNS)])
        few = max(3, arguments.repeats // 2)
        dry_run = [*OURS, "submit", str(sweep), "--dry-run"]
        figures: dict[str, Any] = {
            "python -c pass": bench.seconds([sys.executable, "-c", "pass"]),
            "import torch": bench.seconds([sys.executable, "-c", "import torch"], few),
            "help": bench.seconds([*OURS, "--help"]),
            "dry run of 1,000 runs": bench.seconds(dry_run, few),
        }
        make_done(bench, sweep)
        figures["dry run of 1,000 runs, all done"] = bench.seconds(dry_run, few)
        figures["submit of a 1,000-cell array"] = submit_array(bench)
        figures["status of 10,000 jobs"] = status_of_many(bench)

    from environment import environment

    facts = {
        "what": "wall time of whole processes; sbatch, squeue and sacct are scripts that print recorded output",
        "bars": BARS,
        "figures": figures,
        "environment": environment("cpu") | {package: version(package) for package in ("tyro", "rich", "submitit")},
    }
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
