"""Load the lm-eval tasks of a cell: from our generated files, from lm-eval's own, or from the user's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager

from hpc_ewc.errors import InputError
from hpc_ewc.evaluate.task_files import core_tasks
from hpc_ewc.hub import PREFETCH
from hpc_ewc.suites import Cell

MISSING_DATA = ("Offline", "offline", "DatasetNotFound", "Couldn't find", "Couldn't reach", "gated")
"""Words in the errors that `datasets` raises for data it neither has nor can fetch."""


def task_name(cell: Cell) -> str:
    """Return the name of a cell's task or group in lm-eval."""
    return cell.name if cell.kind != "lm-eval" else cell.task


def load_tasks(cell: Cell, folder: Path, include: Sequence[str], seed: int) -> dict[str, Any]:
    """Return the lm-eval tasks of a cell, with its number of worked examples and the seed that draws them.

    Args:
        cell: the cell.
        folder: its generated task files; unused for a task that is not in our task table.
        include: the user's folders of task files.
        seed: lm-eval's `fewshot_random_seed`.

    Raises:
        InputError: the data set is not in this machine's cache, or the task is unknown.
    """
    folders = [folder] if cell.kind != "lm-eval" else [*defining_folders(cell.task), *map(Path, include)]
    manager = TaskManager(include_path=[str(path) for path in folders], include_defaults=False)
    name = task_name(cell)
    if name not in manager.all_tasks:
        raise InputError(f"{name}: no such task in lm-eval {version('lm_eval')} or in evaluate.include")
    try:
        loaded = manager.load([name])
    except (ConnectionError, OSError, ValueError) as error:
        if not any(word in f"{type(error).__name__} {error}" for word in MISSING_DATA):
            raise
        dataset = (manager.task_index[name].cfg or {}).get("dataset_path", "its data set")
        raise InputError(
            f"{name}: {dataset} is not in this machine's cache, and jobs do not use the network "
            f"({str(error).splitlines()[0]}); run `{PREFETCH}` on the login node. If it is gated, first accept its "
            f"conditions at https://huggingface.co/datasets/{dataset} and log in with `hf auth login`"
        ) from error
    for task in loaded["tasks"].values():
        if cell.shots is not None:
            task.set_config(key="num_fewshot", value=cell.shots)
        task.set_fewshot_seed(seed=seed)
    return dict(loaded)


def defining_folders(task: str) -> list[Path]:
    """Return the folders of lm-eval's task files that define a name; indexing all 14,000 files takes 14 s.

    Folders that the name begins with are searched first, and the search ends at the first that defines such a task or
    group: on a cluster's file system a thousand small files take seconds. Several folders may define the same tag.
    """
    pattern = re.compile(
        rb"^[\"']?(task|group|tag)[\"']?:[ \t]*[\"']?" + re.escape(task.encode()) + rb"[\"']?\s*$", re.M
    )
    folders = [path for path in core_tasks().iterdir() if path.is_dir()]
    found = []
    for folder in sorted(folders, key=lambda path: (not task.startswith(path.name), -len(path.name), path.name)):
        kinds = {match[1] for path in folder.rglob("*.yaml") for match in pattern.finditer(path.read_bytes())}
        if kinds & {b"task", b"group"}:
            return [folder]
        found += [folder] if kinds else []
    return sorted(found)
