"""Which columns may be averaged into one number for a language: each task once, under one limit and precision."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from hpc_ewc.report.study.columns import Column, language_name
from hpc_ewc.report.study.runs import Run
from hpc_ewc.report.study.study import Study

ALIKE = ("limit", "backend", "dtype", "seed")
"""Settings that all tasks of a mean must share. Shots may differ from task to task, as they do by custom."""
MOST = 64
"""Combinations of columns that are looked at, of one run: mostly there is one."""


@dataclass(frozen=True)
class Mean:
    """A mean over the tasks of a language; two runs have comparable ones where the columns are the same."""

    language: str
    variant: str
    columns: tuple[Column, ...]
    label: str

    @property
    def single(self) -> Column | None:
        """The only task, where there is but one: then this is no mean, and is not called one."""
        return self.columns[0] if len(self.columns) == 1 else None

    def is_whole(self, study: Study, run: Run) -> bool:
        """The run has a value in every column: a mean over fewer tasks would be another quantity."""
        return all((run, column) in study.records for column in self.columns)


def means(study: Study) -> list[Mean]:
    """The means that at least one run has whole, by language; usually one a language."""
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
    """Every choice of one column a task in which this run has a value, all alike in ALIKE.

    Of this variant where the task has it. A run without some task of the language has none.
    """
    tasks = dict.fromkeys(column.task for column in columns)
    choices = []
    for task in tasks:
        of_task = [c for c in columns if c.task == task]
        mine = [c for c in of_task if c.variant == variant] or [c for c in of_task if c.variant == ""]
        choices.append([c for c in mine if (run, c) in study.records])
    products = itertools.islice(itertools.product(*choices), MOST)
    return [chosen for chosen in products if chosen and _alike(chosen)]


def _alike(chosen: tuple[Column, ...]) -> bool:
    return all(len({column.setting(name) for column in chosen}) == 1 for name in ALIKE)
