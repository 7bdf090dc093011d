"""Identify measurements: a hash of the rows of a cell, and the key that a current record must have."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpc_ewc import hub, records
from hpc_ewc.config import EvaluateConfig
from hpc_ewc.suites.cells import Cell
from hpc_ewc.suites.tasks import JUDGED, TASKS

FORMAT = 1
"""Increased when a cell with the same settings measures something else: older records are then computed again."""


def data_hash(
    cell: Cell,
    *,
    questions: Path | None,
    heldout: Path | None,
    include: Sequence[str] = (),
    judge: Mapping[str, Any] | None = None,
) -> str:
    """Return the identity of a cell's rows: a hash of local files, else the hub id and the commit in this cache.

    Args:
        cell: the cell.
        questions: folder of local questions, `<language>/<task>/<split>.jsonl`; None: the hub.
        heldout: text file, for a cell of `ppl_heldout`.
        include: folders of the user's task files, which may define the task of the cell.
        judge: for `judged_answers`, as in stage.json: the judge is part of the measurement.
    """
    if judge is not None and cell.task == JUDGED:
        asked = judge["questions"].get(cell.language)
        rows = _files_hash([Path(asked)]) if asked else data_hash(cell, questions=questions, heldout=None)
        return f"{rows}+{judge['id']}"
    task = TASKS.get(cell.task)
    if task is None:
        files = [path for folder in include for path in sorted(Path(folder).rglob("*")) if path.is_file()]
        return f"lm-eval:{cell.task}" + (f"+{_files_hash(files)}" if files else "")
    if task.name == "ppl_heldout":
        return _files_hash([heldout]) if heldout is not None and heldout.is_file() else "absent"
    if questions is not None:
        folder = questions / cell.language / task.folder
        return _files_hash(sorted(path for path in folder.rglob("*.jsonl") if path.is_file()), folder)
    source = task.sources[cell.language]
    return f"{source.path}@{hub_commit(source.path) or 'unknown'}"


def _files_hash(files: Sequence[Path], base: Path | None = None) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(base) if base else ''}:{records.sha256_file(path)}\n".encode())
    return digest.hexdigest()[:12]


def hub_commit(dataset: str) -> str | None:
    """Return the commit of a hub data set on this machine: pinned by `prefetch`, else that of the hub cache."""
    return hub.pinned_commit(dataset) or hub.cached_commit("dataset", dataset)


def cell_key(cell: Cell, *, checkpoint: str, fraction: float, data: str, config: EvaluateConfig, dtype: str) -> str:
    """Return the key of one measurement: a record with this key need not be computed again.

    Args:
        cell: the cell.
        checkpoint: key of the training (`train_key`), or of the path of any other checkpoint.
        fraction: fraction of that training.
        data: identity of the rows (`data_hash`).
        config: gives limit, seed, backend, lengths and wording. The batch size does not enter: it changes scores only
            by rounding, and is recorded.
        dtype: data type of the model when scored.
    """
    return records.key_of(
        {
            "format": FORMAT,
            "checkpoint": checkpoint,
            "fraction": float(fraction),
            "cell": cell.name,
            "data": data,
            "shots": cell.shots,
            "limit": config.limit,
            "seed": config.seed,
            "dtype": dtype,
            "backend": config.backend,
            "max_length": config.max_length,
        }
        | {name: value for name in ("cloze", "max_gen_toks") if (value := getattr(config, name)) is not None}
        | ({"backend_args": config.backend_args} if config.backend_args else {})
    )
