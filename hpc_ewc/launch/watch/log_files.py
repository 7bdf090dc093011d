"""The log files of a job, with the rank and the attempt that wrote each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_ewc import rundir
from hpc_ewc.launch.ledger.job_history import Job
from hpc_ewc.launch.slurm.output import SlurmJob, expand_hosts
from hpc_ewc.rundir import RunDir


@dataclass(frozen=True)
class LogFile:
    """The output of one rank or launcher in one attempt."""

    path: Path
    rank: int | None
    """Global rank; None: the launcher or the batch script."""
    restart: int


def find_logs(root: RunDir, job: Job, known: SlurmJob | None) -> list[LogFile]:
    """The logs of all attempts of a job: ranks in order, then launchers and the batch script.

    Args:
        root: the run folder.
        job: of the ledger.
        known: the job in Slurm's last answer, whose nodes give the order of ranks.
    """
    folder = root.job(job.job_id)
    paths = sorted(rundir.rank_logs(folder).rglob("std*.log"))
    places = [_place(path.relative_to(rundir.rank_logs(folder))) for path in paths]
    ranks = global_ranks(places, expand_hosts(known.nodes) if known else [])
    found = [LogFile(path, rank, place[0]) for path, rank, place in zip(paths, ranks, places, strict=True)]
    found.sort(key=lambda file: (file.restart, file.rank or 0, file.path.name))
    newest = max((file.restart for file in found), default=0)
    launchers = [*sorted(folder.glob("*_log.*")), *sorted(root.job(job.token).glob(f"{job.job_id}_batch.out"))]
    return [*found, *(LogFile(path, None, newest) for path in dict.fromkeys(launchers))]


def global_ranks(places: Sequence[tuple[int, int, int]], hosts: Sequence[str] = ()) -> list[int]:
    """The global rank of each (restart, node, local rank).

    Torchrun's c10d orders nodes by their addresses as texts: node10 comes before node2.
    """
    ranks: list[int] = []
    for restart, node, local_rank in places:
        local_world_size = 1 + max(one for r, _, one in places if r == restart)
        nodes = sorted({n for r, n, _ in places if r == restart})
        if len(hosts) == len(nodes):
            nodes.sort(key=lambda n: hosts[n] if n < len(hosts) else "")
        ranks.append(nodes.index(node) * local_world_size + local_rank)
    return ranks


def _place(path: Path) -> tuple[int, int, int]:
    """Restart, node and local rank of a log.

    On Slurm `restart_1/node_0/<torchrun>/attempt_0/<local rank>/stdout.log`; of a local worker without torchrun
    `attempt_1/0/stdout.log`. An attempt_ further down is torchrun's own, and always 0.
    """
    patterns = (r"^/(?:restart|attempt)_(\d+)/", r".*/node_(\d+)/", r".*/(\d+)/[^/]*$")
    found = [re.match(pattern, f"/{path}") for pattern in patterns]
    restart, node, local_rank = (int(matched[1]) if matched else 0 for matched in found)
    return restart, node, local_rank
