"""The error of a failed attempt on Slurm: written to failed.json, and printed first in the job's log."""

from __future__ import annotations

import socket
import sys

from hpc_ewc.artefacts.artefact import REPORT
from hpc_ewc.artefacts.failure import describe_exit, is_consequence, read_failure, record_failure, write_failure
from hpc_ewc.errors import StageError
from hpc_ewc.node.attempt import warn_if_unwritable
from hpc_ewc.node.node_attempt import NodeAttempt
from hpc_ewc.schemas import Failure


def build_failure(attempt: NodeAttempt, status: int | None) -> StageError:
    """Return the first rank's error for the launcher to raise, and print its traceback first in the log."""
    name = attempt.task.name
    if attempt.task.stage == REPORT:
        return StageError(f"{name}: the report {describe_exit(status)}")
    failed = _recorded_failure(attempt, status)
    trace, error = failed.get("traceback", "").strip(), failed.get("error", "")
    where = f"rank {failed.get('rank', 0)} on {failed.get('node', socket.gethostname())}"
    summary = f"{name} failed: {error} ({where})"
    # a traceback first; anything else is only what the worker printed last
    parts = [trace, summary] if trace.startswith("Traceback") else [summary, trace]
    text = "\n".join(filter(None, parts))
    sys.stderr.write(f"\n{text}\n\n")
    sys.stderr.flush()
    return StageError(text)


def lost_peer(attempt: NodeAttempt, status: int | None) -> bool:
    """Whether the first rank's error only says that a rank of another node is gone."""
    return is_consequence(_recorded_failure(attempt, status).get("error", ""))


def _recorded_failure(attempt: NodeAttempt, status: int | None) -> Failure:
    """The failed.json of this attempt, written now unless a rank wrote it."""
    with warn_if_unwritable(attempt.folder.failed):
        record_failure(attempt.folder, attempt.elements[0].worker, attempt.job, attempt.restart, status)
    return read_failure(attempt.folder)


def write_reason(attempt: NodeAttempt, reason: str) -> None:
    """Write the failed.json of an attempt that started no worker; a report has none."""
    if attempt.task.stage == REPORT:
        return
    failed: Failure = {"error": reason, "traceback": "", "element": attempt.elements[0].worker}
    failed |= {"job_id": attempt.context.job_id, "restart": attempt.restart}
    with warn_if_unwritable(attempt.folder.failed):
        write_failure(attempt.folder, failed)
