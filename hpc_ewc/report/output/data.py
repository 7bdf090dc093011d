"""The numbers for other programs: CSV and JSON, long and wide. docs/report.md explains each field."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from hpc_ewc.report.analysis.estimates import Analysis, Difference, Estimate
from hpc_ewc.report.analysis.means import Mean
from hpc_ewc.report.study.runs import Run
from hpc_ewc.report.tables.document import Document
from hpc_ewc.report.tables.formats import clean
from hpc_ewc.report.tables.recommendation import sentence

SCHEMA = 1
LONG = (
    *("experiment", "run", "step", "fraction", "strength", "seed", "coordinates", "is_base", "model_hash", "base_hash"),
    *("task", "language", "variant", "cell", "shots", "limit", "metric", "filter", "subset", "primary"),
    *("higher_is_better", "chance", "value", "stderr", "low", "high", "n"),
    *("difference", "difference_stderr", "difference_low", "difference_high", "p", "p_holm", "method"),
    *("lost", "gained", "detectable", "batch_size", "dtype", "backend", "max_length", "task_version", "data_hash"),
)
OF_RESULT = ("metric", "filter", "subset", "primary", "higher_is_better")
EMPTY: dict[str, Any] = dict.fromkeys(LONG)
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters of a text that a spreadsheet would execute."""


def long_rows(analysis: Analysis) -> list[dict[str, Any]]:
    """One row per result, with every metric, filter and subset; primary and fluency metrics have differences."""
    rows = []
    study = analysis.study
    for run in study.runs:
        of_run = _run_fields(run)
        for column in study.columns:
            record = study.records.get((run, column))
            if record is None:
                continue
            shared = EMPTY | {name: record[name] for name in LONG if name in record} | of_run
            shared |= {name: getattr(column, name) for name in ("task", "language", "variant", "cell")}
            shared["chance"] = analysis.chances.get(column)
            for result in record["results"]:
                row = shared | {name: result.get(name) for name in OF_RESULT}
                if column.shows(result):
                    metric = result["metric"]
                    row |= _estimate_fields(analysis.value(run, column, metric), result)
                    row |= _difference_fields(analysis.difference(run, column, metric))
                else:
                    row |= _estimate_fields(None, result)
                rows.append(row)
    for (run, mean), estimate in sorted(analysis.mean_values.items(), key=lambda item: (item[0][0], item[0][1].label)):
        row = _run_fields(run) | {
            "task": "mean",
            "language": mean.language,
            "variant": mean.variant,
            "cell": mean.label,
        }
        row |= {"metric": "mean over tasks", "primary": True, "higher_is_better": True, "subset": ""}
        row |= _estimate_fields(estimate, {"value": estimate.value, "n": estimate.n})
        row |= _difference_fields(analysis.mean_differences.get((run, mean)))
        rows.append({name: row.get(name) for name in LONG})
    return rows


def _run_fields(run: Run) -> dict[str, Any]:
    return {
        "experiment": run.source,
        "run": run.name,
        "step": run.step,
        "fraction": run.fraction,
        "strength": run.strength,
        "seed": dict(run.seeds).get("train.seed"),
        "coordinates": dict(run.seeds) | dict(run.others),
        "is_base": run.is_base,
        "model_hash": run.model_hash,
        "base_hash": run.base_hash,
    }


def _estimate_fields(estimate: Estimate | None, result: Mapping[str, Any]) -> dict[str, Any]:
    if estimate is None:
        return {"value": result["value"], "stderr": result.get("stderr"), "n": result["n"]}
    return {name: getattr(estimate, name) for name in ("value", "stderr", "low", "high", "n")}


def _difference_fields(difference: Difference | None) -> dict[str, Any]:
    if difference is None:
        return {}
    names = ("p", "p_holm", "method", "lost", "gained", "detectable")
    fields = {name: getattr(difference, name) for name in names}
    for name in ("stderr", "low", "high"):
        fields[f"difference_{name}"] = getattr(difference, name)
    return {"difference": difference.value, **fields}


def wide_rows(analysis: Analysis) -> list[dict[str, Any]]:
    """One row per run: `<cell>` and `<cell>_stderr` of each primary metric, then the means."""
    rows = []
    study = analysis.study
    for run in study.runs:
        row: dict[str, Any] = {k: v for k, v in _run_fields(run).items() if k != "coordinates"}
        cells: list[tuple[str, Estimate | None]] = [
            (f"{column.label}.{column.language}".replace(" ", "_"), analysis.values.get((run, column, column.metric)))
            for column in study.columns
        ]
        cells += [(mean.label.replace(" ", "_"), analysis.mean_values.get((run, mean))) for mean in analysis.means]
        for name, estimate in cells:
            row[name] = None if estimate is None else estimate.value
            row[f"{name}_stderr"] = None if estimate is None else estimate.stderr
        rows.append(row)
    return rows


def render_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """CSV with the columns of the first row; no text starts like a formula."""
    rows = list(rows)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_plain(name) for name in rows[0]] if rows else [])
    for row in rows:
        writer.writerow([_plain(value) for value in row.values()])
    return out.getvalue()


def _plain(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return _rounded(value)
    text = (
        json.dumps(value, ensure_ascii=False, sort_keys=True) if isinstance(value, (dict, list, tuple)) else str(value)
    )
    text = clean(text)
    return f"'{text}" if text.startswith(FORMULA) else text


def _rounded(value: float) -> str:
    """A number to ten digits, which are the same on machines whose last bits differ."""
    return str(value) if isinstance(value, int) else f"{value:.10g}"


def render_json(analysis: Analysis, document: Document, long: list[dict[str, Any]]) -> str:
    """The whole report as JSON, with the rows of `long_rows`; docs/report.md explains each field."""
    study = analysis.study
    choice = document.choice
    value = {
        "schema": SCHEMA,
        "title": document.title,
        "leads": document.leads,
        "illustration": study.illustration,
        "long": long,
        "wide": wide_rows(analysis),
        "recommended": None if choice is None else choice_fields(document),
        "missing": [dataclasses.asdict(cell) for cell in study.missing],
        "not_taken": [dataclasses.asdict(problem) for problem in study.problems],
    }
    return json.dumps(_finite(value), ensure_ascii=False, indent=1, sort_keys=False, allow_nan=False) + "\n"


def choice_fields(document: Document) -> dict[str, Any]:
    """The recommended λ with its candidates."""
    choice = document.choice
    assert choice is not None
    return {
        "max_loss": choice.max_loss,
        "gain_in": "accuracy" if isinstance(choice.gain.what, Mean) else f"bits_per_byte of {choice.gain.what.cell}",
        "documents_chosen_on": choice.documents[0],
        "documents_reported_on": choice.documents[1],
        "strength": None if choice.best is None else choice.best.line.first.strength,
        "runs": [] if choice.best is None else [run.name for run in choice.best.line.runs],
        "sentence": sentence(document.build, choice),
        "candidates": [
            {"strength": c.line.first.strength, "runs": [run.name for run in c.line.runs], "chosen_in": c.chosen}
            | {name: dataclasses.asdict(getattr(c, name)) for name in ("old", "new", "old_reported", "new_reported")}
            for c in choice.candidates
        ],
    }


def _finite(value: Any) -> Any:
    """A value with its floats to ten digits; NaN and infinity, which JSON lacks, become null."""
    if isinstance(value, float):
        return float(f"{value:.10g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
