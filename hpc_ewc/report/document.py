"""A report as it is read, before any medium: title, what to know first, tables, lists."""

from __future__ import annotations

from dataclasses import dataclass, field

from hpc_ewc.report.differences import Analysis
from hpc_ewc.report.lines import Lines
from hpc_ewc.report.study import Study
from hpc_ewc.report.tables import Builder, Table, all_tables


@dataclass
class Document:
    """What every medium renders."""

    title: str
    leads: list[str]
    """Sentences before the first table."""
    tables: list[Table]
    lists: list[tuple[str, list[str]]] = field(default_factory=list)


def build_document(analysis: Analysis) -> Document:
    """The whole report of an analysis."""
    study = analysis.study
    builder = Builder(Lines(analysis))
    return Document(
        title=f"Report on {study.title}",
        leads=leads(analysis, builder),
        tables=all_tables(builder),
        lists=[part for part in (missing(study), problems(study)) if part[1]],
    )


def leads(analysis: Analysis, builder: Builder) -> list[str]:
    """What a reader must know before any number."""
    study = analysis.study
    found = []
    if study.illustration:
        found.append(
            "An illustration: the model is the miniature of this project. Its figures show how the experiment works, "
            "not what a real language model does."
        )
    if not study.runs:
        found.append("No cell has a value yet.")
    elif not any(run.is_base for run in study.runs):
        found.append(
            "The base model was not evaluated (evaluate.base = true asks for it): there is nothing to compare to."
        )
    trained = [run for run in study.runs if run.strength is not None]
    if trained and not builder.lines.repeated:
        found.append("One seed a setting: what is said here is about these checkpoints, not about a λ.")
    elif builder.lines.repeated:
        found.append(
            "Settings were repeated with several seeds: a value is their mean, ± holds documents and seeds, and the "
            "standard deviation over seeds follows in brackets."
        )
    return [*found, *(f"Left out: {part}." for part in analysis.left_out)]


def missing(study: Study) -> tuple[str, list[str]]:
    """Cells without a value, those of one reason together."""
    groups: dict[tuple[str, str, float, str], list[str]] = {}
    for cell in study.missing:
        groups.setdefault((cell.source, cell.run, cell.fraction, cell.why), []).append(cell.cell)
    lines = []
    for (source, run, fraction, why), cells in sorted(groups.items()):
        at = "" if fraction in (0.0, 1.0) else f" at {fraction:g} of training"
        lines.append(f"{source}: {run}{at}: {', '.join(cells)}: {why}")
    return "Cells without a value", lines


def problems(study: Study) -> tuple[str, list[str]]:
    """Files that were not taken."""
    return "Not taken", [f"{problem.where}: {problem.what}" for problem in study.problems]
