"""Outcome of an attempt, decided from files alone: an exit status of 0 says nothing by itself.

done.json (or the element's records) → finished; else a stop file → stopped; else failed. submitit's result pickles and
job states are not used: it reports `sys.exit(3)` as FINISHED.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, cast

from hpc_ewc import records, rundir
from hpc_ewc.artefacts.artefact import Artefact, Element
from hpc_ewc.artefacts.completeness import check_artefact, missing_cells
from hpc_ewc.errors import ArtefactError
from hpc_ewc.rundir import RunDir
from hpc_ewc.schemas import AttemptExit

Outcome = Literal["finished", "stopped", "failed"]


def decide_outcome(
    artefact: Artefact | None, elements: Sequence[Element], job: Path, restart: int, status: int | None
) -> Outcome:
    """How an attempt of some elements ended.

    Args:
        artefact: what the elements make; None for a report, which only its exit status tells of.
        elements: of the job.
        job: runs/NAME/jobs/<job_id>.
        restart: number of the attempt.
        status: first exit status of a worker that is not 0; None if the launcher was killed.
    """
    stopped = rundir.stop_file(job, restart).exists()
    ended_well = status == 0 and not stopped
    if status == 0 if artefact is None else _is_complete(artefact, elements, ended_well=ended_well):
        return "finished"
    return "stopped" if stopped else "failed"


def _is_complete(artefact: Artefact, elements: Sequence[Element], *, ended_well: bool) -> bool:
    try:
        if check_artefact(artefact).done:
            return True
        if artefact.stage == "evaluate":
            wanted = {name for element in elements for name in element.expected}
            return not wanted & set(missing_cells(artefact))
    except ArtefactError:
        return False
    # a part of the tokens: the last part checks whether the set is complete
    return ended_well and all("--part" in element.arguments for element in elements)


def read_exit(path: Path) -> AttemptExit:
    """The exit file of an attempt; empty if the attempt has not ended, or the file cannot be read."""
    with suppress(FileNotFoundError, ArtefactError, OSError):
        return cast(AttemptExit, records.read_json(path))
    return {}


def read_outcome(path: Path) -> str | None:
    """The outcome that a launcher on Slurm wrote to its exit file; None if the attempt has not ended."""
    return read_exit(path).get("outcome") or None


def report_fingerprint(root: RunDir, runs: Sequence[str]) -> str:
    """A hash of everything a report of these evaluations reads: which of them were finished, and when."""
    finished = {}
    for run in runs:
        done = root.evaluate(run).done
        if done.is_file():
            finished[f"evaluate/{run}"] = records.read_json(done)["finished_at"]
    return records.key_of(finished)
