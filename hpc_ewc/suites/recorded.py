"""Which cells of an evaluated run are there, and which are missing."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from hpc_ewc import records
from hpc_ewc.errors import ArtefactError
from hpc_ewc.rundir import StageDir


def recorded(stage: StageDir, train: StageDir | None = None) -> dict[str, dict[str, Any]]:
    """The records of one evaluated run that need no other attempt, by `<fraction>:<cell>`.

    A cell whose model gave no finite value is done: it will not give one the next time. One that failed for another
    reason (`retry`) is not, nor is one whose samples are gone, nor one of other weights than the export has now.

    Args:
        stage: of the evaluation.
        train: the training whose exports it evaluates; None: it evaluates a model that does not change.

    Raises:
        ArtefactError: a record is corrupt or not written by hpc-ewc.
    """
    weights = exported_weights(train)
    found = {}
    for path in sorted(stage.path.glob("[0-9]*/*.json")):
        record = records.read_checked(path, "record")
        name, fraction = path.name.removesuffix(".json"), float(record["fraction"])
        whole = stage.samples(record["step"], name).is_file() or record["status"] != "ok"
        same = weights.get(fraction, record["model_hash"]) == record["model_hash"]
        if whole and same and not record.get("retry", False):
            found[f"{fraction!r}:{name}"] = record
    return found


def missing(stage: StageDir, expected: Sequence[str], train: StageDir | None = None) -> list[str]:
    """Those of `expected` (stage.json) that have to be computed still; arguments as of `recorded`."""
    there = recorded(stage, train)
    return [name for name in expected if name not in there]


def exported_weights(train: StageDir | None) -> dict[float, str]:
    """`model_hash` of each export of a training that is there, by fraction of the run.

    A training that is made again on GPUs ends with other weights under the same key: records are of the weights they
    name. An export that was removed, to save space, says nothing.
    """
    found: dict[float, str] = {}
    for path in sorted(train.exports.glob("[0-9]*/hpc_ewc.json")) if train is not None else ():
        with suppress(ArtefactError, FileNotFoundError, KeyError, TypeError, ValueError):
            facts = records.read_json(path)
            found[float(facts["fraction"])] = str(facts["model_hash"])
    return found
