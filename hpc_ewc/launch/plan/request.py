"""A request to run stages, from an experiment file or for given checkpoints, and the folders that it gets."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hpc_ewc.config import NAME_PATTERN, Experiment, load_experiment
from hpc_ewc.errors import ConfigError
from hpc_ewc.launch.inputs.resolver import Resolver
from hpc_ewc.launch.inputs.source_files import local_path
from hpc_ewc.launch.plan.build_graph import build_graph
from hpc_ewc.launch.plan.graph import Graph
from hpc_ewc.launch.profile.keys import Profile
from hpc_ewc.rundir import RunDir
from hpc_ewc.sweep import expand


@dataclass(frozen=True)
class Request:
    """Stages to run: those of an experiment file, or the evaluation of given checkpoints."""

    label: str
    """The file that errors name."""
    text: str
    """Content of the run folder's `experiment.toml`."""
    experiment: Experiment
    build: Callable[[Resolver, RunDir, Profile], Graph]
    resume_command: str
    allows_missing_inputs: bool = False
    """A dry run shows it although inputs are not downloaded yet."""
    model_config: Path | None = None
    """config.json of the model, for a dry run without the model."""


def load_request(sweep: Path, model_config: Path | None = None) -> Request:
    """Return the request that an experiment file makes.

    Raises:
        ConfigError: the file cannot be read, or a key or value in it is wrong.
    """
    experiment = load_experiment(sweep)

    def build(resolver: Resolver, root: RunDir, profile: Profile) -> Graph:
        points = [(point, resolver.resolve(point.experiment)) for point in expand(experiment)]
        return build_graph(root, points, experiment, profile, str(sweep))

    return Request(
        label=str(sweep),
        text=sweep.read_text(encoding="utf-8"),
        experiment=experiment,
        build=build,
        resume_command=shlex.join(["hpc-ewc", "submit", relative_path(sweep)]),
        allows_missing_inputs=True,
        model_config=model_config,
    )


def run_folder(name: str, label: str, profile: Profile, runs: Path | None) -> RunDir:
    """Return the run folder `RUNS/NAME`, as an absolute path; `label` is what errors name.

    Raises:
        ConfigError: the name is not allowed for an experiment.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise ConfigError(
            f"{label}: its name becomes the name of the run folder and of jobs: small letters, digits, '.', '_', '-', "
            "and a letter or digit first; rename it"
        )
    return RunDir(local_path(str(runs or profile.runs or "runs")) / name)


def tables_folder(root: RunDir, out: Path | None) -> Path:
    """Return the folder of the tables: `--out`, else the run folder's own.

    Raises:
        ConfigError: a file is in the place of the run folder or of the folder of the tables.
    """
    tables = local_path(str(out)) if out else root.report
    for what, folder, flag in (("the run folder", root.root, "--runs"), ("the folder of the tables", tables, "--out")):
        existing = next(place for place in (folder, *folder.parents) if place.exists())
        if not existing.is_dir():
            raise ConfigError(f"{flag}: {what} would be {folder}, but {existing} is a file; name another folder")
    return tables


def relative_path(path: Path) -> str:
    """Return a path relative to the current folder if it is below it."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
