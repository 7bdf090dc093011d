"""Tables of the trainings: penalty strength, distance to the anchor, cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from hpc_ewc.report.study.json_numbers import finite_number
from hpc_ewc.report.study.runs import Run
from hpc_ewc.report.study.study import Study
from hpc_ewc.report.tables.builder import Builder, ColumnOf
from hpc_ewc.report.tables.formats import amount, duration, measure
from hpc_ewc.report.tables.lines import Line
from hpc_ewc.report.tables.table import Cell, Table

Facts = dict[str, float | None]
"""Numbers of one training; None if its files do not give them."""
Trainings = dict[Line, list[Facts]]
"""Trainings of each line, one per seed; none for a model that was not trained here."""


def training_facts(study: Study, run: Run) -> Facts | None:
    """Numbers that a training reports, with those derived from them; None for a model that was not trained here.

    distance: ‖θ−θ*‖ at the end; free_distance: the same over the free parameters, those whose Fisher is zero and which
    no λ constrains; scaled_trace: λ·tr F, which makes λs under different Fishers comparable; scaled_mean: λ·tr F/P.
    """
    trained = study.trained(run)
    if trained is None or run.is_base:
        return None
    names = ("steps", "tokens", "seconds", "loss", "penalty", "distance", "free_parameters", "free_distance")
    facts = {name: finite_number(trained.summary.get(name)) for name in names}
    fisher = trained.fisher.get("summary")
    fisher = fisher if isinstance(fisher, dict) else {}
    trace = finite_number(trained.summary.get("fisher_trace"))
    trace = finite_number(fisher.get("trace")) if trace is None else trace
    parameters, gpus = finite_number(fisher.get("parameters")), finite_number(trained.manifest.get("gpus"))
    seconds = facts["seconds"]
    scaled = None if trace is None or run.strength is None else run.strength * trace
    return facts | {
        "parameters": parameters,
        "scaled_trace": scaled,
        "scaled_mean": None if scaled is None or not parameters else scaled / parameters,
        "gpu_hours": None if seconds is None or gpus is None else seconds * gpus / 3600,
    }


def overshot(build: Builder) -> list[str]:
    """Names of the rows in which a training overshot: loss and penalty ended above where they began."""

    def did(run: Run) -> bool:
        trained = None if run.is_base else build.study.trained(run)
        return trained is not None and trained.summary.get("overshot") is True

    return [build.lines.name(line) for line in build.lines.lines if any(map(did, line.runs))]


def penalty_table(build: Builder) -> Table | None:
    """Strength of the penalty in each run, and how far the parameters moved."""
    first = {"λ·tr F": "scaled_trace", "λ·tr F/P": "scaled_mean", "penalty": "penalty", "‖θ−θ*‖": "distance"}
    later = {"‖θ−θ*‖ of free": "free_distance", "last loss": "loss"}
    trainings = _trainings(build)
    columns: list[ColumnOf] = [(head, partial(_mean, trainings, name)) for head, name in first.items()]
    columns.append(("free parameters", partial(_free, trainings)))
    columns += [(head, partial(_mean, trainings, name)) for head, name in later.items()]
    lines = [line for line in build.lines.lines if trainings[line]]
    table = build.table("penalty", "Penalty strength", columns, lines)
    table.notes.append(
        "λ means nothing without its Fisher's scale: compare λ·tr F, or per parameter λ·tr F/P. Free: parameters whose "
        "Fisher is zero, such as embeddings of tokens that its data never contains; no λ constrains them."
    )
    if names := overshot(build):
        table.notes.append(
            f"Overshot: {'; '.join(names)}. Loss and penalty ended above where they began: the steps were too long "
            'for this λ, so these runs do not show its effect. ewc.mode = "proximal" is stable at any λ.'
        )
    return _unless_empty(table, build)


def cost_table(build: Builder) -> Table | None:
    """Time and GPU-hours of each run."""
    trainings = _trainings(build)
    costs: list[tuple[str, Callable[[float | None], str], Callable[[Line], float | None]]] = [
        ("training", duration, lambda line: _sum(trainings, "seconds", line)),
        ("training GPU-h", measure, lambda line: _sum(trainings, "gpu_hours", line)),
        ("evaluation", duration, lambda line: _sum_of_records(build, "seconds", line)),
        ("evaluation GPU-h", measure, lambda line: _sum_of_records(build, "gpu_hours", line)),
    ]

    def speed(line: Line) -> Cell:
        tokens, seconds = _sum(trainings, "tokens", line), _sum(trainings, "seconds", line)
        return _amount(tokens / seconds, digits=0) if tokens and seconds else _amount(None)

    columns: list[ColumnOf] = [
        ("steps", lambda line: _amount(_sum(trainings, "steps", line))),
        ("tokens", lambda line: _amount(_sum(trainings, "tokens", line))),
        ("tokens/s", speed),
    ]
    columns += [(head, partial(_cost, text, value)) for head, text, value in costs]
    table = build.table("cost", "Cost", columns)
    totals = [sum(value(line) or 0.0 for line in build.lines.lines) for _, _, value in costs]
    sums = [Cell(text(total), total) for (_, text, _), total in zip(costs, totals, strict=True)]
    table.foot.append(build.foot("sum", [Cell(""), Cell(""), Cell(""), *sums]))
    table.notes.append(
        "Time of a training's steps and of an evaluation's cells: without queueing, loading, and repeated steps. "
        "GPU-h: multiplied by the GPUs of the job, 0 on CPUs."
    )
    return _unless_empty(table, build)


def _cost(text: Callable[[float | None], str], value: Callable[[Line], float | None], line: Line) -> Cell:
    return Cell(text(value(line)), value(line))


def _trainings(build: Builder) -> Trainings:
    return {
        line: [facts for run in line.runs if (facts := training_facts(build.study, run)) is not None]
        for line in build.lines.lines
    }


def _unless_empty(table: Table, build: Builder) -> Table | None:
    """The table, unless all its cells are empty."""
    start = len(build.labels)
    return table if any(cell.sort is not None for row in table.rows for cell in row[start:]) else None


def _mean(trainings: Trainings, name: str, line: Line) -> Cell:
    values = [training[name] for training in trainings[line]]
    total = _total(values)
    value = None if total is None else total / len(values)
    return Cell(measure(value), value)


def _free(known: Trainings, line: Line) -> Cell:
    """Number of free parameters, and their share of all."""
    trainings = known[line]
    values = [free for training in trainings if (free := training["free_parameters"]) is not None]
    if not values or len(values) < len(trainings):
        return _amount(None)
    count, parameters = sum(values) / len(values), trainings[0]["parameters"]
    share = f" ({100 * count / parameters:.1f} %)" if parameters else ""
    return Cell(f"{amount(count)}{share}", count)


def _amount(value: float | None, digits: int | None = None) -> Cell:
    value = value if value is None or digits is None else round(value, digits)
    return Cell(amount(value), value)


def _sum(trainings: Trainings, name: str, line: Line) -> float | None:
    return _total([training[name] for training in trainings[line]])


def _sum_of_records(build: Builder, name: str, line: Line) -> float | None:
    return _total([finite_number(record.get(name)) for run in line.runs for record in build.study.records_by_run[run]])


def _total(values: Sequence[float | None]) -> float | None:
    """The sum, rounded once; None if there are no values or one is missing."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    try:
        return math.fsum(known)
    except OverflowError:
        return math.inf
