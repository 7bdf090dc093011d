"""What the stages of an experiment left beside its records: manifests, summaries, and why a cell is not there."""

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
from hpc_ewc.rundir import RunDir, StageDir


@dataclass(frozen=True)
class Missing:
    """A cell that was asked for and has no value."""

    source: str
    run: str
    fraction: float
    cell: str
    why: str


@dataclass(frozen=True)
class Trained:
    """What one training said of itself. Each part is empty where its file is missing or cannot be read."""

    config: Experiment | None
    summary: dict[str, Any]
    """Of done.json."""
    manifest: dict[str, Any]
    fisher: dict[str, Any]
    """Manifest of the Fisher that held it, over the summary of its done.json."""
    folder: StageDir

    @property
    def strength(self) -> float | None:
        """λ, as the resolved configuration has it."""
        return None if self.config is None else self.config.ewc.strength


@dataclass
class Stages:
    """Facts beside the records, of every experiment."""

    experiments: dict[str, Experiment] = field(default_factory=dict)
    """Last submitted, by source."""
    trained: dict[tuple[str, str], Trained] = field(default_factory=dict)
    """By (source, run)."""
    expected: dict[tuple[str, str], set[tuple[float, str]]] = field(default_factory=dict)
    """(fraction, cell) that each evaluated run was asked for, by (source, run)."""
    missing: list[Missing] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def read_stages(collection: Collection) -> Stages:
    """Everything that is not a record, from each experiment's folder. Nothing here raises: it is listed."""
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
        fisher = source.folder.fisher(_name(stage, "fisher"))
        stages.trained[source.label, folder.path.name] = Trained(
            config=config,
            summary=_summary(folder),
            manifest=_read(folder.manifest_json),
            fisher={**_summary(fisher), **_read(fisher.manifest_json)},
            folder=folder,
        )


# ---------------------------------------------------------------------------------------------- missing


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
            if (source.label, stage["run"], fraction, cell) in collection.measured:
                continue
            why = why or explain(source.folder, folder, stage)
            stages.missing.append(Missing(source.label, stage["run"], fraction, cell, why))


def _expected(name: str) -> tuple[float, str]:
    """`1.0:mmlu.en`, as `suites.Cell.at` writes it."""
    fraction, _, cell = name.partition(":")
    with suppress(ValueError):
        return float(fraction), cell
    return 1.0, name


def explain(root: RunDir, folder: StageDir, stage: Mapping[str, Any]) -> str:
    """Why cells of one evaluated run are not there: the first thing upstream that failed or is not finished."""
    train = _name(stage, "train")
    upstream = [("training", root.train(train))] if train else []
    upstream_stage = _read(root.train(train).stage_json, "stage") if train else dict(stage)
    for what in ("tokens", "fisher"):
        name = _name(upstream_stage, what)
        if name:
            upstream.insert(0, (what, root.stage(what, name)))
    for what, before in (*upstream, ("evaluation", folder)):
        failed = _read(before.failed, "failed")
        if failed:
            return f"{what} failed: {first_line(failed['error'])}"
        if not before.done.is_file() and what != "evaluation":
            return f"{what} is not finished{_how_far(before)}"
    return "not evaluated yet"


def _how_far(folder: StageDir) -> str:
    progress = _read(folder.progress())
    done, total, unit = progress.get("done"), progress.get("total"), progress.get("unit")
    return (
        f": {unit} {done:g} of {total:g}" if isinstance(done, (int, float)) and isinstance(total, (int, float)) else ""
    )


def first_line(text: str) -> str:
    """Of a message; the rest is in the file it came from."""
    return next((line.strip() for line in str(text).splitlines() if line.strip()), "")


# ---------------------------------------------------------------------------------------------- not asked for


class Asked:
    """The trainings that an experiment, as it was last submitted, asks for: the points of its grid.

    Compared are the fields that identify a training; what its files held is in its key, which only `submit` computes.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.points = {_identity(point.experiment) for point in sweep.expand(experiment)}

    def has(self, trained: Trained) -> bool:
        """One whose configuration cannot be read is given the benefit of the doubt."""
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


def _name(stage: Mapping[str, Any], what: str) -> str:
    """Folder of an input. Its path is of the machine that submitted; the name is the same wherever runs/ lies now."""
    return Path(str(stage.get("inputs", {}).get(what) or "")).name


def _summary(folder: StageDir) -> dict[str, Any]:
    summary = _read(folder.done, "done").get("summary", {})
    return summary if isinstance(summary, dict) else {}


def _read(path: Path, kind: str | None = None) -> dict[str, Any]:
    """A JSON file, or nothing: the report goes on without what is missing or damaged here."""
    with suppress(ArtefactError, FileNotFoundError, NotADirectoryError):
        return records.read_json(path) if kind is None else records.read_checked(path, kind)
    return {}
