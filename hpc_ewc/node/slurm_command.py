"""Runs one command of Slurm: on a login node to ask about jobs, on a node to requeue its own.

Each call is a list of arguments (never a shell), has a time limit, and is made in an environment in which the site's or
the user's own SQUEUE_FORMAT and the like change nothing.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Literal

from hpc_ewc.errors import SubmitError

SEPARATOR = "\x1f"
"""Between two fields of what a command prints."""
TIME_LIMIT_S = 20.0
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


def scontrol(*arguments: str) -> str:
    """What `scontrol ARGUMENTS` prints, such as of `requeue 123`.

    Raises:
        SchedulerError: it did not answer, or refused.
    """
    return call(["scontrol", *arguments])
