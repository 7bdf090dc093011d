"""Inputs that are not in this machine's cache: a dry run lists them and continues, a submit refuses."""

from __future__ import annotations

from pathlib import Path

from hpc_ewc import hub, suites
from hpc_ewc.config import ModelConfig
from hpc_ewc.errors import InputError
from hpc_ewc.launch.inputs.resolver import Resolver
from hpc_ewc.launch.plan.graph import Graph

NOT_FETCHED = "not-fetched"
"""Stands for the commit; keys made from it differ from those of a submit."""


class LenientResolver(Resolver):
    """Resolves what it can, and notes in `missing` what is not in the cache or not complete."""

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self.missing: dict[str, str] = {}
        """Kind of input, by hub id."""
        self.missing_models: set[Path] = set()
        """Folders that the models would have."""

    def _model(self, config: ModelConfig) -> tuple[str, str, str]:
        try:
            return super()._model(config)
        except InputError:
            self.missing[config.path] = "model"
            snapshot = hub.cached_snapshot("model", config.path, config.revision)
            folder = snapshot or hub.cache() / NOT_FETCHED / config.path
            self.missing_models.add(folder)
            return str(folder), f"{config.path}@{NOT_FETCHED}", f"{config.path}@{NOT_FETCHED}"

    def _check_trainable(self, folder: Path) -> None:
        if folder not in self.missing_models:
            super()._check_trainable(folder)

    def _files(
        self, table: str, source: str, files: tuple[str, ...], subset: str, split: str
    ) -> tuple[tuple[str, ...], str]:
        try:
            return super()._files(table, source, files, subset, split)
        except InputError:
            self.missing[source] = "corpus" if table == "data" else "questions of the Fisher"
            return (), f"{source}@{NOT_FETCHED}"


def missing_benchmarks(graph: Graph) -> dict[str, str]:
    """Return the hub's data sets that the evaluations of a graph need and that are not in the cache."""
    sources = {}
    for node in graph.of("evaluate"):
        for cell in node.cells if "questions" not in node.inputs else ():
            if cell.task in suites.TASKS and cell.language in (known := suites.TASKS[cell.task].sources):
                sources[known[cell.language].path] = known[cell.language]
    missing = {path: source for path, source in sources.items() if suites.hub_commit(path) is None}
    return {path: "gated benchmark" if source.gated else "benchmark" for path, source in missing.items()}


def describe_missing_inputs(missing: dict[str, str], prefetch: str) -> list[str]:
    """Return lines that name the missing inputs and the command that downloads them."""
    if not missing:
        return []
    by_kind: dict[str, list[str]] = {}
    for name, kind in missing.items():
        by_kind.setdefault(kind, []).append(name)
    listed = "; ".join(f"{kind}{'s' * (len(names) > 1)} {', '.join(names)}" for kind, names in by_kind.items())
    return [
        f"not in the cache {with_tilde(hub.cache())}: {listed}",
        f"  fetch them with: {prefetch}; until then submit refuses, and keys that depend on them are provisional",
    ]


def with_tilde(path: Path) -> str:
    """Return the path with ~ for the home folder."""
    return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path)
