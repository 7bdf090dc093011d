"""What a job that failed says on Slurm: `failed.json`, and the first thing in its log."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from hpc_ewc import records
from hpc_ewc.artefacts.artefact import REPORT, Element, stored_artefact
from hpc_ewc.artefacts.completeness import read_failure
from hpc_ewc.artefacts.outcome import Exit, explain, is_consequence
from hpc_ewc.errors import StageError
from hpc_ewc.node.history import unless_full
from hpc_ewc.node.task import SlurmContext, SlurmTask
from hpc_ewc.rundir import StageDir


def build_failure(task: SlurmTask, here: SlurmContext, element: Element, ended: Exit) -> StageError:
    """The first rank's error, for the launcher to raise; its traceback is now the first thing that the log says.

    Args:
        task: of the job.
        here: this node.
        element: of this job, the first.
        ended: what this node's workers ended with.
    """
    if task.stage == REPORT:
        return StageError(f"{task.name}: the report {ended.words}")
    failed = _explained(task, here, element, ended)
    trace, error = str(failed.get("traceback", "")).strip(), str(failed.get("error", ""))
    where = f"rank {failed.get('rank', 0)} on {failed.get('node', socket.gethostname())}"
    said = f"{task.name} failed: {error} ({where})"
    parts = [trace, said] if trace.startswith("Traceback") else [said, trace]  # else what it printed last
    text = "\n".join(filter(None, parts))
    sys.stderr.write(f"\n{text}\n\n")
    sys.stderr.flush()
    return StageError(text)


def lost_another(task: SlurmTask, here: SlurmContext, element: Element, ended: Exit) -> bool:
    """Whether the first rank's error says only that a rank of another node is gone; args as of `build_failure`."""
    return is_consequence(str(_explained(task, here, element, ended).get("error", "")))


def _explained(task: SlurmTask, here: SlurmContext, element: Element, ended: Exit) -> dict[str, object]:
    """`failed.json` of this attempt, written unless a rank did so."""
    node = stored_artefact(StageDir(Path(task.folder)))
    with unless_full(node.folder.failed):
        explain(node, element, task.job(here.job_id), here.restart, ended)
    return read_failure(node.folder)


def write_reason(task: SlurmTask, here: SlurmContext, element: Element, reason: str) -> None:
    """`failed.json` of an attempt that started no worker; a report has none."""
    if task.stage == REPORT:
        return
    facts = {"schema": records.SCHEMA, "error": reason, "traceback": "", "rank": 0, "samples": None}
    facts |= {"element": element.worker, "node": socket.gethostname(), "job_id": here.job_id, "restart": here.restart}
    failed = StageDir(Path(task.folder)).failed
    with unless_full(failed):
        records.write_json(failed, facts)
