"""`hpc-ewc cancel`: running jobs save and stop, waiting jobs do not start; resubmit to resume.

A job on Slurm is told by its stop file, which leaves it time to save; `scancel` alone would kill it after KillWait,
half a minute on most clusters. Jobs that have not ended after two minutes go to scancel.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from hpc_ewc import rundir
from hpc_ewc.artefacts.artefact import REPORT
from hpc_ewc.artefacts.outcome import read_outcome
from hpc_ewc.errors import SubmitError
from hpc_ewc.launch.ledger.job_history import Ledger
from hpc_ewc.launch.show.rows import Row
from hpc_ewc.launch.slurm import client
from hpc_ewc.launch.slurm.output import SlurmJob
from hpc_ewc.launch.watch.reader import read_status
from hpc_ewc.launch.watch.run_status import RunStatus, open_run
from hpc_ewc.launch.watch.select_run import select_run
from hpc_ewc.node.slurm_command import SchedulerError
from hpc_ewc.process import send
from hpc_ewc.rundir import RunDir

SAVE_S = 120.0
"""Time for jobs on Slurm to save before scancel ends them."""
POLL_S = 1.0
QUERY_INTERVAL_S = 20.0


def cancel(folder: Path, run: str | None, stage: str | None, *, yes: bool) -> int:
    """Make jobs save and stop: all jobs, those of a stage, or those of one run. Their output is kept.

    Raises:
        ConfigError: no such run or stage.
        SubmitError: not confirmed, or Slurm did not answer and may have jobs that would be missed.
    """
    root = open_run(folder)
    found = read_status(root)
    rows = [row for row in found.rows if stage in (None, row.stage)] if run is None else []
    rows = [row for row in rows or select_run(found.rows, run or "", stage) if _is_active(row, found)]
    if not found.slurm.queue_answered and any(job.is_open for row in rows for job in found.jobs[row.id]):
        raise SubmitError(f"nothing was cancelled, because Slurm must answer first: {'; '.join(found.slurm.warnings)}")
    if not rows:
        sys.stderr.write(f"{root.name}: nothing to cancel: no such job is running or waiting\n")
        return 0
    live = [job for row in rows for job in found.live_jobs(row.id)]
    on_slurm = [found.slurm.jobs[job.job_id] for job in live if job.scheduler == "slurm"]
    waiting = [job for job in on_slurm if job.waits]
    unstarted = len(waiting) + sum(not found.live_jobs(row.id) for row in rows)
    effect = f"{len(live) - len(waiting)} running jobs save and stop, {unstarted} waiting jobs do not start"
    if not yes:
        _confirm(effect)
    for row in rows:  # first in the ledger, so that a running submit starts nothing more of them
        if row.stage != REPORT or run is None:
            Ledger(root).cancelled(row.id)
    for job in live:
        if job.scheduler != "slurm" and root.job(job.job_id).is_dir():
            rundir.stop_file(root.job(job.job_id), 0).touch()
    submit = found.submitter if run is None and stage is None else None
    if submit is not None and submit.is_here and submit.is_alive() and submit.pid != os.getpid():
        send(submit.pid, signal.SIGTERM)  # as Ctrl-C would
    client.cancel(job_id_list(waiting))
    _stop_on_slurm(root, [job for job in on_slurm if not job.waits])
    sys.stderr.write(f"{root.name}: {effect}; to check: hpc-ewc status {folder}\n")
    return 0


def _is_active(row: Row, found: RunStatus) -> bool:
    return row.state in ("waiting", "running") or bool(found.live_jobs(row.id))


def _confirm(effect: str) -> None:
    """Ask the user on the terminal.

    Raises:
        SubmitError: there is no terminal, or the answer is no.
    """
    if not sys.stdin.isatty():
        raise SubmitError(f"{effect}: add --yes to confirm, there is no terminal to ask on")
    sys.stderr.write(f"{effect}. Continue? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise SubmitError("nothing was cancelled")


def _stop_on_slurm(root: RunDir, running: Sequence[SlurmJob]) -> None:
    """Write stop files, wait until the jobs have ended, and scancel those that have not."""
    for job in running:
        folder = root.job(job.job_id)
        folder.mkdir(parents=True, exist_ok=True)  # a job that starts at this moment has none yet
        rundir.stop_file(folder, job.restarts).touch()
    if not running:
        return
    sys.stderr.write(f"waiting up to {SAVE_S:.0f} s for {len(running)} jobs to save (Ctrl-C: they continue to save)\n")
    left = wait_for_jobs(root, running)
    if left:
        sys.stderr.write(f"{len(left)} jobs have not ended: scancel\n")
        client.cancel(job_id_list(left))


def wait_for_jobs(root: RunDir, running: Sequence[SlurmJob], limit_s: float = SAVE_S) -> list[SlurmJob]:
    """The jobs that have not ended within the limit, by their exit files and by Slurm."""
    left = list(running)
    started = queried_at = time.monotonic()
    while left and time.monotonic() < started + limit_s:
        time.sleep(POLL_S)
        left = [job for job in left if read_outcome(rundir.exit_file(root.job(job.job_id), job.restarts)) is None]
        if left and time.monotonic() - queried_at > QUERY_INTERVAL_S:
            queried_at = time.monotonic()
            with suppress(SchedulerError):  # exit files still count, and the query is repeated
                known = client.look_up({job.main_id for job in left})
                ended = {job.job_id for jobs in known.values() for job in jobs if job.ended}
                left = [job for job in left if job.job_id not in ended]
    return left


def job_id_list(jobs: Iterable[SlurmJob]) -> list[str]:
    """The ids as scancel takes them: `123`, and one `123_[0-4,7]` for all elements of an array."""
    elements: dict[str, list[int]] = {}
    for job in jobs:
        elements.setdefault(job.main_id, []).extend([int(job.element)] if job.element else [])
    return [f"{main}_[{ranges(numbers)}]" if numbers else main for main, numbers in elements.items()]


def ranges(numbers: Iterable[int]) -> str:
    """`0-4,7`."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)
