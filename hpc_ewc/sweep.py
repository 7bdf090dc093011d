"""Expand a grid into runs, and name the artefacts of a configuration.

An artefact is named by a hash of exactly what determines it: the identifying fields of its stage, the contents of its
inputs, and a format number. A λ sweep therefore shares one tokenisation and one Fisher, and a corpus that was edited in
place is another corpus. Only `submit` computes keys; jobs read `inputs` from their stage.json.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpc_ewc.config import Experiment, replace_at
from hpc_ewc.records import key_of

FORMAT = {"tokens": 1, "fisher": 1, "train": 2}
"""Increased when a stage writes other bytes for the same configuration: older artefacts are then made again."""

BASE_RUN = "base"
"""Run name of the base model."""


@dataclass(frozen=True)
class Point:
    """One point of the grid: its coordinates by dotted key, and the experiment with these values (and no grid)."""

    coordinates: dict[str, Any]
    experiment: Experiment


@dataclass(frozen=True)
class Identities:
    """Identities of an experiment's inputs, independent of their location: hub commits, or hashes of file contents."""

    model: str
    """Weights, config and tokenizer."""
    tokenizer: str
    """Only the tokenizer, since the tokens depend on nothing else of the model."""
    corpus: str
    """The documents of [data]."""
    questions: str
    """The examples of [fisher]."""


def expand(experiment: Experiment) -> list[Point]:
    """Return the points of the grid, in the order of the file; without a grid, one point with no coordinates."""
    names = list(experiment.grid)
    products = itertools.product(*experiment.grid.values())
    coordinates = [dict(zip(names, values, strict=True)) for values in products]
    return [Point(point, replace_at(experiment, point)) for point in coordinates]


def tokens_key(experiment: Experiment, inputs: Identities) -> str:
    """Return the name of the token shards: a hash of the tokenizer and [data]."""
    data = _identifying(experiment.data, without=("files",))
    return key_of({"format": FORMAT["tokens"], "tokenizer": inputs.tokenizer, "data": data, "corpus": inputs.corpus})


def fisher_key(experiment: Experiment, inputs: Identities) -> str:
    """Return the name of the Fisher and the anchor: a hash of [model] and [fisher]."""
    fisher = _identifying(experiment.fisher, without=("files",))
    parts = {"model": _model(experiment, inputs), "fisher": fisher, "questions": inputs.questions}
    return key_of({"format": FORMAT["fisher"], **parts})


def train_key(experiment: Experiment, inputs: Identities) -> str:
    """Return the name of one training: a hash of [model], [data], [fisher], [ewc] and [train].

    This holds at λ = 0 too, although that run uses neither [fisher] nor the penalty's mode: a grid over these trains
    λ = 0 once for each value, so that each group of the report has its own λ = 0.
    """
    parts = {
        "model": _model(experiment, inputs),
        "tokens": tokens_key(experiment, inputs),
        "fisher": fisher_key(experiment, inputs),
        "ewc": _identifying(experiment.ewc),
        "train": _identifying(experiment.train),
    }
    return key_of({"format": FORMAT["train"], **parts})


def run_name(coordinates: Mapping[str, Any], key: str) -> str:
    """Return the name of a run: grid values in Hydra's style, then the key: `strength=1e+06,seed=0-3f2a9c1b77de`.

    A key's table is named only if two keys share their last word. Characters that a shell, a file system or Slurm could
    misread become `_`; the key keeps such names distinct.
    """
    last = [name.split(".")[-1] for name in coordinates]
    parts = []
    for name, word in zip(coordinates, last, strict=True):
        label = word if last.count(word) == 1 else name
        parts.append(f"{label}={plain_word(coordinates[name])}")
    return f"{','.join(parts)[:120] or 'run'}-{key}"


def plain_word(value: Any) -> str:
    """Return a value as part of a name; characters that a shell, a file system or Slurm could misread become `_`."""
    if isinstance(value, (list, tuple)):
        return "+".join(map(plain_word, value))
    text = f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
    return re.sub(r"[^A-Za-z0-9.+-]", "_", text)


def _model(experiment: Experiment, inputs: Identities) -> dict[str, Any]:
    return {"id": inputs.model, **_identifying(experiment.model, without=("path", "revision"))}


def _identifying(part: Any, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the fields of one table that change a result, by name; those in `without` enter by content instead."""
    fields = (f for f in dataclasses.fields(part) if f.metadata["identifies"] and f.name not in without)
    return {field.name: getattr(part, field.name) for field in fields}
