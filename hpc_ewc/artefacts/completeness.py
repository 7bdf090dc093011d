"""What is there of each stage on the disk, and its folder made ready for a worker."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_ewc import records, suites
from hpc_ewc.artefacts.artefact import Artefact
from hpc_ewc.config import render_toml
from hpc_ewc.errors import ArtefactError
from hpc_ewc.rundir import StageDir

SECTIONS = {"tokens": ("model", "data"), "fisher": ("model", "data", "fisher")}
"""Of config.toml: what makes the artefact, not the λ of the run that happened to need it first."""


@dataclass(frozen=True)
class Completeness:
    """What is there of one node."""

    done: bool
    missing: tuple[str, ...] = ()
    """`<fraction>:<cell>` of an evaluation that are not there yet."""
    failed: str = ""
    """The error of the last attempt."""
    note: str = ""
    """What is damaged and will be made again."""


def check_artefact(node: Artefact) -> Completeness:
    """Whether a node's artefact is there, whole.

    Raises:
        ArtefactError: a file that is half-written, changed or foreign, and whose loss would cost more than a cell:
            what to remove is for the user to decide.
    """
    if node.stage == "evaluate":
        return _check_evaluation(node)
    done = records.read_done(node.folder.done, node.key) is not None
    return Completeness(done, failed="" if done else last_error(node.folder))


def _check_evaluation(node: Artefact) -> Completeness:
    """An evaluation is done when it asked what is asked now; else each record says whether it is current."""
    with suppress(ArtefactError):  # a record that it names was deleted or changed: the records themselves tell
        done = records.read_done(node.folder.done, node.key)
        if done is not None and _settings_of(node.folder) == node.settings and not _is_of_other_weights(node, done):
            return Completeness(True)
    note = ""
    try:
        missing = missing_cells(node)
    except ArtefactError as error:  # the worker looks at each record again, and replaces what is damaged
        missing, note = tuple(node.expected), str(error)
    return Completeness(False, missing, last_error(node.folder), note)


def missing_cells(node: Artefact) -> tuple[str, ...]:
    """The `<fraction>:<cell>` of an evaluation that have no record, or one of other settings.

    Raises:
        ArtefactError: a record is half-written or not ours.
    """
    there = suites.recorded(node.folder, _training_of(node)) if node.folder.path.is_dir() else {}
    return tuple(
        cell.at(fraction)
        for fraction in node.fractions
        for cell in node.cells
        if cell.at(fraction) not in there or there[cell.at(fraction)]["cell_key"] != _cell_key(node, cell, fraction)
    )


def _training_of(node: Artefact) -> StageDir | None:
    train = node.inputs.get("train")
    return StageDir(Path(train)) if train else None


def _is_of_other_weights(node: Artefact, done: dict[str, Any]) -> bool:
    """The training was made again since, and exported other weights than this evaluation measured."""
    measured = done["summary"].get("weights", {})
    there = suites.exported_weights(_training_of(node))
    return any(measured.get(repr(fraction), found) != found for fraction, found in there.items())


def _cell_key(node: Artefact, cell: suites.Cell, fraction: float) -> str:
    """The `cell_key` that the worker will give this cell."""
    questions, config = node.inputs.get("questions"), node.experiment.evaluate
    named = node.inputs.get("heldout", {}).get(cell.text)
    tokens = node.inputs.get("tokens")
    heldout = Path(named) if named else StageDir(Path(tokens)).heldout if tokens else None
    folder, judge = Path(questions) if questions else None, node.inputs.get("judge")
    data = suites.data_hash(cell, questions=folder, heldout=heldout, include=config.include, judge=judge)
    dtype = node.experiment.model.dtype
    return suites.cell_key(cell, checkpoint=node.key, fraction=fraction, data=data, config=config, dtype=dtype)


def _settings_of(folder: StageDir) -> str:
    """What the evaluation in this folder asked; "" where there is none or it cannot be read."""
    with suppress(FileNotFoundError, ArtefactError):
        return str(records.read_json(folder.stage_json).get("settings", ""))
    return ""


def last_error(folder: StageDir) -> str:
    """The error in `failed.json`, "" where there is none."""
    return str(read_failure(folder).get("error", ""))


def read_failure(folder: StageDir) -> dict[str, Any]:
    """`failed.json`, or nothing where it is absent; one that cannot be read says so."""
    try:
        return records.read_checked(folder.failed, "failed")
    except FileNotFoundError:
        return {}
    except ArtefactError as error:
        return {"error": str(error), "traceback": ""}


def write_stage_files(node: Artefact) -> None:
    """Write `stage.json` and `config.toml` for a worker; an evaluation that lacks something is done no longer."""
    if node.stage == "evaluate":
        node.folder.done.unlink(missing_ok=True)
    config = render_toml(node.experiment, SECTIONS[node.stage]) if node.stage in SECTIONS else None
    records.write_text(node.folder.config_toml, config or render_toml(node.experiment))
    records.write_json(node.folder.stage_json, node.stage_json)
