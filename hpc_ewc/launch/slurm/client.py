"""Asking Slurm, and telling it: the only module that runs squeue, sacct, scontrol, scancel and sinfo.

Each call is a list of arguments (never a shell), has a time limit, and is made in an environment in which the site's or
the user's own SQUEUE_FORMAT and the like change nothing. What is wrong is a SchedulerError that says what was run and
what to do. Calls are few: whoever asks about ten thousand jobs makes two.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection, Iterable
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
from hpc_ewc.node.slurm_command import SEPARATOR, SchedulerError, call, scontrol

__all__ = [
    "Answer",
    "SchedulerError",
    "SlurmJob",
    "accounted",
    "ask",
    "call",
    "cancel",
    "look_up",
    "queue",
    "scontrol",
    "settings",
    "version",
]

ID_LIST_LIMIT = 100_000
"""Characters of one argument: Linux takes 131,072."""
IDS_A_CALL = 1000
DAYS_BACK = 30


# ---------------------------------------------------------------------------------------------- asking


def queue(user: str | None = None, *, ended: bool = False) -> list[SlurmJob]:
    """The jobs of a user that wait or run, array elements each for itself; one call.

    Args:
        user: name or uid; None: whoever asks.
        ended: also those that ended a moment ago, as long as the controller remembers them (minutes).

    Raises:
        SchedulerError: squeue did not answer.
    """
    command = ["squeue", "-h", "-r", "-u", user or str(os.getuid()), "-O", QUEUE_FORMAT]
    command += ["-t", "all"] if ended else []
    try:
        text = call(command)
        jobs = parse_queue(text)
        if not jobs and any(SEPARATOR in line or line.strip() for line in text.splitlines()):
            raise SchedulerError(f"squeue printed what is not known here: {text.splitlines()[0][:80]!r}", "unreadable")
    except SchedulerError as error:
        if error.kind == "silent":
            raise
        jobs = _details(error)
    return jobs if ended else [job for job in jobs if not job.ended]


def _details(error: SchedulerError) -> list[SlurmJob]:
    """The same from scontrol, which prints `Key=value` in every version, where squeue is not there or another one.

    Raises:
        SchedulerError: the error of squeue, where scontrol does not do better.
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
    """What accounting knows of jobs, one call: of these ids, or of one's own of these names.

    Args:
        job_ids: main ids.
        names: exact; sacct's own --name would take the commas in `strength=1,seed=0` for a list.
        since: seconds since the epoch; absent: for ids ever, for names 30 days. Accounting is a second or two late.

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
    """What the scheduler knows of some jobs."""

    jobs: dict[str, list[SlurmJob]]
    """By main id, its elements in order. What nobody knows any more is not in it."""
    unanswered: tuple[SchedulerError, ...] = ()
    """Of the two that were asked, the one that did not answer."""
    queue_answered: bool = True
    """What is not in `jobs` is not in the queue either."""


def ask(main_ids: Iterable[str], since: float | None = None, user: str | None = None) -> Answer:
    """What squeue knows now and what accounting knows of before, at most two calls whatever the number of jobs.

    Args:
        main_ids: of jobs and arrays.
        since: seconds since the epoch, when the first of them may have been submitted.
        user: whose they are; None: one's own.

    Raises:
        SchedulerError: neither answered.
    """
    wanted = set(main_ids)
    if not wanted:
        return Answer({})
    errors: list[SchedulerError] = []

    def attempt(source: Callable[[], list[SlurmJob]]) -> list[SlurmJob]:
        try:
            return source()
        except SchedulerError as error:
            errors.append(error)
            return []

    now = attempt(lambda: queue(user, ended=True))
    queue_answered = not errors
    before = attempt(lambda: accounted(job_ids=wanted, since=since))
    if len(errors) == 2:
        raise SchedulerError(f"{errors[0]}; {errors[1]}", errors[0].kind)
    known = {job.job_id: job for job in before if job.main_id in wanted}
    for job in now:
        if job.main_id in wanted:
            known[job.job_id] = _both(job, known.get(job.job_id))
    by_main: dict[str, list[SlurmJob]] = {}
    for job in sorted(known.values(), key=lambda job: (int(job.main_id), int(job.element or -1))):
        by_main.setdefault(job.main_id, []).append(job)
    return Answer(by_main, tuple(errors), queue_answered)


def _both(now: SlurmJob, before: SlurmJob | None) -> SlurmJob:
    """What squeue says is newer by a second; earlier attempts only accounting remembers."""
    if before is None or before.name != now.name:
        return now
    earlier = before.gpu_s if now.waits else max(before.gpu_s, now.gpu_s)
    return replace(now, restarts=max(now.restarts, before.restarts), gpu_s=earlier)


def look_up(main_ids: Iterable[str], since: float | None = None) -> dict[str, list[SlurmJob]]:
    """By main id, the jobs or elements that Slurm knows of it; an id that nobody knows is not in it.

    Raises:
        SchedulerError: neither squeue nor sacct answered.
    """
    return ask(main_ids, since).jobs


# ---------------------------------------------------------------------------------------------- telling


def cancel(job_ids: Iterable[str]) -> None:
    """Ask Slurm to end jobs, arrays (`123`) or elements (`123_4`, `123_[4-7,9]`): TERM, and after KillWait KILL.

    Those that have ended already are no error.

    Raises:
        SchedulerError: scancel did not answer, or refused one that still is there.
    """
    wanted = list(dict.fromkeys(job_ids))
    for job_id in wanted:
        assert re.fullmatch(r"\d+(_(\d+|\[[\d,-]+\]))?", job_id), job_id
    for start in range(0, len(wanted), IDS_A_CALL):
        try:
            call(["scancel", *wanted[start : start + IDS_A_CALL]])
        except SchedulerError as error:
            gone = ("invalid job id", "already completing", "already completed", "job/step already")
            if error.kind != "refused" or not any(words in str(error).lower() for words in gone):
                raise


# ---------------------------------------------------------------------------------------------- the cluster


def version() -> str:
    """Such as `22.05.8`.

    Raises:
        SchedulerError: Slurm's commands are not here.
    """
    return call(["sinfo", "--version"]).split()[-1]


def settings() -> dict[str, str]:
    """The controller's configuration, such as MaxArraySize, KillWait, AccountingStorageType.

    Raises:
        SchedulerError: the controller did not answer.
    """
    return parse_settings(call(["scontrol", "show", "config"]))
