"""Columns whose documents the Fisher was computed on, so that EWC protects the parameters that just these need."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from hpc_ewc import suites
from hpc_ewc.config import FisherConfig
from hpc_ewc.report.study.columns import SOURCE_LANGUAGE, Column
from hpc_ewc.report.study.study import Study

MARK = "†"


def contaminated(study: Study) -> dict[Column, str]:
    """Columns whose documents, or their originals, the Fisher was computed on, with a note for each."""
    found: dict[Column, str] = {}
    for fisher in _fishers(study):
        for column in study.columns:
            if column.task in suites.TASKS and _is_seen(column, fisher):
                where = f"{fisher.source}, split {fisher.split}"
                if column.language == SOURCE_LANGUAGE:
                    found[column] = f"the Fisher was computed on the documents that are scored here ({where})"
                else:
                    found[column] = f"translations of documents that the Fisher was computed on ({where})"
    return found


def _fishers(study: Study) -> list[FisherConfig]:
    """The Fisher of every training with λ > 0, and those that the experiments name."""
    trained = [study.trained(run) for run in study.runs if run.strength]
    configs = [t.config.fisher for t in trained if t is not None and t.config is not None]
    return list(dict.fromkeys([*configs, *(e.fisher for e in study.stages.experiments.values())]))


def _is_seen(column: Column, fisher: FisherConfig) -> bool:
    task = suites.TASKS[column.task]
    if not task.splits:
        return False
    scored = task.splits[-1]
    if fisher.source == "files":  # rows in a folder laid out as for evaluate.questions: <language>/<task>/<split>
        places = [Path(name.removesuffix(".jsonl")).parts for name in fisher.files]
        return any((column.task, scored) in pairwise(parts) for parts in places)
    return fisher.split == scored and any(source.path == fisher.source for source in task.sources.values())
