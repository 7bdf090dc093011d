"""`hpc-ewc logs`: what a run printed; for a run that failed, the traceback of its first failed rank comes first."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hpc_ewc import rundir
from hpc_ewc.artefacts.artefact import REPORT
from hpc_ewc.artefacts.failure import read_failure
from hpc_ewc.artefacts.job_logs import last_lines
from hpc_ewc.artefacts.outcome import read_outcome
from hpc_ewc.errors import ConfigError
from hpc_ewc.launch.ledger.job_history import Job
from hpc_ewc.launch.show.rows import Row
from hpc_ewc.launch.watch.log_files import LogFile, find_logs
from hpc_ewc.launch.watch.reader import StatusReader
from hpc_ewc.launch.watch.run_status import RunStatus, open_run
from hpc_ewc.launch.watch.select_run import select_run
from hpc_ewc.rundir import RunDir
from hpc_ewc.schemas import Failure

FOLLOW_INTERVAL_S = 0.5
LINES = 40
RANKS_SHOWN = 4
"""If a job has more ranks, one is shown, and where the others are."""


def logs(
    folder: Path,
    run: str,
    *,
    stage: str | None,
    element: str | None,
    restart: int | None,
    rank: int | None,
    follow: bool,
) -> int:
    """Print what a run printed, after its error if it failed; arguments as of the command, None: the most informative.

    Raises:
        ConfigError: no such run, stage, element, restart or rank.
    """
    root = open_run(folder)
    reader = StatusReader(root)
    found = reader.read()
    row = _most_informative(select_run(found.rows, run, stage), found)
    failure = read_failure(root.stage(row.stage, row.run)) if row.stage != REPORT else {}
    if failure:
        _print_failure(row, failure)
    jobs = _select_element([job for job in found.jobs[row.id] if job.job_id], element, row)
    if not jobs:
        sys.stderr.write(f"{row.id}: no job was started yet\n")
        return 0
    job = _select_job(jobs, str(failure.get("job_id", "")), found)
    files = find_logs(root, job, found.slurm.jobs.get(job.job_id))
    attempts = sorted({file.restart for file in files})
    if restart is not None and restart not in attempts:
        raise ConfigError(f"--restart {restart}: job {job.job_id} has {', '.join(map(str, attempts)) or 'none yet'}")
    if job.scheduler == "slurm":
        _print_slurm_state(job, found, attempts)
    last = attempts[-1] if attempts else 0
    shown = [file for file in files if file.restart == (last if restart is None else restart)]
    _print_files(root, job, shown, rank, failure)
    if follow:
        _follow(root, reader, job, rank)
    return 0


def _most_informative(rows: Sequence[Row], found: RunStatus) -> Row:
    """The stage that failed, else one that is running, else the one with the newest job."""
    order = {"failed": 0, "running": 1}
    newest = {row.id: max((job.at for job in found.jobs[row.id]), default=0.0) for row in rows}
    return min(rows, key=lambda row: (order.get(row.state, 2), -newest[row.id]))


def _select_element(jobs: Sequence[Job], element: str | None, row: Row) -> list[Job]:
    chosen = [job for job in jobs if element in (None, job.job_id, job.element, str(job.index))]
    if element is not None and not chosen:
        known = ", ".join(dict.fromkeys(job.element if job.index is None else str(job.index) for job in jobs))
        raise ConfigError(f"--element {element}: {row.id} has {known or 'no job yet'}")
    return chosen


def _select_job(jobs: Sequence[Job], failed_id: str, found: RunStatus) -> Job:
    """The job that failed, else one that is running, else one that Slurm ended, else the last that started."""

    def rank(job: Job) -> int:
        known = found.slurm.jobs.get(job.job_id)
        if job.job_id == failed_id:
            return 0
        if job.is_alive() or (known and known.runs):
            return 1
        return 2 if known and known.ended and known.state != "COMPLETED" else 4 if known and known.waits else 3

    best = min(map(rank, jobs))
    candidates = [job for job in jobs if rank(job) == best]
    return candidates[-1 if best == 3 else 0]


def _print_failure(row: Row, failure: Failure) -> None:
    where = f"rank {failure.get('rank')} on {failure.get('node')}, job {failure.get('job_id')}"
    where += f", restart {failure['restart']}" if failure.get("restart") else ""
    sys.stdout.write(f"{row.id} failed: {failure.get('error')}\n  {where}\n{failure.get('traceback')}\n")


def _print_slurm_state(job: Job, found: RunStatus, attempts: Sequence[int]) -> None:
    known = found.slurm.jobs.get(job.job_id)
    text = f"{known.state}{f' on {known.nodes}' if known.nodes else ''}" if known else "not known to Slurm"
    text += f", waiting for {known.reason}" if known and known.waits and known.reason else ""
    text += f"; attempts {', '.join(map(str, attempts))}, the last is shown" if len(attempts) > 1 else ""
    sys.stdout.write(f"job {job.job_id}: {text}\n")


def _print_files(root: RunDir, job: Job, files: Sequence[LogFile], rank: int | None, failure: Failure) -> None:
    """Print the end of one rank's logs (selected, or failed), or of all ranks' if they are few.

    Raises:
        ConfigError: no such rank.
    """
    ranks = sorted({file.rank for file in files if file.rank is not None})
    if rank is not None and rank not in ranks:
        raise ConfigError(f"--rank {rank}: {root.job(job.job_id)} has no such rank")
    shown = ranks if len(ranks) <= RANKS_SHOWN else [r for r in ranks if r == failure.get("rank")] or ranks[:1]
    shown = shown if rank is None else [rank]
    tails = {file.path: last_lines(file.path, LINES) for file in files if file.rank in shown}
    if not any(tails.values()) and rank is None:  # no rank printed anything: what the launcher or batch script said
        tails = {file.path: last_lines(file.path, LINES) for file in files if file.rank is None}
    for path, text in tails.items():
        sys.stdout.write(f"--- {path}\n{text}\n" if text else "")
    if rank is None and len(shown) < len(ranks):
        where = rundir.rank_logs(root.job(job.job_id))
        sys.stdout.write(f"--- {len(ranks) - len(shown)} more ranks (--rank 0 … {ranks[-1]}) in {where}\n")


def _follow(root: RunDir, reader: StatusReader, job: Job, rank: int | None) -> None:
    """Print what is added to the logs, through restarts, until the job has ended."""
    first = reader.read().slurm.jobs.get(job.job_id)
    sizes = {file.path: file.path.stat().st_size for file in find_logs(root, job, first)}
    reason = ""
    while True:
        found = reader.read()
        known = found.slurm.jobs.get(job.job_id)
        ended = not found.is_live(job)
        if known is not None and job.scheduler == "slurm":  # its exit file comes sooner than Slurm's next answer
            outcome = read_outcome(rundir.exit_file(root.job(job.job_id), known.restarts))
            ended = ended or outcome in ("finished", "failed")
        for file in find_logs(root, job, first):
            if rank is None or rank == file.rank:
                sizes[file.path] = _print_from(file.path, sizes.get(file.path, 0))
        if ended:
            return
        if known is not None and known.waits and known.reason != reason:
            reason = known.reason
            sys.stderr.write(f"job {job.job_id} is waiting for {reason}\n")
        time.sleep(FOLLOW_INTERVAL_S)


def _print_from(path: Path, start: int) -> int:
    """Print a file from a byte on; returns its size."""
    with path.open("rb") as file:
        file.seek(start)
        added = file.read()
    if added:
        sys.stdout.write(added.decode(errors="replace"))
        sys.stdout.flush()
    return start + len(added)
