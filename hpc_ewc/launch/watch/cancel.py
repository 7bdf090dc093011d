"""`hpc-ewc cancel`: jobs save and leave, what waits does not start, and the next submit goes on from there.

On Slurm a job that runs is asked by its stop file, which gives it as long as it needs; `scancel` alone would kill it
after KillWait, half a minute on most clusters. What has not left after two minutes is handed to scancel all the same.
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
from hpc_ewc.launch.ledger.job_history import Job, Ledger
from hpc_ewc.launch.ledger.lock import lock_holder
from hpc_ewc.launch.show.view import Row
from hpc_ewc.launch.slurm import client
from hpc_ewc.launch.slurm.client import SlurmJob
from hpc_ewc.launch.watch.pick import pick
from hpc_ewc.launch.watch.survey import Survey, open_run, survey
from hpc_ewc.process import send
from hpc_ewc.rundir import RunDir

SAVE_S = 120.0
"""What jobs on Slurm get to save in before they are handed to scancel."""
POLL_S = 1.0
ASK_EVERY_S = 20.0


def cancel(folder: Path, run: str | None, stage: str | None, yes: bool) -> int:
    """Ask jobs to save and leave: all, those of a stage, or those of one run. What they made is kept.

    Raises:
        ConfigError: no such run or stage.
        SubmitError: nobody said yes, or Slurm did not answer, so that what it has cannot be taken back.
    """
    root = open_run(folder)
    found = survey(root)
    rows = [row for row in found.rows if stage is None or row.stage == stage] if run is None else None
    chosen = [row for row in rows or pick(found.rows, run or "", stage) if _is_open(row, found)]
    if any(job.is_open for row in chosen for job in found.jobs[row.id]) and not found.queue_answered:
        raise SubmitError(f"nothing was cancelled, since Slurm has to be asked: {'; '.join(found.unanswered)}")
    live = [job for row in chosen for job in found.live(row.id)]
    if not chosen:
        sys.stderr.write(f"{root.name}: nothing of that runs or waits\n")
        return 0
    slurm = [found.slurm[job.job_id] for job in live if job.scheduler == "slurm"]
    waiting = [job for job in slurm if job.waits]
    running = len(live) - len(waiting)
    idle = len(waiting) + sum(1 for row in chosen if not found.live(row.id))
    what = f"{running} running jobs save and stop, {idle} do not start"
    _confirm(what, yes)
    for row in chosen:  # before the jobs end, so that the submit at work starts nothing more of them
        if row.stage != REPORT or run is None:
            Ledger(root).cancelled(row.id)
    _ask_local(root, live)
    if run is None and stage is None:
        _end_submit(root)
    client.cancel(compress(waiting))
    _stop_on_slurm(root, [job for job in slurm if not job.waits])
    sys.stderr.write(f"{root.name}: {what}; hpc-ewc status {folder} shows how it stands\n")
    return 0


def _is_open(row: Row, found: Survey) -> bool:
    return row.state in ("waiting", "running") or bool(found.live(row.id))


def _confirm(what: str, yes: bool) -> None:
    """Ask a person.

    Raises:
        SubmitError: nobody can answer, or the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise SubmitError(f"{what}: say --yes, nobody is there to ask")
    sys.stderr.write(f"{what}. Go on? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise SubmitError("nothing was cancelled")


# ---------------------------------------------------------------------------------------------- this machine


def _ask_local(root: RunDir, live: Sequence[Job]) -> None:
    for job in live:
        if job.scheduler != "slurm" and root.job(job.job_id).is_dir():
            rundir.stop_file(root.job(job.job_id), 0).touch()


def _end_submit(root: RunDir) -> None:
    """Tell the submit at work to stop, as a Ctrl-C would."""
    holder = lock_holder(root)
    if holder is not None and holder.is_here and holder.is_alive() and holder.pid != os.getpid():
        send(holder.pid, signal.SIGTERM)


# ---------------------------------------------------------------------------------------------- Slurm


def _stop_on_slurm(root: RunDir, running: Sequence[SlurmJob]) -> None:
    """Ask by stop files, wait until each has left, and hand the rest to scancel."""
    for job in running:
        place = root.job(job.job_id)
        place.mkdir(parents=True, exist_ok=True)  # a job that starts this moment has made none yet
        rundir.stop_file(place, job.restarts).touch()
    if not running:
        return
    sys.stderr.write(f"waiting up to {SAVE_S:.0f} s for {len(running)} jobs to save (Ctrl-C: they go on saving)\n")
    left = wait_for_jobs(root, running)
    if left:
        sys.stderr.write(f"{len(left)} jobs have not left: scancel\n")
        client.cancel(compress(left))


def wait_for_jobs(root: RunDir, running: Sequence[SlurmJob], limit_s: float = SAVE_S) -> list[SlurmJob]:
    """Those that have not ended within the limit, by their launchers' own word or Slurm's."""
    left = list(running)
    deadline, asked_at = time.monotonic() + limit_s, time.monotonic()
    while left and time.monotonic() < deadline:
        time.sleep(POLL_S)
        left = [job for job in left if read_outcome(rundir.exit_file(root.job(job.job_id), job.restarts)) is None]
        if left and time.monotonic() - asked_at > ASK_EVERY_S:
            asked_at = time.monotonic()
            with suppress(client.SchedulerError):  # jobs that save say so themselves; it is asked again
                known = client.look_up({job.main_id for job in left})
                ended = {job.job_id for jobs in known.values() for job in jobs if job.ended}
                left = [job for job in left if job.job_id not in ended]
    return left


def compress(jobs: Iterable[SlurmJob]) -> list[str]:
    """Ids for scancel: `123`, and of arrays `123_[0-4,7]`, however many elements."""
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
