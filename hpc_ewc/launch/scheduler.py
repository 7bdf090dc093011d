"""Asking Slurm, and telling it: the only module that runs squeue, sacct, scontrol, scancel and sinfo.

Each call is a list of arguments (never a shell), has a time limit, and is made in an environment in which the site's or
the user's own SQUEUE_FORMAT and the like change nothing. What is wrong is a SchedulerError that says what was run and
what to do. Calls are few: whoever asks about ten thousand jobs makes two.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from hpc_ewc.errors import SubmitError
from hpc_ewc.launch.slurm_output import (
    ACCOUNT_FIELDS,
    QUEUE_FORMAT,
    SEPARATOR,
    SlurmJob,
    parse_accounting,
    parse_details,
    parse_queue,
    parse_settings,
)

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
    "settings",
    "tell",
    "version",
]

TIME_LIMIT_S = 20.0
ID_LIST_LIMIT = 100_000
"""Characters of one argument: Linux takes 131,072."""
IDS_A_CALL = 1000
DAYS_BACK = 30
OWN_SETTINGS = ("SQUEUE_", "SACCT_", "SCANCEL_", "SINFO_", "SCONTROL_")

Kind = Literal["missing", "silent", "refused", "unreadable"]


class SchedulerError(SubmitError):
    """Slurm could not be asked, or said no.

    Args:
        message: what was run, what came of it, what to do.
        kind: missing (no such command here), silent (no answer in time, or no connection), refused (an answer, and it
            is no), unreadable (an answer of another form than any known).
    """

    def __init__(self, message: str, kind: Kind) -> None:
        super().__init__(message)
        self.kind = kind


def call(
    command: Sequence[str],
    time_limit_s: float = TIME_LIMIT_S,
    environment: Mapping[str, str] | None = None,
    *,
    errors_too: bool = False,
) -> str:
    """What a command of Slurm prints.

    Args:
        command: with its arguments.
        time_limit_s: after which it is killed.
        environment: further variables.
        errors_too: what it prints to stderr as well.

    Raises:
        SchedulerError: it is not here, did not answer in time, or ended with another status than 0.
    """
    said = shlex.join(command).replace(SEPARATOR, "␟")
    said = said if len(said) < 200 else f"{said[:180]}…"
    own = {name: value for name, value in os.environ.items() if not name.startswith(OWN_SETTINGS)}
    # BITSTR_LEN: a pending array's list of elements whole; TIME_FORMAT: as sacct's own -S takes it
    own |= {"LC_ALL": "C", "SLURM_BITSTR_LEN": "0", "SLURM_TIME_FORMAT": "standard", **(environment or {})}
    try:
        status, out, err = _run(command, own, time_limit_s)
    except subprocess.TimeoutExpired:
        raise SchedulerError(
            f"`{said}`: no answer in {time_limit_s:g} s; the scheduler is busy or down: try again in a minute "
            "(jobs go on meanwhile)",
            "silent",
        ) from None
    except OSError as error:
        raise SchedulerError(
            f"`{said}`: {error.strerror or error}; is this a login node of a Slurm cluster, with Slurm's commands on "
            "PATH (module load slurm)?",
            "missing",
        ) from None
    if status != 0:
        raise _refusal(said, status, err or out)
    return out + err if errors_too else out


def _run(command: Sequence[str], environment: Mapping[str, str], time_limit_s: float) -> tuple[int, str, str]:
    """Exit status, stdout and stderr. In a session of its own: Ctrl-C at a terminal reaches us, who decide what becomes
    of it; and at the limit what a site's wrapper script started goes with it, or its pipes would keep us waiting.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True
    ) as process:
        try:
            out, err = process.communicate(timeout=time_limit_s)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, out.decode(errors="replace"), err.decode(errors="replace")


def _refusal(said: str, status: int, text: str) -> SchedulerError:
    """What an ending with another status than 0 means."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    words = " / ".join(lines[:3]) or "it said nothing"
    low = words.lower()
    if any(sign in low for sign in ("unable to contact", "connection refused", "talking to the database", "timed out")):
        return SchedulerError(
            f'`{said}` (exit {status}): "{words}"; the scheduler is down or restarting: try again in a minute (jobs go '
            "on meanwhile)",
            "silent",
        )
    if "accounting storage is disabled" in low:
        return SchedulerError(f'`{said}` (exit {status}): "{words}"; this cluster keeps no accounting', "missing")
    return SchedulerError(f'`{said}` (exit {status}): "{words}"', "refused")


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


def tell(*arguments: str) -> str:
    """What `scontrol ARGUMENTS` prints, such as of `requeue 123`.

    Raises:
        SchedulerError: it did not answer, or refused.
    """
    return call(["scontrol", *arguments])


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
