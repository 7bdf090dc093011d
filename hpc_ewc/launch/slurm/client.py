"""Questions and commands to Slurm through squeue, sacct, scontrol, scancel and sinfo.

A SchedulerError says which command failed and what to do. Calls are few: a question about ten thousand jobs takes two.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from hpc_ewc.launch.slurm.output import (
    ACCOUNT_FIELDS,
    QUEUE_FORMAT,
    SlurmJob,
    parse_accounting,
    parse_details,
    parse_queue,
    parse_settings,
)
from hpc_ewc.node.slurm_command import SEPARATOR, SchedulerError, call

ID_LIST_LIMIT = 100_000
"""Characters of one argument; Linux allows 131,072."""
IDS_PER_CALL = 1000
DAYS_BACK = 30


def queue(user: str | None = None, *, ended: bool = False) -> list[SlurmJob]:
    """Return the pending and running jobs of a user, with array elements as separate jobs; one call.

    Args:
        user: name or uid; None: the user of this process.
        ended: also jobs that ended within the controller's memory (minutes).

    Raises:
        SchedulerError: squeue did not answer.
    """
    command = ["squeue", "-h", "-r", "-u", user or str(os.getuid()), "-O", QUEUE_FORMAT]
    command += ["-t", "all"] if ended else []
    try:
        text = call(command)
        jobs = parse_queue(text)
        if not jobs and any(SEPARATOR in line or line.strip() for line in text.splitlines()):
            raise SchedulerError(f"squeue printed an unknown format: {text.splitlines()[0][:80]!r}", "unreadable")
    except SchedulerError as error:
        if error.kind == "silent":
            raise
        jobs = _details(error)
    return jobs if ended else [job for job in jobs if not job.ended]


def _details(error: SchedulerError) -> list[SlurmJob]:
    """Return the same jobs from scontrol, whose `Key=value` format is the same in every version.

    Raises:
        SchedulerError: the error of squeue, if scontrol fails too.
    """
    try:
        text = call(["scontrol", "-o", "show", "job"])
    except SchedulerError:
        raise error from None
    jobs = parse_details(text)
    if not jobs and "No jobs" not in text:
        raise error
    return jobs


def accounted(
    *, job_ids: Collection[str] = (), names: Collection[str] = (), since: float | None = None
) -> list[SlurmJob]:
    """Return the jobs that accounting knows by these ids, or one's own by these names; one call.

    Args:
        job_ids: main ids.
        names: exact names; sacct's own --name would take the commas in `strength=1,seed=0` for a list.
        since: seconds since the epoch; None: no limit for ids, 30 days for names. Accounting is a second or two late.

    Raises:
        SchedulerError: sacct did not answer, or this cluster keeps no accounting.
    """
    command = ["sacct", "-X", "-D", "-n", "-P", "--delimiter", SEPARATOR, "-o", ",".join(ACCOUNT_FIELDS)]
    joined = ",".join(sorted({job_id.partition("_")[0] for job_id in job_ids}))
    if job_ids and len(joined) <= ID_LIST_LIMIT:
        start = "1970-01-01" if since is None else _date(since)
        return parse_accounting(call([*command, "-a", "-j", joined, "-S", start]))
    start = _date(time.time() - DAYS_BACK * 86400 if since is None else since)
    jobs = parse_accounting(call([*command, "-u", str(os.getuid()), "-S", start]))
    wanted_ids, wanted_names = set(joined.split(",")), set(names)
    return [job for job in jobs if job.main_id in wanted_ids or job.name in wanted_names]


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(seconds))


@dataclass(frozen=True)
class Answer:
    """The jobs that Slurm knows, and whether its two sources answered."""

    jobs: dict[str, list[SlurmJob]]
    """By main id, its elements in order; ids that neither source knows are left out."""
    unanswered: tuple[SchedulerError, ...] = ()
    """The error of squeue or sacct, if one of them did not answer."""
    queue_answered: bool = True
    """squeue answered: a job that is not in `jobs` is not in the queue."""


def ask(main_ids: Iterable[str], since: float | None = None, user: str | None = None) -> Answer:
    """Return what squeue and accounting know of jobs; at most two calls for any number of jobs.

    Args:
        main_ids: ids of jobs and arrays.
        since: earliest time at which one of them may have been submitted, in seconds since the epoch.
        user: owner of the jobs; None: the user of this process.

    Raises:
        SchedulerError: neither answered.
    """
    wanted = set(main_ids)
    if not wanted:
        return Answer({})
    errors: list[SchedulerError] = []
    known: dict[str, SlurmJob] = {}
    try:
        queued = [job for job in queue(user, ended=True) if job.main_id in wanted]
    except SchedulerError as error:
        errors.append(error)
        queued = []
    queue_answered = not errors
    try:
        known = {job.job_id: job for job in accounted(job_ids=wanted, since=since) if job.main_id in wanted}
    except SchedulerError as error:
        errors.append(error)
        if not queue_answered:
            raise SchedulerError(f"{errors[0]}; {error}", errors[0].kind) from None
    known |= {job.job_id: _both(job, known.get(job.job_id)) for job in queued}
    by_main: dict[str, list[SlurmJob]] = {}
    for job in sorted(known.values(), key=lambda job: (int(job.main_id), int(job.element or -1))):
        by_main.setdefault(job.main_id, []).append(job)
    return Answer(by_main, tuple(errors), queue_answered)


def _both(now: SlurmJob, before: SlurmJob | None) -> SlurmJob:
    """Join both sources: squeue is a second newer, and only accounting knows earlier attempts."""
    if before is None or before.name != now.name:
        return now
    earlier = before.gpu_s if now.waits else max(before.gpu_s, now.gpu_s)
    return replace(now, restarts=max(now.restarts, before.restarts), gpu_s=earlier)


def look_up(main_ids: Iterable[str], since: float | None = None) -> dict[str, list[SlurmJob]]:
    """Return the jobs or elements that Slurm knows, by main id; unknown ids are left out.

    Raises:
        SchedulerError: neither squeue nor sacct answered.
    """
    return ask(main_ids, since).jobs


def cancel(job_ids: Iterable[str]) -> None:
    """Cancel jobs, arrays (`123`) or elements (`123_4`, `123_[4-7,9]`): TERM, and after KillWait KILL.

    A job that has ended already is no error.

    Raises:
        SchedulerError: scancel did not answer, or refused to cancel a job that still exists.
    """
    wanted = list(dict.fromkeys(job_ids))
    for job_id in wanted:
        assert re.fullmatch(r"\d+(_(\d+|\[[\d,-]+\]))?", job_id), job_id
    for start in range(0, len(wanted), IDS_PER_CALL):
        try:
            call(["scancel", *wanted[start : start + IDS_PER_CALL]])
        except SchedulerError as error:
            gone = ("invalid job id", "already completing", "already completed", "job/step already")
            if error.kind != "refused" or not any(words in str(error).lower() for words in gone):
                raise


def version() -> str:
    """Return Slurm's version, such as `22.05.8`.

    Raises:
        SchedulerError: Slurm's commands are not on PATH.
    """
    return call(["sinfo", "--version"]).split()[-1]


def settings() -> dict[str, str]:
    """Return the controller's configuration, such as MaxArraySize, KillWait, AccountingStorageType.

    Raises:
        SchedulerError: the controller did not answer.
    """
    return parse_settings(call(["scontrol", "show", "config"]))
