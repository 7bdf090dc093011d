"""What an experiment names and this machine's cache does not hold: a dry run says so and goes on, a submit refuses."""

from __future__ import annotations

from pathlib import Path

from hpc_ewc import hub, suites
from hpc_ewc.config import ModelConfig
from hpc_ewc.errors import InputError
from hpc_ewc.launch.inputs.resolver import Resolver
from hpc_ewc.launch.plan.graph import Graph

NOT_FETCHED = "not-fetched"
"""In place of the commit; keys that are made of it are not those of a submit."""


class LenientResolver(Resolver):
    """Resolves as far as it goes: what is not here, or not whole, is noted in `absent`, by name."""

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self.absent: dict[str, str] = {}
        """What it is, by hub id."""
        self.lacking: set[Path] = set()
        """Where models would lie."""

    def _model(self, config: ModelConfig) -> tuple[str, str, str]:
        try:
            return super()._model(config)
        except InputError:
            self.absent[config.path] = "model"
            commit = hub.commit_of("model", config.path, config.revision) or "main"
            folder = hub.repository("model", config.path) / "snapshots" / commit
            self.lacking.add(folder)
            return str(folder), f"{config.path}@{NOT_FETCHED}", f"{config.path}@{NOT_FETCHED}"

    def _check_trainable(self, folder: Path) -> None:
        if folder not in self.lacking:
            super()._check_trainable(folder)

    def _files(
        self, table: str, source: str, files: tuple[str, ...], subset: str, split: str
    ) -> tuple[tuple[str, ...], str]:
        try:
            return super()._files(table, source, files, subset, split)
        except InputError:
            self.absent[source] = "corpus" if table == "data" else "questions of the Fisher"
            return (), f"{source}@{NOT_FETCHED}"


def absent_benchmarks(graph: Graph) -> dict[str, str]:
    """The hub's data sets whose rows the evaluations of a graph ask for, and that are not sealed here."""
    names: dict[str, str] = {}
    for node in graph.of("evaluate"):
        for cell in node.cells if "questions" not in node.inputs else ():
            task = suites.TASKS.get(cell.task)
            source = task.sources.get(cell.language) if task is not None else None
            if source is not None and suites.hub_commit(source.path) is None:
                names[source.path] = "gated benchmark" if source.gated else "benchmark"
    return names


def describe_absent(absent: dict[str, str], prefetch: str) -> list[str]:
    """Lines that say what is not here and how to get it; none where all is."""
    if not absent:
        return []
    by_kind: dict[str, list[str]] = {}
    for name, kind in absent.items():
        by_kind.setdefault(kind, []).append(name)
    listed = "; ".join(f"{kind}{'s' * (len(names) > 1)} {', '.join(names)}" for kind, names in by_kind.items())
    return [
        f"not in the cache {short(hub.cache())}: {listed}",
        f"  fetch them with: {prefetch}; until then submit refuses, and keys of what is made of them are provisional",
    ]


def short(path: Path) -> str:
    """With ~ for the home folder."""
    return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path)
