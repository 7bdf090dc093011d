"""The profile key to change when sbatch refuses a job."""

from __future__ import annotations

import re
from pathlib import Path

from hpc_ewc.errors import SubmitError
from hpc_ewc.launch.plan.graph import Node
from hpc_ewc.launch.profile.keys import Profile
from hpc_ewc.node.slurm_command import SchedulerError

FIXES = (
    (r"invalid account", "set slurm.account"),
    (r"invalid partition|partition not available|required partition", "set slurm.partition (sinfo lists them)"),
    (r"invalid qos", "set slurm.qos"),
    (r"invalid feature|constraint", "correct slurm.constraint"),
    (r"generic resource|gres|gpus", "correct slurm.gres, or resources.{stage}.gpus_per_node"),
    (r"submit limit|max.*submit|qosmaxsubmit|assoc.*submit", "lower slurm.max_submitted, and submit again later"),
    (r"array|maxarraysize", "lower slurm.max_array_size (scontrol show config: MaxArraySize)"),
    (r"time limit|wall|partitiontimelimit", "lower resources.{stage}.time_min, or choose another partition or qos"),
    (r"memory", "lower resources.{stage}.mem_gb"),
    (r"reservation", "correct slurm.sbatch.reservation"),
    (r"node count|nodes specification|requested node configuration|more processors|cpu count",
     "lower resources.{stage}.nodes, cpus_per_task, mem_gb or gpus_per_node to what the partition has"),
    (r"dependency", "a job that it waits for has left the queue: submit again"),
    (r"accounting/qos policy|policy", "lower slurm.max_submitted or resources.{stage}, or correct slurm.account, qos"),
    (r"unrecognized option|invalid option|unknown option", "correct slurm.sbatch"),
)  # fmt: skip
"""Patterns of sbatch's message; the first that matches names the fix."""


def explain_refusal(error: SchedulerError, name: str, script: Path, node: Node, profile: Profile) -> SubmitError:
    """Return an error of one line: the job, sbatch's message, the key to change, the script."""
    text = str(error)
    if error.kind in ("silent", "missing"):
        return SubmitError(f"{name}: {text}; earlier submissions stay; submit again to add the rest. Script: {script}")
    words = text.split('"', 1)[-1].rstrip('"').replace("sbatch: ", "").replace("error: ", "") if '"' in text else text
    said = re.search(r"\(exit (\d+)\)", text)
    fix = next((fix for pattern, fix in FIXES if re.search(pattern, words, re.IGNORECASE)), "change what it names")
    return SubmitError(
        f'sbatch refused {name} (exit {said[1] if said else "?"}): "{words}"; {fix.format(stage=node.stage)} in '
        f"{profile.where}. Earlier submissions stay. Script: {script}"
    )
