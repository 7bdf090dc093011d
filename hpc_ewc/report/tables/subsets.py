"""Tables of the parts of a task, on request: MMLU by group or by subject."""

from __future__ import annotations

from hpc_ewc.report.analysis.estimates import Estimate
from hpc_ewc.report.study.columns import Column, language_name
from hpc_ewc.report.study.runs import Run
from hpc_ewc.report.tables.builder import Builder, Head, Table, plain_name, value_cell
from hpc_ewc.report.tables.formats import percent
from hpc_ewc.report.tables.lines import pooled

GROUPS = ("stem", "humanities", "social_sciences", "other")
"""Of MMLU."""
SUBSETS = ("groups", "subjects")


def subset_tables(build: Builder, kind: str) -> list[Table]:
    """A table for each column that has such parts: rows are runs, columns are parts."""
    tables = [_table(build, column, kind) for column in build.study.columns if column.kind == "share"]
    return [table for table in tables if table is not None]


def _table(build: Builder, column: Column, kind: str) -> Table | None:
    parts: dict[str, None] = {}
    for run in build.study.runs:
        record = build.study.records.get((run, column))
        for result in () if record is None else record["results"]:
            name = result.get("subset", "")
            if name and (name in GROUPS) == (kind == "groups") and result["metric"] == column.metric:
                parts.setdefault(name)
    if not parts:
        return None
    title = f"{language_name(column.language)}: {plain_name(column)} by {kind.removesuffix('s')}"
    table = build.table(f"{kind}.{column.language}.{column.label.replace(' ', '.')}", title)
    table.heads += [Head(part.replace("_", " ")) for part in sorted(parts)]
    for line in build.lines.lines:
        row = build.labelled(line)
        for part in sorted(parts):
            each = [_result(build, run, column, part) for run in line.runs]
            row.append(value_cell(pooled(each), percent))
        table.rows.append(row)
    table.legend.append("Accuracy in per cent ± standard error of the part. Parts were not tested.")
    return table


def _result(build: Builder, run: Run, column: Column, part: str) -> Estimate | None:
    record = build.study.records.get((run, column))
    for result in () if record is None else record["results"]:
        same_filter = result.get("filter", "none") == column.filter
        if result.get("subset") == part and result["metric"] == column.metric and same_filter:
            return Estimate(result["value"], result.get("stderr"), result["n"])
    return None
