"""Reads what ranks, torchrun and submitit left in a job's folder: error files, stderr, torchrun's own log."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from hpc_ewc import rundir

TAIL_LINES = 30
ROOT_CAUSE = re.compile(r"Root Cause[^\n]*:\n(?:.*\n)*?\s*rank\s*: (\d+).*\n(?:.*\n)*?\s*traceback : (Signal .*)")
"""torchrun's lines about the rank that it saw die first, if that was by a signal."""


class RankError(NamedTuple):
    """The error of one rank."""

    error: str
    traceback: str = ""
    rank: int = 0


def first_error(job: Path, restart: int = 0) -> RankError | None:
    """The first of torchrun's error files; None if no rank could write one."""
    found: list[tuple[float, RankError]] = []
    for path in attempt_logs(job, restart).rglob("error.json"):
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            message = json.loads(path.read_text(encoding="utf-8"))["message"]
            extra = message["extraInfo"]
            error = RankError(str(message["message"]), str(extra.get("py_callstack", "")), int(path.parent.name))
            found.append((float(extra["timestamp"]), error))
    return min(found, key=lambda entry: (entry[0], entry[1].rank))[1] if found else None


def killed_rank(job: Path, restart: int = 0) -> RankError | None:
    """The rank that torchrun saw die first, if that was by a signal such as SIGKILL."""
    for path in [*torchrun_logs(job, restart), *launcher_logs(job)]:
        if found := ROOT_CAUSE.findall(last_lines(path, 200)):
            rank, words = found[-1]
            return RankError(f"rank {rank}: {words.strip()}", rank=int(rank))
    return None


def last_exception(text: str) -> str:
    """The last line of a Python traceback, if the text ends with one."""
    last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    return last if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", last) else ""


def tail(job: Path, lines: int = TAIL_LINES, restart: int | None = None) -> str:
    """The last lines on stderr of the ranks, or else of torchrun or submitit's task; of one attempt or of all."""
    for files in (error_logs(job, restart), torchrun_logs(job, restart), launcher_logs(job)):
        texts = [text for path in files if (text := last_lines(path, lines))]
        if texts:
            return "\n".join(texts)
    return ""


def attempt_logs(job: Path, restart: int | None) -> Path:
    """The folder of one attempt's logs. A local job has one attempt, and no folder for it."""
    own = rundir.rank_logs(job) / f"restart_{restart}"
    return own if own.is_dir() else rundir.rank_logs(job)


def error_logs(job: Path, restart: int | None = None) -> Iterable[Path]:
    return sorted(attempt_logs(job, restart).rglob("stderr.log"))


def torchrun_logs(job: Path, restart: int | None = None) -> Iterable[Path]:
    """Torchrun's own output on each node, of one attempt or of all."""
    return sorted(rundir.rank_logs(job).glob(f"restart_{'*' if restart is None else restart}/node_*/torchrun.log"))


def launcher_logs(job: Path) -> Iterable[Path]:
    """Stderr of submitit's tasks."""
    return sorted(job.glob("*_log.err"))


def last_lines(path: Path, lines: int) -> str:
    """The last lines of a file of any size; "" if it cannot be read."""
    with suppress(OSError), path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 400 * lines))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    return ""
