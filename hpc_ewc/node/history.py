"""What earlier attempts of a job left: how each ended, how far each began; and when to give up."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hpc_ewc import records, rundir
from hpc_ewc.artefacts.artefact import Element
from hpc_ewc.artefacts.completeness import read_failure
from hpc_ewc.errors import ArtefactError
from hpc_ewc.node.task import SlurmContext, SlurmTask
from hpc_ewc.rundir import StageDir

TRIES = 3
"""Restarts without progress, after which a job gives up."""


@contextmanager
def unless_full(path: Path) -> Iterator[None]:
    """What cannot be written, on a full disk say, must not hide what it is about."""
    try:
        yield
    except OSError as error:
        sys.stderr.write(f"{path}: cannot be written: {error}\n")


def read_outcome(path: Path) -> str | None:
    """How an attempt ended, as its launcher wrote it; None while it has not."""
    with suppress(FileNotFoundError, ArtefactError, OSError):
        found = records.read_json(path).get("outcome")
        return str(found) if found else None
    return None


def begin_attempt(task: SlurmTask, here: SlurmContext, elements: Sequence[Element]) -> str:
    """Note that an attempt begins, and how far its artefact is; or why it should not begin.

    Args:
        task: of the job.
        here: where and which attempt this is.
        elements: of this job.

    Returns:
        "" or a reason to give up: three restarts that made nothing, or the job before in a chain failed.
    """
    path = rundir.attempts_file(task.job(task.token), here.index)
    past: list[dict[str, Any]] = []
    with suppress(FileNotFoundError, ArtefactError, KeyError, TypeError):
        past = list(records.read_json(path)["attempts"])
    if task.link and past and past[-1]["job_id"] != here.job_id:
        before = task.job(str(past[-1]["job_id"]))
        if read_outcome(rundir.exit_file(before, int(past[-1]["restart"]))) == "failed":
            return f"job {past[-1]['job_id']}, which came before in the chain, failed: see failed.json"
    folder = StageDir(Path(task.folder))
    mark = progress_mark(folder, task.stage, elements)
    tries = [entry["mark"] for entry in past[-TRIES:]]
    if len(tries) == TRIES and set(tries) == {mark}:
        error = read_failure(folder).get("error")
        said = f". The last one: {error}" if error else ""
        return (
            f"{TRIES} restarts without progress: still at {mark or 'nothing'}. Give it more time before it is stopped "
            f"(resources.{task.stage}.time_min), or save more often (train.checkpoint_every_s); what each attempt "
            f"printed is in {rundir.rank_logs(task.job(here.job_id))}{said}"
        )
    now = {"job_id": here.job_id, "restart": here.restart, "mark": mark, "at": time.time()}
    with unless_full(path):
        records.write_json(path, {"schema": records.SCHEMA, "attempts": [*past[-20:], now]})
    return ""


def progress_mark(folder: StageDir, stage: str, elements: Sequence[Element]) -> str:
    """How far an artefact is, as a text that changes whenever a restart would begin further on."""

    def newest(place: Path) -> str:
        names = [path.name for path in place.iterdir() if path.name.isdigit()] if place.is_dir() else []
        return max(names, default="")

    if stage == "train":
        steps = [newest(folder.checkpoints), newest(folder.exports)]
        return f"step {max(steps)}" if any(steps) else ""
    if stage == "fisher":
        position = newest(folder.fisher_partial)
        return f"example {position}" if position else ""
    if stage == "tokens":
        parts = len(list(folder.parts.glob("*.json"))) if folder.parts.is_dir() else 0
        return f"{parts} parts" if parts else ""
    if stage == "evaluate":
        wanted = {name.partition(":")[2] for element in elements for name in element.expected}
        cells = sorted(p.name for p in folder.path.glob("[0-9]*/*.json") if p.name.removesuffix(".json") in wanted)
        return f"{len(cells)} cells" if cells else ""
    return ""
