"""Complete an evaluated run: write `done.json` and `manifest.json` after the last cell, or remove `done.json` again."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hpc_ewc import suites
from hpc_ewc.config import render_toml
from hpc_ewc.errors import ArtefactError
from hpc_ewc.evaluate.environment import versions
from hpc_ewc.rundir import StageDir
from hpc_ewc.stage import Stage

logger = logging.getLogger(__name__)


def finish_if_complete(stage: Stage) -> bool:
    """Write `done.json` if every expected cell of every expected checkpoint has its record; return whether it has."""
    recorded = suites.recorded(stage.dir, _training(stage))
    if any(name not in recorded for name in stage.expected):
        return False
    expected = {name: recorded[name] for name in stage.expected}
    outputs = []
    for name, record in expected.items():
        step, cell = record["step"], name.partition(":")[2]
        outputs += [path for path in (stage.dir.cell(step, cell), stage.dir.samples(step, cell)) if path.is_file()]
    stage.write_manifest(_manifest(stage, list(expected.values())))
    stage.finish(
        outputs,
        cells=len(stage.expected),
        failed=[name for name, record in expected.items() if record["status"] != "ok"],
        seconds=sum(record.get("seconds", 0.0) for record in recorded.values()),
        gpu_hours=sum(record.get("gpu_hours", 0.0) for record in recorded.values()),
        weights={repr(float(record["fraction"])): record["model_hash"] for record in expected.values()},
    )
    return True


def _training(stage: Stage) -> StageDir | None:
    return StageDir(Path(stage.inputs["train"])) if "train" in stage.inputs else None


def _manifest(stage: Stage, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the facts of manifest.json: what all records share, and which job scored which cell."""
    shared = ("model", "model_hash", "base_hash", "backend", "dtype", "attention", "max_length", "seed", "limit")
    cells = {
        f"{record['fraction']!r}:{'.'.join(filter(None, (record['task'], record['language'], record['variant'])))}": {
            name: record[name]
            for name in ("cell_key", "data_hash", "shots", "batch_size", "batch_invariance", "job_id")
        }
        for record in found
    }
    cuda = torch.cuda.is_available()
    return {
        "key": stage.key,
        "config": render_toml(stage.config),
        "inputs": stage.inputs,
        "coordinates": stage.coordinates,
        **{name: sorted({str(record[name]) for record in found}) for name in shared},
        "cells": cells,
        "versions": versions(),
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "job_ids": sorted({record["job_id"] for record in found}),
        "seconds": sum(record["seconds"] for record in found),
        "gpu_hours": sum(record["gpu_hours"] for record in found),
        "commit": os.environ.get("HPC_EWC_COMMIT"),
    }


def reopen_if_incomplete(stage: Stage) -> None:
    """Remove `done.json` if it is of other settings, or if a record is missing, damaged or out of date.

    A user deletes a record to have its cell computed again; a repeated training that ended with other weights makes
    all its records out of date.
    """
    try:
        if not stage.is_done() or not suites.missing(stage.dir, stage.expected, _training(stage)):
            return
    except ArtefactError as error:
        logger.warning("computing damaged artefacts again: %s", error)
    stage.dir.done.unlink(missing_ok=True)
