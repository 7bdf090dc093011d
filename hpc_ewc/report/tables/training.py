"""What a training said of itself: how hard it was held, how far it moved, what it cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hpc_ewc.report.study.runs import Run
from hpc_ewc.report.study.study import Study
from hpc_ewc.report.tables.builder import Builder, Cell, Head, Table
from hpc_ewc.report.tables.formats import amount, duration, measure
from hpc_ewc.report.tables.lines import Line


@dataclass(frozen=True)
class Training:
    """Facts of one run; None where its files do not say."""

    steps: float | None
    tokens: float | None
    seconds: float | None
    gpus: float | None
    loss: float | None
    penalty: float | None
    distance: float | None
    """‖θ−θ*‖ at the end."""
    free: float | None
    """Parameters whose Fisher is zero: no λ holds them."""
    free_distance: float | None
    """‖θ−θ*‖ over these alone."""
    trace: float | None
    """tr F."""
    parameters: float | None
    strength: float | None
    overshot: bool
    """It ended worse than where it began by its own measure: its steps were too long for its λ."""

    @property
    def scaled_trace(self) -> float | None:
        """λ·tr F: what makes λs under different Fishers comparable."""
        return None if self.trace is None or self.strength is None else self.strength * self.trace

    @property
    def scaled_mean(self) -> float | None:
        """λ·tr F / P."""
        return None if self.scaled_trace is None or not self.parameters else self.scaled_trace / self.parameters

    @property
    def gpu_hours(self) -> float | None:
        return None if self.seconds is None or self.gpus is None else self.seconds * self.gpus / 3600


def training_of(study: Study, run: Run) -> Training | None:
    """Facts of a run; None for a model that was not trained here."""
    trained = study.trained(run)
    if trained is None or run.is_base:
        return None
    summary, manifest = trained.summary, trained.manifest
    fisher = trained.fisher.get("summary")
    fisher = fisher if isinstance(fisher, dict) else {}
    trace = _number(summary.get("fisher_trace"))
    free, distance = _number(summary.get("free_parameters")), _number(summary.get("distance"))
    return Training(
        steps=_number(summary.get("steps")),
        tokens=_number(summary.get("tokens")),
        seconds=_number(summary.get("seconds")),
        gpus=_number(manifest.get("gpus")),
        loss=_number(summary.get("loss")),
        penalty=_number(summary.get("penalty")),
        distance=distance,
        free=free,
        free_distance=_number(summary.get("free_distance")),
        trace=_number(fisher.get("trace")) if trace is None else trace,
        parameters=_number(fisher.get("parameters")),
        strength=run.strength,
        overshot=summary.get("overshot") is True,
    )


def overshot(build: Builder) -> list[str]:
    """Names of the rows in which a training overshot."""
    return [
        build.lines.name(line)
        for line in build.lines.lines
        if any((t := training_of(build.study, run)) is not None and t.overshot for run in line.runs)
    ]


def held_table(build: Builder) -> Table | None:
    """How hard each run was held, and what moved all the same."""
    table = build.table("held", "How hard it was held")
    names = ("λ·tr F", "λ·tr F/P", "penalty", "‖θ−θ*‖", "free parameters", "‖θ−θ*‖ of free", "last loss")
    table.heads += [Head(name) for name in names]
    for line in _trained(build):
        facts = [t for run in line.runs if (t := training_of(build.study, run)) is not None]
        row = build.labelled(line)
        row += [_amount(facts, name) for name in ("scaled_trace", "scaled_mean", "penalty", "distance")]
        row.append(_free(facts))
        row += [_amount(facts, name) for name in ("free_distance", "loss")]
        table.rows.append(row)
    table.notes.append(
        "λ means nothing without its Fisher's scale: compare λ·tr F, or by parameter λ·tr F/P. Free: parameters whose "
        "Fisher is zero, such as embeddings of tokens that its data never holds; no λ holds them."
    )
    jittered = overshot(build)
    if jittered:
        table.notes.append(
            f"Overshot: {'; '.join(jittered)}. Loss and penalty ended above where they began: the steps were too long "
            'for this λ, so what these runs show is not what λ does. ewc.mode = "proximal" holds at any λ.'
        )
    return _if_any(table, build)


def cost_table(build: Builder) -> Table | None:
    """What each run took."""
    table = build.table("cost", "Cost")
    names = ("steps", "tokens", "tokens/s", "training", "training GPU-h", "evaluation", "evaluation GPU-h")
    table.heads += [Head(name) for name in names]
    totals = [0.0, 0.0, 0.0, 0.0]
    for line in build.lines.lines:
        facts = [t for run in line.runs if (t := training_of(build.study, run)) is not None]
        evaluated = [record for run in line.runs for record in build.study.records_by_run[run]]
        tokens, seconds = _sum(t.tokens for t in facts), _sum(t.seconds for t in facts)
        taken = [seconds, _sum(t.gpu_hours for t in facts)]
        taken += [_sum(_number(r.get(name)) for r in evaluated) for name in ("seconds", "gpu_hours")]
        row = build.labelled(line)
        row += [_cell(_sum(t.steps for t in facts)), _cell(tokens)]
        row.append(_cell(round(tokens / seconds) if tokens and seconds else None))
        table.rows.append([*row, *_taken(taken)])
        totals = [total + (value or 0.0) for total, value in zip(totals, taken, strict=True)]
    table.foot.append(build.foot("sum", [Cell(""), Cell(""), Cell(""), *_taken(totals)]))
    table.notes.append(
        "Time of a training's steps and of an evaluation's cells: without queue, loading, and steps that were made "
        "twice. GPU-h: times the GPUs of the job, 0 on CPUs."
    )
    return _if_any(table, build)


def _taken(values: Sequence[float | None]) -> list[Cell]:
    """Seconds and GPU-hours, twice."""
    texts = (duration, measure, duration, measure)
    return [Cell(text(value), value) for text, value in zip(texts, values, strict=True)]


def _trained(build: Builder) -> list[Line]:
    return [line for line in build.lines.lines if any(training_of(build.study, run) for run in line.runs)]


def _if_any(table: Table, build: Builder) -> Table | None:
    """The table, if it says anything."""
    start = len(build.labels)
    return table if any(cell.sort is not None for row in table.rows for cell in row[start:]) else None


def _amount(facts: Sequence[Training], name: str) -> Cell:
    values = [getattr(fact, name) for fact in facts]
    value = None if not values or None in values else sum(values) / len(values)
    return Cell(measure(value), value)


def _free(facts: Sequence[Training]) -> Cell:
    """How many, and their share of all."""
    values = [fact.free for fact in facts if fact.free is not None]
    if not values or len(values) < len(facts):
        return _cell(None)
    count, parameters = sum(values) / len(values), facts[0].parameters
    share = f" ({100 * count / parameters:.1f} %)" if parameters else ""
    return Cell(f"{amount(count)}{share}", count)


def _cell(value: float | None) -> Cell:
    return Cell(amount(value), value)


def _sum(values: Any) -> float | None:
    known = list(values)
    return None if not known or any(value is None for value in known) else math.fsum(known)


def _number(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None
