"""Which cells of an evaluated run are there, and which are missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hpc_ewc import records
from hpc_ewc.rundir import StageDir


def recorded(stage: StageDir) -> dict[str, dict[str, Any]]:
    """The records of one evaluated run that need no other attempt, by `<fraction>:<cell>`.

    A cell whose model gave no finite value is done: it will not give one the next time. One that failed for another
    reason (`retry`) is not, nor is one whose samples are gone.

    Raises:
        ArtefactError: a record is half-written or not ours.
    """
    found = {}
    for path in sorted(stage.path.glob("[0-9]*/*.json")):
        record = records.read_checked(path, "record")
        name = path.name.removesuffix(".json")
        whole = stage.samples(record["step"], name).is_file() or record["status"] != "ok"
        if whole and not record.get("retry", False):
            found[f"{float(record['fraction'])!r}:{name}"] = record
    return found


def missing(stage: StageDir, expected: Sequence[str]) -> list[str]:
    """Those of `expected` (stage.json) that have to be computed still."""
    there = recorded(stage)
    return [name for name in expected if name not in there]
