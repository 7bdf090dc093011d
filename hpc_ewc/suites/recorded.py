"""Find the cells of an evaluated run that are recorded, and those that are missing."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from hpc_ewc import records
from hpc_ewc.errors import ArtefactError
from hpc_ewc.rundir import StageDir
from hpc_ewc.schemas import Record


def recorded(stage: StageDir, train: StageDir | None = None) -> dict[str, Record]:
    """Return the records of one evaluated run that need no further attempt, by `<fraction>:<cell>`.

    A cell whose model gave no finite value is done, since it would not give one next time. A cell that failed for
    another reason (`retry`) is not done, nor is one whose samples are missing, nor one measured on other weights than
    the export now has.

    Args:
        stage: folder of the evaluation.
        train: the training whose exports it evaluates; None: a model that does not change.

    Raises:
        ArtefactError: a record is corrupt or was not written by hpc-ewc.
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
    """Return the cells of `expected` (stage.json) that must still be computed; other arguments as in `recorded`."""
    there = recorded(stage, train)
    return [name for name in expected if name not in there]


def exported_weights(train: StageDir | None) -> dict[float, str]:
    """Return the `model_hash` of each existing export of a training, by fraction of the run.

    A training repeated on GPUs ends with other weights under the same key, so records belong to the weights they name.
    An export that was removed to save space is not listed.
    """
    found: dict[float, str] = {}
    for path in sorted(train.exports.glob("[0-9]*/hpc_ewc.json")) if train is not None else ():
        with suppress(ArtefactError, FileNotFoundError, KeyError, TypeError, ValueError):
            facts = records.read_json(path)
            found[float(facts["fraction"])] = str(facts["model_hash"])
    return found
