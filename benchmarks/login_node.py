"""How fast the login node's commands answer: `--help`, a dry run of 1,000 runs, a submit with nothing to do, status.

    python benchmarks/login_node.py [--out benchmarks/login_node.json]

Each figure is the median wall time of whole processes, interpreter start included; `python -c pass` and
`python -c 'import torch'` in the same run say what this machine, as busy as it was, needs for either.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
BARS_S = {
    "help": 0.5,
    "dry run of 1,000 runs": 2.0,
    "dry run of 1,000 runs, all done": None,
    "status of 1,000 runs": None,
}


def seconds(command: list[str], folder: Path, repeats: int) -> dict[str, float | int]:
    """Median and smallest wall time of a command that must succeed."""
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "HPC_EWC_CACHE": str(folder / "cache"),
        "HF_HOME": str(folder),
    }
    measured = []
    for _ in range(repeats):
        started = time.perf_counter()
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
        measured.append(time.perf_counter() - started)
    return {"median_s": round(statistics.median(measured), 3), "min_s": round(min(measured), 3), "repeats": repeats}


def make_done(folder: Path) -> None:
    """Give every stage of the experiment a `done.json`, as if it had run."""
    os.environ["HPC_EWC_CACHE"] = str(folder / "cache")
    os.environ["HF_HOME"] = str(folder)
    from hpc_ewc.launch.artefacts import make_ready
    from hpc_ewc.launch.profile import load_profile
    from hpc_ewc.launch.submit import make_plan, read_sweep, run_folder, write_down
    from hpc_ewc.launch.view import Display
    from hpc_ewc.stage import Stage

    sweep = folder / "small.toml"
    profile = load_profile(None)
    root = run_folder(sweep.stem, str(sweep), profile, folder / "runs")
    plan = make_plan(read_sweep(sweep), profile, root, folder / "results", Display())
    write_down(plan)
    for node in plan.graph.nodes.values():
        if node.stage != "report":
            make_ready(node)
            Stage(node.folder.path).finish([])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    sys.path.insert(0, str(REPOSITORY))
    from tests.unit.launch_world import write_experiment

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sweep = write_experiment(folder, [float(i) for i in range(1000)])
        ours = [sys.executable, "-m", "hpc_ewc"]
        few = max(3, arguments.repeats // 2)
        figures = {
            "python -c pass": seconds([sys.executable, "-c", "pass"], folder, arguments.repeats),
            "import torch": seconds([sys.executable, "-c", "import torch"], folder, few),
            "help": seconds([*ours, "--help"], folder, arguments.repeats),
            "dry run of 1,000 runs": seconds([*ours, "submit", str(sweep), "--dry-run"], folder, few),
        }
        make_done(folder)
        figures["dry run of 1,000 runs, all done"] = seconds([*ours, "submit", str(sweep), "--dry-run"], folder, few)
    facts = {
        "what": "wall time of whole processes",
        "bars_s": {name: bar for name, bar in BARS_S.items() if bar is not None},
        "figures": figures,
        "environment": {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cpus": len(os.sched_getaffinity(0)),
            "load_average_1_min": round(os.getloadavg()[0], 1),
            **{package: version(package) for package in ("tyro", "rich", "submitit")},
        },
    }
    arguments.out.write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
