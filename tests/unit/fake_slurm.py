"""A fake Slurm that keeps all jobs and runs none, for events a real one cannot produce on demand (a lost answer).

Installed as sbatch, squeue, sacct, scancel and scontrol; `state.json` beside them tells it how to behave.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

STATE = Path(__file__).with_name("state.json")
SEPARATOR = "\x1f"


def install(folder: Path, **behaviour: Any) -> Path:
    """Write the commands and return their folder, to be put into PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    body = Path(__file__).read_text()
    for name in ("sbatch", "squeue", "sacct", "scancel", "scontrol"):
        path = folder / name
        path.write_text(f"#!{sys.executable} -S\n{body}")
        path.chmod(0o755)
    save(folder, {"jobs": [], "next": 100, **behaviour})
    return folder


def save(folder: Path, state: dict[str, Any]) -> None:
    (folder / "state.json").write_text(json.dumps(state))


def load(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    return state


def change(folder: Path, **facts: Any) -> None:
    save(folder, load(folder) | facts)


def set_states(folder: Path, state: str, name: str = "") -> None:
    """Set the state of jobs whose name contains `name`."""
    known = load(folder)
    for job in known["jobs"]:
        if name in job["name"]:
            job["state"] = state
    save(folder, known)


# ---------------------------------------------------------------------------------------------- as Slurm's commands


def main() -> int:
    command = Path(sys.argv[0]).name
    state = json.loads(STATE.read_text())
    if command in state.get("silent", []):
        sys.stderr.write("slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n")
        return 1
    status = {"sbatch": sbatch, "squeue": squeue, "sacct": sacct, "scancel": scancel}[command](state)
    STATE.write_text(json.dumps(state))
    return status


def sbatch(state: dict[str, Any]) -> int:
    if len(state["jobs"]) >= state.get("refuse_after", 10**9):
        sys.stderr.write(f"sbatch: error: {state['words']}\n")
        return 1
    text = Path(sys.argv[-1]).read_text()
    flags = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", text, re.MULTILINE))
    array = re.match(r"0-(\d+)", flags.get("array", ""))
    job = {"id": state["next"], "name": flags["job-name"].strip("'"), "comment": flags["comment"], "state": "PENDING"}
    job |= {"elements": int(array[1]) + 1 if array else 0, "dependency": flags.get("dependency", "")}
    job |= {"partition": flags.get("partition", ""), "submitted": time.time()}
    state["jobs"].append(job)
    state["next"] += 1
    if state.get("lose_answer") == len(state["jobs"]):
        STATE.write_text(json.dumps(state))
        sys.stderr.write("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n")
        return 1
    print(job["id"])
    return 0


def squeue(state: dict[str, Any]) -> int:
    wanted = re.findall(r"(\w[\w-]*):\d+", sys.argv[sys.argv.index("-O") + 1])
    for job in state["jobs"]:
        if job["state"] not in ("PENDING", "RUNNING") and "-t" not in sys.argv:
            continue
        for i in range(job["elements"] or 1):
            facts = {"JobArrayID": f"{job['id']}_{i}" if job["elements"] else str(job["id"]), "State": job["state"]}
            facts |= {"Name": job["name"], "Comment": job["comment"], "RestartCnt": "0", "Partition": job["partition"]}
            facts |= {"Reason": job.get("reason", "None"), "TimeUsed": "0:10", "exit_code": "0"}
            print("".join(f"{facts.get(name, ''):<30}{SEPARATOR}" for name in wanted))
    return 0


def sacct(state: dict[str, Any]) -> int:
    wanted = sys.argv[sys.argv.index("-o") + 1].split(",")
    for job in state["jobs"]:
        for i in range(job["elements"] or 1):
            facts = {"JobID": f"{job['id']}_{i}" if job["elements"] else str(job["id"]), "State": job["state"]}
            facts |= {"JobName": job["name"], "Comment": job["comment"], "Partition": job["partition"]}
            facts |= {"ElapsedRaw": "10", "ExitCode": "1:0" if job["state"] == "FAILED" else "0:0"}
            print(SEPARATOR.join(facts.get(name, "") for name in wanted))
    return 0


def scancel(state: dict[str, Any]) -> int:
    for job in state["jobs"]:
        if str(job["id"]) in sys.argv:
            job["state"] = "CANCELLED"
    return 0


if __name__ == "__main__":
    sys.exit(main())
