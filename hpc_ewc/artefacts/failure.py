"""failed.json: why the last attempt at an artefact failed. A rank writes it; if it could not, its launcher does."""

from __future__ import annotations

import re
import socket
from pathlib import Path

from hpc_ewc import records
from hpc_ewc.artefacts.job_logs import first_error, killed_rank, last_exception, tail
from hpc_ewc.errors import ArtefactError
from hpc_ewc.rundir import StageDir
from hpc_ewc.schemas import Failure

CONSEQUENCE = re.compile(
    r"another rank of this job ended|connection (closed|reset|refused)|broken pipe|socket timeout|Rendezvous\w*Error|"
    r"Dist(Network|Store|Backend)Error|recvValue failed|NCCL|Gloo connect|heartbeat",
    re.IGNORECASE,
)


def read_failure(folder: StageDir) -> Failure:
    """failed.json, empty if there is none; if it cannot be read, the error says so."""
    try:
        return records.read_checked(folder.failed, "failed")
    except FileNotFoundError:
        return {}
    except ArtefactError as error:
        return {"error": str(error), "traceback": ""}


def last_error(folder: StageDir) -> str:
    """The error in failed.json, "" if there is none."""
    return read_failure(folder).get("error", "")


def is_of_attempt(failed: Failure, job_id: str, restart: int) -> bool:
    return (failed.get("job_id"), failed.get("restart")) == (job_id, restart)


def write_failure(folder: StageDir, failed: Failure) -> None:
    """Write failed.json, with defaults for what a launcher does not know."""
    defaults: Failure = {"schema": records.SCHEMA, "error": "", "traceback": "", "rank": 0}
    defaults |= {"node": socket.gethostname(), "samples": None}
    records.write_json(folder.failed, defaults | failed)


def record_failure(folder: StageDir, worker: str, job: Path, restart: int, status: int | None) -> None:
    """Write failed.json for an attempt whose worker could not: killed, or dead before it knew its folder.

    Args:
        folder: of the artefact.
        worker: name of the element's worker.
        job: runs/NAME/jobs/<job_id>.
        restart: number of the attempt.
        status: exit status of the worker; None if the launcher was killed too.
    """
    known = read_failure(folder)
    known_here = is_of_attempt(known, job.name, restart)
    if known_here and not is_consequence(known.get("error", "")):
        return
    errors = [found for found in (first_error(job, restart), killed_rank(job, restart)) if found]
    cause = next((found for found in errors if not is_consequence(found.error)), None)
    if known_here and cause is None:
        return
    printed = tail(job, restart=restart)
    error = cause or next(iter(errors), None)
    words = error.error if error else last_exception(printed) or f"the worker {describe_exit(status)}"
    failed: Failure = {"error": words, "traceback": (error.traceback if error else "") or printed}
    failed |= {"rank": error.rank if error else 0, "element": worker, "job_id": job.name, "restart": restart}
    write_failure(folder, failed)


def describe_exit(status: int | None) -> str:
    """Return in words how a worker ended that did not finish."""
    if status is None:
        return "was killed, and its launcher with it"
    if status < 0:
        return f"was killed by signal {-status}"
    return f"ended with status {status}" + ("" if status else ", not done")


def is_consequence(error: str) -> bool:
    """Whether a rank only reports that it lost another: the cause is elsewhere, or that node is gone."""
    return CONSEQUENCE.search(error) is not None
