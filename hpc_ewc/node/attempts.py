"""attempts.<index>.json: how far each attempt of a job was when it began, and when to give up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hpc_ewc import records, rundir
from hpc_ewc.artefacts.artefact import Element
from hpc_ewc.artefacts.failure import last_error
from hpc_ewc.artefacts.outcome import read_outcome
from hpc_ewc.errors import ArtefactError
from hpc_ewc.node.attempt import warn_if_unwritable
from hpc_ewc.node.node_attempt import NodeAttempt
from hpc_ewc.rundir import StageDir
from hpc_ewc.schemas import AttemptStart

MAX_RESTARTS = 3
"""Restarts without progress, after which a job gives up."""


def begin_attempt(attempt: NodeAttempt) -> str:
    """Record that an attempt begins and how far its artefact is, or return a reason to give up.

    Returns:
        "" or the reason: three restarts without progress, or the previous job of a chain failed.
    """
    task, context = attempt.task, attempt.context
    path = rundir.attempts_file(task.job(task.token), context.index)
    past: list[AttemptStart] = []
    with suppress(FileNotFoundError, ArtefactError, KeyError, TypeError):
        past = list(records.read_json(path)["attempts"])
    if task.link and past and past[-1]["job_id"] != context.job_id:
        previous = str(past[-1]["job_id"])
        if read_outcome(rundir.exit_file(task.job(previous), int(past[-1]["restart"]))) == "failed":
            return f"job {previous}, the previous one of the chain, failed: see failed.json"
    mark = progress_mark(attempt.folder, task.stage, attempt.elements)
    marks = [entry["mark"] for entry in past[-MAX_RESTARTS:]]
    if len(marks) == MAX_RESTARTS and set(marks) == {mark}:
        error = last_error(attempt.folder)
        return (
            f"{MAX_RESTARTS} restarts without progress: still at {mark or 'nothing'}. Give it more time before it is "
            f"stopped (resources.{task.stage}.time_min), or save more often (train.checkpoint_every_s); the output of "
            f"each attempt is in {rundir.rank_logs(attempt.job)}{f'. The last error: {error}' if error else ''}"
        )
    now: AttemptStart = {"job_id": context.job_id, "restart": context.restart, "mark": mark, "at": time.time()}
    with warn_if_unwritable(path):
        records.write_json(path, {"schema": records.SCHEMA, "attempts": [*past[-20:], now]})
    return ""


def progress_mark(folder: StageDir, stage: str, elements: Sequence[Element]) -> str:
    """How far an artefact is, as a text that changes whenever a restart would begin further on."""

    def newest(place: Path) -> str:
        return max((path.name for path in place.glob("*") if path.name.isdigit()), default="")

    match stage:
        case "train":
            step = max(newest(folder.checkpoints), newest(folder.exports))
            return f"step {step}" if step else ""
        case "fisher":
            position = newest(folder.fisher_partial)
            return f"example {position}" if position else ""
        case "tokens":
            parts = len(list(folder.parts.glob("*.json")))
            return f"{parts} parts" if parts else ""
        case "evaluate":
            wanted = {name.partition(":")[2] for element in elements for name in element.expected}
            cells = [path for path in folder.path.glob("[0-9]*/*.json") if path.name.removesuffix(".json") in wanted]
            return f"{len(cells)} cells" if cells else ""
    return ""
