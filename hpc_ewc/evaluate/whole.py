"""When all cells of an evaluated run are there: `done.json`, `manifest.json`, and taking the former back."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hpc_ewc import suites
from hpc_ewc.config import render_toml
from hpc_ewc.errors import ArtefactError
from hpc_ewc.evaluate.element import versions
from hpc_ewc.rundir import StageDir
from hpc_ewc.stage import Stage

logger = logging.getLogger(__name__)


def finish_if_whole(stage: Stage) -> bool:
    """Write `done.json` if every expected cell of every expected checkpoint has its record."""
    there = suites.recorded(stage.dir, _training_of(stage))
    if any(name not in there for name in stage.expected):
        return False
    outputs = []
    for name in stage.expected:
        step, cell = there[name]["step"], name.partition(":")[2]
        outputs += [path for path in (stage.dir.cell(step, cell), stage.dir.samples(step, cell)) if path.is_file()]
    failed = [name for name in stage.expected if there[name]["status"] != "ok"]
    seconds = sum(record.get("seconds", 0.0) for record in there.values())
    gpu_hours = sum(record.get("gpu_hours", 0.0) for record in there.values())
    weights = {repr(float(there[name]["fraction"])): there[name]["model_hash"] for name in stage.expected}
    stage.write_manifest(_facts(stage, [there[name] for name in stage.expected]))
    cost = {"seconds": seconds, "gpu_hours": gpu_hours}
    stage.finish(outputs, cells=len(stage.expected), failed=failed, **cost, weights=weights)
    return True


def _training_of(stage: Stage) -> StageDir | None:
    return StageDir(Path(stage.inputs["train"])) if "train" in stage.inputs else None


def _facts(stage: Stage, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Facts of manifest.json: what all records share, and who measured which."""
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
    """Remove a `done.json` of other settings, or whose records are no longer all there.

    A record is deleted, or found damaged, to have its cell computed again; it is out of date where the training was
    made again and ended with other weights.
    """
    try:
        if not stage.is_done() or not suites.missing(stage.dir, stage.expected, _training_of(stage)):
            return
    except ArtefactError as error:
        logger.warning("computing again what is not whole: %s", error)
    stage.dir.done.unlink(missing_ok=True)
