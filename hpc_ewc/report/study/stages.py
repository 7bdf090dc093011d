"""Reads what the stages left beside the records: manifests, summaries, and why a cell is missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc_ewc import records, sweep
from hpc_ewc.config import Experiment, load_experiment
from hpc_ewc.errors import ArtefactError, ConfigError
from hpc_ewc.report.study.collect import Collection, Problem, Source
from hpc_ewc.report.study.json_numbers import find_bad_number, finite_number
from hpc_ewc.rundir import RunDir, StageDir


@dataclass(frozen=True)
class Missing:
    """A cell that the experiment requests and that has no value."""

    source: str
    run: str
    fraction: float
    cell: str
    why: str


@dataclass(frozen=True)
class Trained:
    """Files of one training. A part is empty if its file is missing or cannot be read."""

    config: Experiment | None
    summary: dict[str, Any]
    """From done.json."""
    manifest: dict[str, Any]
    fisher: dict[str, Any]
    """Manifest of the Fisher that it used, over the summary of the Fisher's done.json."""
    folder: StageDir

    @property
    def strength(self) -> float | None:
        """λ in the resolved configuration."""
        return None if self.config is None else self.config.ewc.strength


@dataclass
class Stages:
    """Facts beside the records, of every experiment."""

    experiments: dict[str, Experiment] = field(default_factory=dict)
    """Last submitted, by source."""
    trained: dict[tuple[str, str], Trained] = field(default_factory=dict)
    """By (source, run)."""
    expected: dict[tuple[str, str], set[tuple[float, str]]] = field(default_factory=dict)
    """(fraction, cell) requested of each evaluated run, by (source, run)."""
    missing: list[Missing] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def read_stages(collection: Collection) -> Stages:
    """Everything in the run folders but the records. Nothing here raises: files that cannot be read are listed."""
    stages = Stages()
    for source in collection.sources:
        _read_experiment(source, stages)
        _read_trained(source, stages)
        _find_missing(source, collection, stages)
    return stages


def _read_experiment(source: Source, stages: Stages) -> None:
    path = source.folder.experiment_toml
    if not path.is_file():
        return
    try:
        stages.experiments[source.label] = load_experiment(path)
    except ConfigError as error:
        stages.problems.append(Problem(f"{source.label}/{path.name}", str(error).removeprefix(f"{path}: ")))


def _read_trained(source: Source, stages: Stages) -> None:
    for folder in _folders(source.folder.root / "train"):
        stage = _read(folder.stage_json, "stage")
        config = None
        with suppress(ConfigError):
            config = load_experiment(folder.config_toml)
        fisher = source.folder.fisher(_input_name(stage, "fisher"))
        stages.trained[source.label, folder.path.name] = Trained(
            config=config,
            summary=_summary(folder),
            manifest=_read(folder.manifest_json),
            fisher={**_summary(fisher), **_read(fisher.manifest_json)},
            folder=folder,
        )


# ---------------------------------------------------------------------------------------------- missing cells


def _find_missing(source: Source, collection: Collection, stages: Stages) -> None:
    failed = {
        (record["run"], float(record["fraction"]), record["cell"]): str(record.get("error") or "no reason given")
        for record in collection.records
        if record["source"] == source.label and record["status"] != "ok"
    }
    for run, fraction, cell in sorted(failed):
        stages.missing.append(Missing(source.label, run, fraction, cell, failed[run, fraction, cell]))
    for folder in _folders(source.folder.root / "evaluate"):
        stage = _read(folder.stage_json, "stage")
        if not stage:
            continue
        why = ""
        expected = [_expected(str(name)) for name in stage["expected"]]
        stages.expected[source.label, stage["run"]] = set(expected)
        for fraction, cell in expected:
            if (source.label, stage["run"], fraction, cell) not in collection.measured:
                why = why or explain(source.folder, folder, stage)
                stages.missing.append(Missing(source.label, stage["run"], fraction, cell, why))


def _expected(name: str) -> tuple[float, str]:
    """Fraction and cell of `1.0:mmlu.en`, as `suites.Cell.at` writes it."""
    fraction, _, cell = name.partition(":")
    with suppress(ValueError):
        return float(fraction), cell
    return 1.0, name


def explain(root: RunDir, folder: StageDir, stage: Mapping[str, Any]) -> str:
    """Why cells of one evaluated run are missing: the first stage upstream that failed or is not finished."""
    train = _input_name(stage, "train")
    upstream = [("training", root.train(train))] if train else []
    upstream_stage = _read(root.train(train).stage_json, "stage") if train else dict(stage)
    for what in ("tokens", "fisher"):
        name = _input_name(upstream_stage, what)
        if name:
            upstream.insert(0, (what, root.stage(what, name)))
    for what, before in (*upstream, ("evaluation", folder)):
        failed = _read(before.failed, "failed")
        if failed:
            return f"{what} failed: {first_line(failed['error'])}"
        if not before.done.is_file() and what != "evaluation":
            return f"{what} is not finished{_progress(before)}"
    return "not evaluated yet"


def _progress(folder: StageDir) -> str:
    progress = _read(folder.progress())
    done, total = finite_number(progress.get("done")), finite_number(progress.get("total"))
    return "" if done is None or total is None else f": {progress.get('unit')} {done:g} of {total:g}"


def first_line(text: str) -> str:
    """The first line of a message that is not empty; the rest is in the file it came from."""
    return next((line.strip() for line in str(text).splitlines() if line.strip()), "")


# ---------------------------------------------------------------------------------------------- requested runs


class RequestedRuns:
    """The trainings that an experiment requests, as it was last submitted: the points of its grid.

    Trainings are compared by the fields that identify them; the contents of their input files are part of the key,
    which only `submit` computes.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.points = {_identity(point.experiment) for point in sweep.expand(experiment)}

    def __contains__(self, trained: Trained) -> bool:
        """Whether a training is requested; one whose configuration cannot be read counts as requested."""
        return trained.config is None or _identity(trained.config) in self.points


def _identity(experiment: Experiment) -> tuple[Any, ...]:
    parts = (experiment.model, experiment.data, experiment.fisher, experiment.ewc, experiment.train)
    paths = {"path", "files", "source"}  # made absolute, or resolved, on the way to the job
    return tuple(
        getattr(part, f.name)
        for part in parts
        for f in dataclasses.fields(part)
        if f.metadata["identifies"] and f.name not in paths
    )


# ---------------------------------------------------------------------------------------------- files


def _folders(parent: Path) -> list[StageDir]:
    children = sorted(parent.iterdir()) if parent.is_dir() else []
    return [StageDir(child) for child in children if child.is_dir() and not child.name.startswith(".")]


def _input_name(stage: Mapping[str, Any], what: str) -> str:
    """Folder name of an input. Its path is of the machine that submitted; the name holds wherever runs/ is now."""
    return Path(str(stage.get("inputs", {}).get(what) or "")).name


def _summary(folder: StageDir) -> dict[str, Any]:
    summary = _read(folder.done, "done").get("summary", {})
    return summary if isinstance(summary, dict) else {}


def _read(path: Path, kind: str | None = None) -> dict[str, Any]:
    """A JSON file, or nothing: the report goes on without files that are missing or damaged."""
    with suppress(ArtefactError, FileNotFoundError, NotADirectoryError):
        value = records.read_json(path) if kind is None else records.read_checked(path, kind)
        return {} if find_bad_number(value) else value
    return {}
