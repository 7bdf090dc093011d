"""The columns of a study: one task in one language under one set of settings, with a label of its own."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from hpc_ewc import suites
from hpc_ewc.report.study.collect import OPTIONAL_SETTINGS, SETTINGS
from hpc_ewc.report.study.runs import hashable

SOURCE_LANGUAGE = "en"
"""The language that the base model speaks, and may forget."""
LANGUAGE_NAMES = {"en": "English", "lt": "Lithuanian", "lv": "Latvian", "et": "Estonian", "und": "no language"}
SHARES = ("acc", "acc_norm", "exact_match", "f1", "em", "mc1", "mc2", "pass@1")
"""Metrics in [0, 1] whose mean over tasks makes sense; shown in per cent."""
PERPLEXITIES = ("perplexity", "perplexity_mean", "perplexity_median", "word_perplexity", "byte_perplexity")


@dataclass(frozen=True, order=True)
class Column:
    """One task in one language under one set of settings: values of a column may be compared."""

    order: tuple[Any, ...]
    language: str
    task: str
    variant: str
    metric: str
    filter: str
    settings: tuple[Any, ...]
    """Values of SETTINGS."""
    higher_is_better: bool = field(compare=False)
    kind: str = field(compare=False)
    """share: in [0, 1], part of the means; perplexity: of one text; judged: of each run's own answers; or number."""
    chance: float | None = field(compare=False)
    label: str = field(compare=False, default="")

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Computed once, as that of a run."""
        return hash((self.order, self.metric, self.filter))

    def setting(self, name: str) -> Any:
        """The value of one of SETTINGS."""
        return self.settings[SETTINGS.index(name)]

    @property
    def cell(self) -> str:
        """`task.language[.variant]`."""
        return ".".join(part for part in (self.task, self.language, self.variant) if part)

    def shows(self, result: Mapping[str, Any]) -> bool:
        """Whether a result is over the whole task and, if of the primary metric, by the primary filter.

        GSM8K gives exact_match by two filters; only the primary one is the column's value.
        """
        is_whole = bool(result.get("subset", "") == "")
        is_primary = bool(result.get("filter", "none") == self.filter)
        return is_whole and (result["metric"] != self.metric or is_primary)


def language_name(code: str) -> str:
    """English for en; an unknown code stays as it is."""
    return LANGUAGE_NAMES.get(code, code)


def primary(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result that represents the cell: the one marked so, else the first over the whole task."""
    whole = [result for result in record["results"] if result.get("subset", "") == ""]
    marked = [result for result in whole if result.get("primary")]
    chosen: list[dict[str, Any]] = marked or whole
    return chosen[0] if chosen else None


def assign_columns(records: list[dict[str, Any]], target: str) -> dict[str, Column]:
    """The column of each record, by the record's `where`; labels distinguish columns of one task."""
    primaries = [result for record in records if (result := primary(record)) is not None]
    # lm-eval gives some tasks' f1 in per cent
    not_shares = {
        (record["task"], result["metric"])
        for record, result in zip(records, primaries, strict=True)
        if not 0 <= result["value"] <= 1
    }
    raw = {
        record["where"]: _column(record, result, target, not_shares)
        for record, result in zip(records, primaries, strict=True)
    }
    alike: dict[tuple[str, str, str], set[Column]] = defaultdict(set)
    for column in raw.values():
        alike[column.language, column.task, column.variant].add(column)
    labelled = {c: dataclasses.replace(c, label=_label(c, group)) for group in alike.values() for c in group}
    return {where: labelled[column] for where, column in raw.items()}


def _column(
    record: Mapping[str, Any], result: Mapping[str, Any], target: str, not_shares: set[tuple[str, str]]
) -> Column:
    task, language, metric = record["task"], record["language"], result["metric"]
    known = suites.TASKS.get(task)
    kind = _kind(task, metric, is_share=(task, metric) not in not_shares)
    first = [SOURCE_LANGUAGE, target]
    rank = first.index(language) if language in first else len(first)
    place = list(suites.TASKS).index(task) if known else len(suites.TASKS)
    settings = tuple(_setting(record, name) for name in SETTINGS)
    return Column(
        order=(rank, language, kind != "share", place, task, record["variant"], repr(settings)),
        language=language,
        task=task,
        variant=record["variant"],
        metric=metric,
        filter=str(result.get("filter", "none")),
        settings=settings,
        higher_is_better=bool(result.get("higher_is_better", True)),
        kind=kind,
        chance=record.get("chance", known.chance if known else None),
    )


def _kind(task: str, metric: str, *, is_share: bool) -> str:
    if task == suites.JUDGED:
        return "judged"
    if metric in SHARES and is_share:
        return "share"
    return "perplexity" if metric in (*PERPLEXITIES, "bits_per_byte") else "number"


def _setting(record: Mapping[str, Any], name: str) -> Any:
    """One of SETTINGS. An optional one that is not set is None, however the record writes that."""
    value = hashable(record.get(name))
    return None if name in OPTIONAL_SETTINGS and not value else value


def _label(column: Column, group: set[Column]) -> str:
    """The task, with what distinguishes this column from others of the same cell."""
    parts = [column.task, *([column.variant] if column.variant else [])]
    for place, name in enumerate(SETTINGS):
        if len({other.settings[place] for other in group}) > 1:
            parts.append(f"{name}={column.settings[place]}")
    for name in ("metric", "filter"):
        if len({getattr(other, name) for other in group}) > 1:
            parts.append(f"{name}={getattr(column, name)}")
    return " ".join(parts)
