"""`hpc-ewc logs` and `hpc-ewc cancel`: one run picked out of an experiment by any unique prefix of its name."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hpc_ewc import rundir
from hpc_ewc.errors import ConfigError, SubmitError
from hpc_ewc.launch.artefacts import failure
from hpc_ewc.launch.ledger import Job, Ledger, lock_holder
from hpc_ewc.launch.outcome import last_lines
from hpc_ewc.launch.process import send
from hpc_ewc.launch.survey import open_run, survey
from hpc_ewc.launch.view import Row
from hpc_ewc.rundir import RunDir

FOLLOW_S = 0.5
LINES = 40


def pick(rows: Sequence[Row], run: str, stage: str | None) -> list[Row]:
    """The rows of the one run that a prefix names, of one stage or of all.

    Raises:
        ConfigError: no run begins so, or several do.
    """
    mine = [row for row in rows if stage is None or row.stage == stage]
    if not mine:
        known = ", ".join(dict.fromkeys(row.stage for row in rows))
        raise ConfigError(f"--stage {stage}: this experiment has {known}")
    exact = [row for row in mine if row.run == run]
    if exact:
        return exact
    found = [row for row in mine if run and row.run.startswith(run)]
    names = list(dict.fromkeys(row.run for row in found))
    if len(names) == 1:
        return found
    listed = ", ".join(names or dict.fromkeys(row.run for row in mine if row.run))
    what = f"several runs begin with {run!r}: {listed}" if names else f"no run begins with {run!r}; there are: {listed}"
    raise ConfigError(what)


# ---------------------------------------------------------------------------------------------- logs


def logs(folder: Path, run: str, stage: str | None, follow: bool, rank: int | None) -> int:
    """Print what a run printed; the error first, if it failed."""
    root = open_run(folder)
    found = survey(root)
    rows, jobs = found.rows, found.jobs
    row = _most_telling(pick(rows, run, stage), jobs)
    mine = [job for job in jobs[_id(row)] if job.job_id]
    failed = failure(root.stage(row.stage, row.run)) if row.stage != "report" else {}
    if failed:
        _print_error(row, failed)
    if not mine:
        sys.stderr.write(f"{_id(row)}: no job of it was started yet\n")
        return 0
    job = _job_to_show(mine, str(failed.get("job_id", "")))
    files = log_files(root.job(job.job_id), rank)
    if not files and rank is not None:
        raise ConfigError(f"--rank {rank}: {root.job(job.job_id)} has no such rank")
    for path in files:
        text = last_lines(path, LINES)
        if text:
            sys.stdout.write(f"--- {path}\n{text}\n")
    if follow:
        _follow(root, job, rank)
    return 0


def _most_telling(rows: Sequence[Row], jobs: dict[str, list[Job]]) -> Row:
    """Of the stages of one run: what failed, else what runs, else what had the last job."""
    order = {"failed": 0, "running": 1}
    return min(rows, key=lambda row: (order.get(row.state, 2), -max((job.at for job in jobs[_id(row)]), default=0.0)))


def _id(row: Row) -> str:
    return f"{row.stage}/{row.run}" if row.run else row.stage


def _job_to_show(jobs: Sequence[Job], failed_id: str) -> Job:
    """The one that failed, else one that runs, else the last."""
    for job in jobs:
        if job.job_id == failed_id:
            return job
    return next((job for job in jobs if job.is_alive()), jobs[-1])


def _print_error(row: Row, failed: dict[str, object]) -> None:
    where = f"rank {failed.get('rank')} on {failed.get('node')}, job {failed.get('job_id')}"
    sys.stdout.write(f"{_id(row)} failed: {failed.get('error')}\n  {where}\n{failed.get('traceback')}\n")


def log_files(job: Path, rank: int | None = None) -> list[Path]:
    """What the ranks of a job printed, or one of them; where no rank got so far, what its launcher did."""
    found = sorted(rundir.rank_logs(job).rglob("std*.log"), key=lambda path: (_rank(path), path.name))
    if rank is not None:
        return [path for path in found if _rank(path) == rank]
    return found if any(path.stat().st_size for path in found) else [*found, *sorted(job.glob("*_log.*"))]


def _rank(path: Path) -> int:
    """ranks/…/<rank>/stdout.log, as torchrun names them."""
    return int(path.parent.name) if path.parent.name.isdigit() else 0


def _follow(root: RunDir, job: Job, rank: int | None) -> None:
    """Print what is added, until the job is over."""
    seen: dict[Path, int] = {path: path.stat().st_size for path in log_files(root.job(job.job_id), rank)}
    while True:
        alive = job.is_alive()
        for path in log_files(root.job(job.job_id), rank):
            with path.open("rb") as file:
                file.seek(seen.get(path, 0))
                added = file.read()
            if added:
                sys.stdout.write(added.decode(errors="replace"))
                sys.stdout.flush()
                seen[path] = seen.get(path, 0) + len(added)
        if not alive:
            return
        time.sleep(FOLLOW_S)


# ---------------------------------------------------------------------------------------------- cancel


def cancel(folder: Path, run: str | None, stage: str | None, yes: bool) -> int:
    """Ask jobs to save and leave: all, or those of one run. What they made is kept."""
    root = open_run(folder)
    found = survey(root)
    rows, jobs = found.rows, found.jobs
    chosen = [row for row in rows if stage is None or row.stage == stage] if run is None else pick(rows, run, stage)
    waiting = [row for row in chosen if row.state in ("waiting", "running")]
    live = [job for row in waiting for job in jobs[_id(row)] if job.is_alive()]
    if not waiting:
        sys.stderr.write(f"{root.name}: nothing of that runs or waits\n")
        return 0
    _confirm(
        f"{len(live)} running jobs save and stop, {len(waiting) - len({job.node for job in live})} do not start", yes
    )
    for row in waiting:  # before the jobs end, so that the submit at work starts nothing more of them
        if row.stage != "report" or run is None:
            Ledger(root).cancelled(_id(row))
    for job in live:
        if root.job(job.job_id).is_dir():
            rundir.stop_file(root.job(job.job_id), 0).touch()
    if run is None and stage is None:
        _end_submit(root)
    sys.stderr.write(f"{root.name}: asked {len(live)} jobs to stop; hpc-ewc status {folder} shows them leave\n")
    return 0


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


def _end_submit(root: RunDir) -> None:
    """Tell the submit at work to stop, as a Ctrl-C would."""
    holder = lock_holder(root)
    if holder is not None and holder.is_here and holder.is_alive() and holder.pid != os.getpid():
        send(holder.pid, signal.SIGTERM)
