"""Checks which artefacts are complete on disk, and writes the files that a worker starts from."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hpc_ewc import records, suites
from hpc_ewc.artefacts.artefact import Artefact
from hpc_ewc.artefacts.failure import last_error
from hpc_ewc.config import render_toml
from hpc_ewc.errors import ArtefactError
from hpc_ewc.rundir import StageDir
from hpc_ewc.schemas import Done

SECTIONS = {"tokens": ("model", "data"), "fisher": ("model", "data", "fisher")}
"""Sections in an artefact's config.toml: those that determine it, not the λ of the run that needed it first."""


@dataclass(frozen=True)
class Completeness:
    """Whether an artefact is complete."""

    done: bool
    missing: tuple[str, ...] = ()
    """`<fraction>:<cell>` of an evaluation that have no current record."""
    failed: str = ""
    """Error of the last attempt."""
    note: str = ""
    """Damaged files that will be made again."""


def check_artefact(artefact: Artefact) -> Completeness:
    """Check whether an artefact is complete.

    Raises:
        ArtefactError: a file is corrupt or not written by hpc-ewc, and losing it would cost more than a cell: the user
            decides what to delete.
    """
    if artefact.stage == "evaluate":
        return _check_evaluation(artefact)
    done = records.read_done(artefact.folder.done, artefact.key) is not None
    return Completeness(done, failed="" if done else last_error(artefact.folder))


def _check_evaluation(artefact: Artefact) -> Completeness:
    """done.json counts if it has today's settings and weights; otherwise each record is checked."""
    with suppress(ArtefactError):  # a record in it was deleted or changed: check the records themselves
        done = records.read_done(artefact.folder.done, artefact.key)
        if done and _settings_of(artefact.folder) == artefact.settings and not _is_of_other_weights(artefact, done):
            return Completeness(True)
    note = ""
    try:
        missing = missing_cells(artefact)
    except ArtefactError as error:  # the worker checks each record again, and replaces what is damaged
        missing, note = tuple(artefact.expected), str(error)
    return Completeness(False, missing, last_error(artefact.folder), note)


def missing_cells(artefact: Artefact) -> tuple[str, ...]:
    """The `<fraction>:<cell>` of an evaluation that have no record, or one with other settings.

    Raises:
        ArtefactError: a record is corrupt or not written by hpc-ewc.
    """
    exists = artefact.folder.path.is_dir()
    recorded = suites.recorded(artefact.folder, _training_of(artefact)) if exists else {}
    return tuple(
        name
        for fraction in artefact.fractions
        for cell in artefact.cells
        if (name := cell.at(fraction)) not in recorded
        or recorded[name]["cell_key"] != _cell_key(artefact, cell, fraction)
    )


def _training_of(artefact: Artefact) -> StageDir | None:
    train = artefact.inputs.get("train")
    return StageDir(Path(train)) if train else None


def _is_of_other_weights(artefact: Artefact, done: Done) -> bool:
    """Whether the training ran again since, and exported other weights than this evaluation measured."""
    measured = done["summary"].get("weights", {})
    exported = suites.exported_weights(_training_of(artefact))
    return any(measured.get(repr(fraction), weights) != weights for fraction, weights in exported.items())


def _cell_key(artefact: Artefact, cell: suites.Cell, fraction: float) -> str:
    """The `cell_key` that the worker will give this cell."""
    questions, config = artefact.inputs.get("questions"), artefact.experiment.evaluate
    named = artefact.inputs.get("heldout", {}).get(cell.text)
    tokens = artefact.inputs.get("tokens")
    heldout = Path(named) if named else StageDir(Path(tokens)).heldout if tokens else None
    folder, judge = Path(questions) if questions else None, artefact.inputs.get("judge")
    data = suites.data_hash(cell, questions=folder, heldout=heldout, include=config.include, judge=judge)
    dtype = artefact.experiment.model.dtype
    return suites.cell_key(cell, checkpoint=artefact.key, fraction=fraction, data=data, config=config, dtype=dtype)


def _settings_of(folder: StageDir) -> str:
    """Settings of the evaluation in this folder; "" if it has none or they cannot be read."""
    with suppress(FileNotFoundError, ArtefactError):
        return str(records.read_json(folder.stage_json).get("settings", ""))
    return ""


def write_stage_files(artefact: Artefact) -> None:
    """Write stage.json and config.toml for a worker; an unfinished evaluation loses its done.json."""
    if artefact.stage == "evaluate":
        artefact.folder.done.unlink(missing_ok=True)
    sections = SECTIONS.get(artefact.stage)
    config = render_toml(artefact.experiment, sections) if sections else render_toml(artefact.experiment)
    records.write_text(artefact.folder.config_toml, config)
    records.write_json(artefact.folder.stage_json, artefact.stage_json)
