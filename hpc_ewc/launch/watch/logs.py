"""`hpc-ewc logs`: what a run printed; if it failed, the first rank's own traceback comes first."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_ewc import rundir
from hpc_ewc.artefacts.artefact import REPORT
from hpc_ewc.artefacts.failure import read_failure
from hpc_ewc.artefacts.job_logs import last_lines
from hpc_ewc.artefacts.outcome import read_outcome
from hpc_ewc.errors import ConfigError
from hpc_ewc.launch.ledger.job_history import Job
from hpc_ewc.launch.show.view import Row
from hpc_ewc.launch.slurm.output import expand_hosts
from hpc_ewc.launch.watch.pick import pick
from hpc_ewc.launch.watch.survey import Survey, Surveyor, open_run
from hpc_ewc.rundir import RunDir
from hpc_ewc.schemas import Failure

FOLLOW_S = 0.5
LINES = 40
SHOWN_RANKS = 4
"""Of more, one is shown, and where the others are."""


@dataclass(frozen=True)
class LogFile:
    """What one rank, or one launcher, printed in one attempt."""

    path: Path
    rank: int | None
    """Global; None: the launcher or the batch script."""
    restart: int


def logs(
    folder: Path, run: str, stage: str | None, follow: bool, rank: int | None, element: str | None, restart: int | None
) -> int:
    """Print what a run printed; the error first, if it failed.

    Raises:
        ConfigError: no such run, stage, element, restart or rank.
    """
    root = open_run(folder)
    surveyor = Surveyor(root)
    found = surveyor.look()
    row = _most_telling(pick(found.rows, run, stage), found)
    failed = read_failure(root.stage(row.stage, row.run)) if row.stage != REPORT else {}
    if failed:
        _print_error(row, failed)
    mine = _of_element([job for job in found.jobs[row.id] if job.job_id], element, row)
    if not mine:
        sys.stderr.write(f"{row.id}: no job of it was started yet\n")
        return 0
    job = _job_to_show(mine, str(failed.get("job_id", "")), found)
    files = log_files(root, job, _hosts(found, job))
    attempts = sorted({file.restart for file in files})
    if restart is not None and restart not in attempts:
        raise ConfigError(f"--restart {restart}: job {job.job_id} has {', '.join(map(str, attempts)) or 'none yet'}")
    _print_job(job, found, attempts)
    last = restart if restart is not None else attempts[-1] if attempts else 0
    _print_files(root, job, [file for file in files if file.restart == last], rank, failed)
    if follow:
        _follow(root, surveyor, job, rank)
    return 0


def _most_telling(rows: Sequence[Row], found: Survey) -> Row:
    """Of the stages of one run: what failed, else what runs, else what had the last job."""
    order = {"failed": 0, "running": 1}
    last = {row.id: max((job.at for job in found.jobs[row.id]), default=0.0) for row in rows}
    return min(rows, key=lambda row: (order.get(row.state, 2), -last[row.id]))


def _of_element(jobs: Sequence[Job], element: str | None, row: Row) -> list[Job]:
    """All, or those of one element of an array, by its number or its job id."""
    if element is None:
        return list(jobs)
    chosen = [job for job in jobs if element in (job.job_id, job.element, str(job.index))]
    if not chosen:
        known = ", ".join(dict.fromkeys(job.element if job.index is None else str(job.index) for job in jobs))
        raise ConfigError(f"--element {element}: {row.id} has {known or 'no job yet'}")
    return chosen


def _job_to_show(jobs: Sequence[Job], failed_id: str, found: Survey) -> Job:
    """The one that failed, else one that runs, else one that Slurm calls failed, else the last."""
    for job in jobs:
        if job.job_id == failed_id:
            return job
    runs = [job for job in jobs if job.is_alive() or ((known := found.slurm.get(job.job_id)) and known.runs)]
    bad = [job for job in jobs if (known := found.slurm.get(job.job_id)) and known.ended and known.state != "COMPLETED"]
    waits = [job for job in jobs if (known := found.slurm.get(job.job_id)) and known.waits]
    rest = [job for job in jobs if job not in waits]
    return (runs or bad or rest[-1:] or list(jobs))[0]


def _hosts(found: Survey, job: Job) -> list[str]:
    known = found.slurm.get(job.job_id)
    return expand_hosts(known.nodes) if known is not None else []


# ---------------------------------------------------------------------------------------------- files


def log_files(root: RunDir, job: Job, hosts: Sequence[str] = ()) -> list[LogFile]:
    """Everything that the attempts of a job printed, ranks in order, then launchers and the batch script."""
    folder = root.job(job.job_id)
    ranked = sorted(rundir.rank_logs(folder).rglob("std*.log"))
    found = [LogFile(path, None, _attempt(path, folder)) for path in ranked]
    numbers = global_ranks([(file.restart, _node(file.path), _local_rank(file.path)) for file in found], hosts)
    found = [LogFile(file.path, number, file.restart) for file, number in zip(found, numbers, strict=True)]
    found.sort(key=lambda file: (file.restart, file.rank or 0, file.path.name))
    newest = max((file.restart for file in found), default=0)
    launchers = [*sorted(folder.glob("*_log.*")), *sorted(root.job(job.token).glob(f"{job.job_id}_batch.out"))]
    return [*found, *(LogFile(path, None, newest) for path in dict.fromkeys(launchers))]


def global_ranks(places: Sequence[tuple[int, int, int]], hosts: Sequence[str] = ()) -> list[int]:
    """Of (restart, node, local rank)s, the global ranks.

    Torchrun's c10d gives nodes their ranks in the order of their addresses, as texts: node10 comes before node2.
    """
    ranks: list[int] = []
    for restart, node, local in places:
        side = {one + 1 for r, _, one in places if r == restart}
        nodes = sorted({n for r, n, _ in places if r == restart})
        if len(hosts) == len(nodes):
            nodes.sort(key=lambda n: hosts[n] if n < len(hosts) else "")
        ranks.append(nodes.index(node) * max(side) + local)
    return ranks


def _attempt(path: Path, folder: Path) -> int:
    """ranks/restart_<n>/… of Slurm, ranks/attempt_<n>/… of a plain local worker; torchrun's own attempts are all 0."""
    first = path.relative_to(rundir.rank_logs(folder)).parts[0]
    matched = re.fullmatch(r"(?:restart|attempt)_(\d+)", first)
    return int(matched[1]) if matched else 0


def _node(path: Path) -> int:
    matched = [part for part in path.parts if re.fullmatch(r"node_\d+", part)]
    return int(matched[-1][5:]) if matched else 0


def _local_rank(path: Path) -> int:
    """…/<rank>/stdout.log, as torchrun names them."""
    return int(path.parent.name) if path.parent.name.isdigit() else 0


# ---------------------------------------------------------------------------------------------- print


def _print_error(row: Row, failed: Failure) -> None:
    where = f"rank {failed.get('rank')} on {failed.get('node')}, job {failed.get('job_id')}"
    where += f", restart {failed['restart']}" if failed.get("restart") else ""
    sys.stdout.write(f"{row.id} failed: {failed.get('error')}\n  {where}\n{failed.get('traceback')}\n")


def _print_job(job: Job, found: Survey, attempts: Sequence[int]) -> None:
    """Of a job on Slurm, how it stands."""
    known = found.slurm.get(job.job_id)
    if job.scheduler != "slurm":
        return
    words = f"{known.state}{f' on {known.nodes}' if known.nodes else ''}" if known else "not known to Slurm"
    words += f", waits: {known.reason}" if known and known.waits and known.reason else ""
    words += f"; attempts {', '.join(map(str, attempts))}, the last is shown" if len(attempts) > 1 else ""
    sys.stdout.write(f"job {job.job_id}: {words}\n")


def _print_files(root: RunDir, job: Job, files: Sequence[LogFile], rank: int | None, failed: Failure) -> None:
    """The last lines of one rank (asked for, or failed), or of all where they are few; then where the rest is.

    Raises:
        ConfigError: no such rank.
    """
    ranks = sorted({file.rank for file in files if file.rank is not None})
    if rank is not None and rank not in ranks:
        raise ConfigError(f"--rank {rank}: {root.job(job.job_id)} has no such rank")
    shown = ranks if len(ranks) <= SHOWN_RANKS else [r for r in ranks if r == failed.get("rank")] or ranks[:1]
    shown = shown if rank is None else [rank]
    printed = False
    for file in files:
        if file.rank in shown:
            printed = _print_tail(file.path) or printed
    if not printed and rank is None:  # no rank got so far: what its launcher did, or the batch script
        for file in files:
            if file.rank is None:
                _print_tail(file.path)
    if rank is None and len(shown) < len(ranks):
        rest = len(ranks) - len(shown)
        sys.stdout.write(
            f"--- {rest} more ranks (--rank 0 … {ranks[-1]}) in {rundir.rank_logs(root.job(job.job_id))}\n"
        )


def _print_tail(path: Path) -> bool:
    text = last_lines(path, LINES)
    if text:
        sys.stdout.write(f"--- {path}\n{text}\n")
    return bool(text)


def _follow(root: RunDir, surveyor: Surveyor, job: Job, rank: int | None) -> None:
    """Print what is added, in this attempt and in those that follow it, until the job is over."""
    found = surveyor.look()
    hosts = _hosts(found, job)
    seen = {file.path: file.path.stat().st_size for file in log_files(root, job, hosts)}
    waits = ""
    while True:
        found = surveyor.look()
        over = not found.is_live(job) or _is_over(root, job, found)
        for file in log_files(root, job, hosts):
            if rank in (None, file.rank) and (file.rank is not None or rank is None):
                seen[file.path] = _print_added(file.path, seen.get(file.path, 0))
        if over:
            return
        known = found.slurm.get(job.job_id)
        if known is not None and known.waits and known.reason != waits:
            waits = known.reason
            sys.stderr.write(f"job {job.job_id} waits: {waits}\n")
        time.sleep(FOLLOW_S)


def _is_over(root: RunDir, job: Job, found: Survey) -> bool:
    """Its launcher said so, which is sooner than Slurm is asked again."""
    known = found.slurm.get(job.job_id)
    if known is None or job.scheduler != "slurm":
        return False
    return read_outcome(rundir.exit_file(root.job(job.job_id), known.restarts)) in ("finished", "failed")


def _print_added(path: Path, start: int) -> int:
    """Print a file from a position on; the position after."""
    with path.open("rb") as file:
        file.seek(start)
        added = file.read()
    if added:
        sys.stdout.write(added.decode(errors="replace"))
        sys.stdout.flush()
    return start + len(added)
