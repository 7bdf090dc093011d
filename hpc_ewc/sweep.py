"""From a grid to runs, and from a configuration to the names of its artefacts.

An artefact is named by a hash of just what makes it: the fields that identify its stage, the content of its inputs,
and a format number. So a λ-sweep shares one tokenisation and one Fisher, and a corpus edited in place is another.
Keys are computed by `submit` alone; jobs follow `inputs` in their stage.json.
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
"""Raised when a stage comes to write other bytes for the same configuration: older artefacts are then made again."""

BASE_RUN = "base"
"""Run name of the untrained model."""


@dataclass(frozen=True)
class Point:
    """One point of the grid: its coordinates by dotted key, and the experiment there (no grid left)."""

    coordinates: dict[str, Any]
    experiment: Experiment


@dataclass(frozen=True)
class Identities:
    """What the inputs of an experiment are, wherever they lie: hub commits, or hashes of file contents."""

    model: str
    """Weights, config and tokenizer."""
    tokenizer: str
    """The tokenizer alone: all that the tokens depend on."""
    corpus: str
    """The documents of [data]."""
    questions: str
    """The examples of [fisher]."""


def expand(experiment: Experiment) -> list[Point]:
    """The points of the grid, in the order of the file; one point with no coordinates where there is no grid."""
    names = list(experiment.grid)
    products = itertools.product(*experiment.grid.values())
    coordinates = [dict(zip(names, values, strict=True)) for values in products]
    return [Point(point, replace_at(experiment, point)) for point in coordinates]


def tokens_key(experiment: Experiment, inputs: Identities) -> str:
    """Name of the token shards: tokenizer and [data]."""
    data = _identifying(experiment.data, without=("files",))
    return key_of({"format": FORMAT["tokens"], "tokenizer": inputs.tokenizer, "data": data, "corpus": inputs.corpus})


def fisher_key(experiment: Experiment, inputs: Identities) -> str:
    """Name of the Fisher and the anchor: [model] and [fisher]."""
    fisher = _identifying(experiment.fisher, without=("files",))
    parts = {"model": _model(experiment, inputs), "fisher": fisher, "questions": inputs.questions}
    return key_of({"format": FORMAT["fisher"], **parts})


def train_key(experiment: Experiment, inputs: Identities) -> str:
    """Name of one training: [model], [data], [fisher], [ewc] and [train].

    Also at λ = 0, which reads neither [fisher] nor the penalty's mode: in a grid over these it is trained once for each
    of them, so that each group of the report has a λ = 0 of its own.
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
    """Hydra's style over the grid's leaves, then the key: `strength=1e+06,seed=0-3f2a9c1b77de`.

    A leaf's table is named only where two leaves share their last word. Letters that a shell, a file system or
    Slurm could mistake become `_`; the key keeps such names apart.
    """
    last = [name.split(".")[-1] for name in coordinates]
    parts = []
    for name, word in zip(coordinates, last, strict=True):
        label = word if last.count(word) == 1 else name
        parts.append(f"{label}={plain_word(coordinates[name])}")
    return f"{','.join(parts)[:120] or 'run'}-{key}"


def plain_word(value: Any) -> str:
    """A value as part of a name: letters that a shell, a file system or Slurm could mistake become `_`."""
    if isinstance(value, (list, tuple)):
        return "+".join(map(plain_word, value))
    text = f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
    return re.sub(r"[^A-Za-z0-9.+-]", "_", text)


def _model(experiment: Experiment, inputs: Identities) -> dict[str, Any]:
    return {"id": inputs.model, **_identifying(experiment.model, without=("path", "revision"))}


def _identifying(part: Any, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields of one table that change a result, by name; those in `without` enter by content instead."""
    fields = (f for f in dataclasses.fields(part) if f.metadata["identifies"] and f.name not in without)
    return {field.name: getattr(part, field.name) for field in fields}
