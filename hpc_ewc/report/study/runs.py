"""The runs of a study: which checkpoint each record was measured on, in the order of the tables."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from hpc_ewc import sweep
from hpc_ewc.report.study.json_numbers import finite_number
from hpc_ewc.report.study.stages import Stages

SEEDS = ("train.seed", "fisher.seed")
"""Coordinates over which runs are repetitions of each other."""


@dataclass(frozen=True, order=True)
class Run:
    """One checkpoint: a run at one of its exports, or a model that was not trained here."""

    order: tuple[Any, ...]
    source: str
    name: str
    step: int
    fraction: float
    strength: float | None
    seeds: tuple[tuple[str, Any], ...]
    others: tuple[tuple[str, Any], ...]
    """Coordinates that are neither λ nor a seed."""
    model_hash: str = field(compare=False)
    base_hash: str = field(compare=False)
    is_base: bool = field(compare=False)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Computed once: a report on thousands of cells looks runs up a million times."""
        return hash((self.order, self.name, self.step))

    @property
    def setting(self) -> tuple[Any, ...]:
        """The key that it shares with its repetitions under other seeds."""
        if self.is_base or self.strength is None:
            return (self.source, self.name, self.step, self.model_hash)
        return (self.source, self.strength, self.others, self.fraction)


def assign_runs(records: list[dict[str, Any]], stages: Stages) -> dict[str, Run]:
    """The run of each record, by the record's `where`."""
    parents = {record["base_hash"] for record in records if record["base_hash"] != record["model_hash"]}
    runs: dict[str, Run] = {}
    known: dict[Run, Run] = {}
    for record in records:
        is_base = record["model_hash"] in parents or record["run"] == sweep.BASE_RUN
        trained = stages.trained.get((record["source"], record["run"]))
        coordinates = record["coordinates"]
        strength = finite_number(coordinates.get("ewc.strength", trained and trained.strength))
        strength = None if is_base or strength is None or strength < 0 else strength
        seeds = tuple(sorted((k, hashable(v)) for k, v in coordinates.items() if k in SEEDS))
        others = tuple(sorted((k, hashable(v)) for k, v in coordinates.items() if k not in (*SEEDS, "ewc.strength")))
        # a base is one model wherever it was measured; anything else is a run of its own experiment
        source, name = ("", sweep.BASE_RUN) if is_base else (record["source"], record["run"])
        place = -1.0 if is_base else math.inf if strength is None else strength
        order = (not is_base, source, repr(others), place, float(record["fraction"]), repr(seeds), name)
        run = Run(
            order=(*order, record["model_hash"] if is_base else ""),
            source=source,
            name=name,
            step=record["step"],
            fraction=float(record["fraction"]),
            strength=strength,
            seeds=seeds,
            others=others,
            model_hash=record["model_hash"],
            base_hash=record["base_hash"],
            is_base=is_base,
        )
        runs[record["where"]] = known.setdefault(run, run)
    return runs


def find_bases(runs: Iterable[Run]) -> dict[Run, Run]:
    """The base of each run whose base was measured."""
    by_hash = {run.model_hash: run for run in runs if run.is_base}
    return {run: by_hash[run.base_hash] for run in runs if run.base_hash in by_hash and not run.is_base}


def hashable(value: Any) -> Any:
    """A JSON value with its lists as tuples."""
    return tuple(map(hashable, value)) if isinstance(value, list) else value
