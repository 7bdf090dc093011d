"""Tables of the parts of a task, on request: MMLU by group or by subject."""

from __future__ import annotations

from functools import partial

from hpc_ewc.report.analysis.estimates import Estimate
from hpc_ewc.report.study.columns import Column, language_name
from hpc_ewc.report.study.runs import Run
from hpc_ewc.report.tables.builder import Builder, plain_name
from hpc_ewc.report.tables.formats import percent
from hpc_ewc.report.tables.lines import Line, pooled
from hpc_ewc.report.tables.table import Cell, Table, value_cell

GROUPS = ("stem", "humanities", "social_sciences", "other")
"""Groups of MMLU's subjects."""
SUBSETS = ("groups", "subjects")


def subset_tables(build: Builder, kind: str) -> list[Table]:
    """A table for each column that has such parts: rows are runs, columns are parts."""
    tables = [_table(build, column, kind) for column in build.study.columns if column.kind == "share"]
    return [table for table in tables if table is not None]


def _table(build: Builder, column: Column, kind: str) -> Table | None:
    values: dict[str, dict[Run, Estimate]] = {}
    for run in build.study.runs:
        record = build.study.records.get((run, column))
        for result in () if record is None else record["results"]:
            part = result.get("subset", "")
            is_primary = result["metric"] == column.metric and result.get("filter", "none") == column.filter
            if part and is_primary and (part in GROUPS) == (kind == "groups"):
                estimate = Estimate(result["value"], result.get("stderr"), result["n"])
                values.setdefault(part, {}).setdefault(run, estimate)
    if not values:
        return None
    table = build.table(
        f"{kind}.{column.language}.{column.label.replace(' ', '.')}",
        f"{language_name(column.language)}: {plain_name(column)} by {kind.removesuffix('s')}",
        [(part.replace("_", " "), partial(_cell, each)) for part, each in sorted(values.items())],
    )
    table.legend.append("Accuracy in per cent ± standard error of the part. Parts are not tested.")
    return table


def _cell(values: dict[Run, Estimate], line: Line) -> Cell:
    return value_cell(pooled([values.get(run) for run in line.runs]), percent)
