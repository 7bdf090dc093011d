"""Which columns may be averaged into one number per language: each task once, under one limit and precision."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from hpc_ewc.report.study.columns import Column, language_name
from hpc_ewc.report.study.runs import Run
from hpc_ewc.report.study.study import Study

SHARED_SETTINGS = ("limit", "backend", "dtype", "seed")
"""Settings that all tasks of a mean must share. Shots may differ from task to task, as is customary."""
MAX_COMBINATIONS = 64
"""Combinations of columns that are tried for one run; mostly there is one."""


@dataclass(frozen=True)
class Mean:
    """A mean over the tasks of a language; two runs have comparable ones if the columns are the same."""

    language: str
    variant: str
    columns: tuple[Column, ...]
    label: str

    @property
    def single(self) -> Column | None:
        """The task, if there is only one: tables then name the task and do not call it a mean."""
        return self.columns[0] if len(self.columns) == 1 else None

    def is_complete(self, study: Study, run: Run) -> bool:
        """Whether the run has a value in every column: a mean over fewer tasks would be another quantity."""
        return all((run, column) in study.records for column in self.columns)


def means(study: Study) -> list[Mean]:
    """The means that are complete for at least one run, by language; usually one per language."""
    found: list[Mean] = []
    for language in study.languages():
        columns = study.means(language)
        for variant in dict.fromkeys(column.variant for column in columns):
            sets = sorted({chosen for run in study.runs for chosen in _sets(study, run, columns, variant)})
            for place, chosen in enumerate(sets):
                label = f"mean {language_name(language)}"
                label += f" {variant}" if variant else ""
                label += f" ({place + 1})" if len(sets) > 1 else ""
                found.append(Mean(language, variant, chosen, label))
    return found


def _sets(study: Study, run: Run, columns: list[Column], variant: str) -> list[tuple[Column, ...]]:
    """Every choice of one column per task in which this run has a value, with the SHARED_SETTINGS equal.

    Columns are of this variant if the task has it. There is no choice if the run lacks a task of the language.
    """
    choices = []
    for task in dict.fromkeys(column.task for column in columns):
        of_task = [column for column in columns if column.task == task]
        usable = [c for c in of_task if c.variant == variant] or [c for c in of_task if c.variant == ""]
        choices.append([column for column in usable if (run, column) in study.records])
    products = itertools.islice(itertools.product(*choices), MAX_COMBINATIONS)
    return [chosen for chosen in products if chosen and _share_settings(chosen)]


def _share_settings(chosen: tuple[Column, ...]) -> bool:
    return all(len({column.setting(name) for column in chosen}) == 1 for name in SHARED_SETTINGS)
