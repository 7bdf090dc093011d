"""An artefact, which one stage makes, and its elements, the jobs that make it.

The login node plans artefacts in the graph; a node reads one from stage.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hpc_ewc import records, suites
from hpc_ewc.config import Experiment, load_experiment
from hpc_ewc.errors import ArtefactError
from hpc_ewc.rundir import StageDir
from hpc_ewc.schemas import StageFacts
from hpc_ewc.suites import Cell

REPORT = "report"


@dataclass(frozen=True)
class Element:
    """One job of a stage: the arguments of its worker beside the folder."""

    name: str
    arguments: tuple[str, ...] = ()
    expected: tuple[str, ...] = ()
    """`<fraction>:<cell>` of an evaluation."""

    @property
    def worker(self) -> str:
        """The worker's name in progress/ and failed.json."""
        return worker_name(self.name, self.expected)


def worker_name(element: str, expected: Sequence[str]) -> str:
    """The name of an element's worker. An evaluation's is its first cell, `1.0-mmlu.en`, however cells are dealt."""
    return expected[0].replace(":", "-", 1) if expected else element


@dataclass(frozen=True)
class Artefact:
    """One artefact: the stage that makes it, its folder, its inputs."""

    stage: str
    run: str
    """Name of its folder: a key (tokens, fisher), a run (train, evaluate), "" (report)."""
    key: str
    folder: StageDir
    experiment: Experiment
    """The experiment at this point of the grid, with absolute paths."""
    inputs: dict[str, Any] = field(default_factory=dict)
    coordinates: dict[str, Any] = field(default_factory=dict)
    cells: tuple[Cell, ...] = ()
    fractions: tuple[float, ...] = ()
    settings: str = ""
    """Hash of an evaluation's settings without its checkpoint; if it changes, records are checked again."""

    @property
    def id(self) -> str:
        return f"{self.stage}/{self.run}" if self.run else self.stage

    @property
    def expected(self) -> list[str]:
        """The records of an evaluation; workers of other stages know their own parts."""
        return [cell.at(fraction) for fraction in self.fractions for cell in self.cells]

    @property
    def stage_json(self) -> StageFacts:
        facts = StageFacts(
            schema=records.SCHEMA,
            stage=self.stage,
            run=self.run,
            key=self.key,
            inputs=self.inputs,
            coordinates=self.coordinates,
            expected=self.expected,
        )
        if self.settings:
            facts["settings"] = self.settings
        return facts


def stored_artefact(folder: StageDir) -> Artefact:
    """The artefact that a folder's stage.json describes, for a job, which has no graph.

    Raises:
        ArtefactError: stage.json or config.toml is missing or was not written by `hpc-ewc submit`.
    """
    try:
        facts = records.read_checked(folder.stage_json, "stage")
    except FileNotFoundError:
        raise ArtefactError(f"{folder.path}: no stage.json; not a folder that `hpc-ewc submit` made") from None
    experiment = load_experiment(folder.config_toml)
    cells: list[Cell] = []
    if facts["stage"] == "evaluate":
        heldout = facts["inputs"].get("heldout") or {}
        cells = suites.expand_suites(experiment.evaluate, experiment.data.language, heldout=heldout)
    return Artefact(
        stage=facts["stage"],
        run=facts["run"],
        key=facts["key"],
        folder=folder,
        experiment=experiment,
        inputs=facts["inputs"],
        coordinates=facts["coordinates"],
        cells=tuple(cells),
        fractions=tuple(dict.fromkeys(float(name.partition(":")[0]) for name in facts["expected"])),
        settings=facts.get("settings", ""),
    )
