"""Runs one command of Slurm: on a login node to query jobs, on a node to requeue its own.

A command is a list of arguments (never a shell), has a time limit, and ignores SQUEUE_FORMAT and similar settings of
the site or the user.
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
"""Separates the fields of a command's output."""
TIME_LIMIT_S = 20.0
OWN_SETTINGS = ("SQUEUE_", "SACCT_", "SCANCEL_", "SINFO_", "SCONTROL_")

Kind = Literal["missing", "silent", "refused", "unreadable"]


class SchedulerError(SubmitError):
    """A command of Slurm failed.

    Args:
        message: the command, its result, the fix.
        kind: missing (no such command on this machine), silent (no answer in time, or no connection), refused (Slurm
            answered with an error), unreadable (an answer in an unknown form).
    """

    def __init__(self, message: str, kind: Kind) -> None:
        super().__init__(message)
        self.kind = kind


def call(
    command: Sequence[str],
    time_limit_s: float = TIME_LIMIT_S,
    environment: Mapping[str, str] | None = None,
    *,
    include_stderr: bool = False,
) -> str:
    """Run a command of Slurm and return its output.

    Args:
        command: with its arguments.
        time_limit_s: time after which it is killed.
        environment: further variables.
        include_stderr: return stderr as well.

    Raises:
        SchedulerError: it does not exist, did not answer in time, or ended with a status other than 0.
    """
    shown = shlex.join(command).replace(SEPARATOR, "␟")
    shown = shown if len(shown) < 200 else f"{shown[:180]}…"
    own = {name: value for name, value in os.environ.items() if not name.startswith(OWN_SETTINGS)}
    # BITSTR_LEN: list all elements of a pending array; TIME_FORMAT: as sacct -S reads it
    own |= {"LC_ALL": "C", "SLURM_BITSTR_LEN": "0", "SLURM_TIME_FORMAT": "standard", **(environment or {})}
    try:
        status, out, err = _run(command, own, time_limit_s)
    except subprocess.TimeoutExpired:
        raise SchedulerError(
            f"`{shown}`: no answer in {time_limit_s:g} s; the scheduler is busy or down: try again in a minute "
            "(jobs go on meanwhile)",
            "silent",
        ) from None
    except OSError as error:
        raise SchedulerError(
            f"`{shown}`: {error.strerror or error}; is this a login node of a Slurm cluster, with Slurm's commands on "
            "PATH (module load slurm)?",
            "missing",
        ) from None
    if status != 0:
        raise _refusal(shown, status, err or out)
    return out + err if include_stderr else out


def _run(command: Sequence[str], environment: Mapping[str, str], time_limit_s: float) -> tuple[int, str, str]:
    """Return exit status, stdout and stderr.

    The command runs in a session of its own: Ctrl-C at a terminal reaches only this process, and at the time limit the
    children of a site's wrapper script are killed too, whose open pipes would keep this process waiting.
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


def _refusal(shown: str, status: int, text: str) -> SchedulerError:
    """The error for a command that ended with a status other than 0."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    words = " / ".join(lines[:3]) or "no message"
    low = words.lower()
    if any(sign in low for sign in ("unable to contact", "connection refused", "talking to the database", "timed out")):
        return SchedulerError(
            f'`{shown}` (exit {status}): "{words}"; the scheduler is down or restarting: try again in a minute '
            "(jobs go on meanwhile)",
            "silent",
        )
    if "accounting storage is disabled" in low:
        return SchedulerError(f'`{shown}` (exit {status}): "{words}"; this cluster keeps no accounting', "missing")
    return SchedulerError(f'`{shown}` (exit {status}): "{words}"', "refused")


def scontrol(*arguments: str) -> str:
    """Run `scontrol ARGUMENTS`, such as `requeue 123`, and return its output.

    Raises:
        SchedulerError: Slurm did not answer, or refused.
    """
    return call(["scontrol", *arguments])
