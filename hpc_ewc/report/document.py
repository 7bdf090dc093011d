"""A report as it is read, before any medium: title, what to know first, tables, lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpc_ewc.report.analysis import Analysis
from hpc_ewc.report.choose import MAX_LOSS, Choice, choice_table, choose
from hpc_ewc.report.criterion import criterion_table
from hpc_ewc.report.lines import Lines
from hpc_ewc.report.study import Study
from hpc_ewc.report.subsets import subset_tables
from hpc_ewc.report.tables import Builder, Table, differences, fluency, knowledge, summary
from hpc_ewc.report.tradeoff import tradeoff
from hpc_ewc.report.training import cost_table, held_table


@dataclass
class Document:
    """What every medium renders."""

    title: str
    leads: list[str]
    """Sentences before the first table."""
    tables: list[Table]
    lists: list[tuple[str, list[str]]]
    build: Builder
    choice: Choice | None


def build_document(analysis: Analysis, *, subsets: Sequence[str] = (), max_loss: float = MAX_LOSS) -> Document:
    """The whole report of an analysis.

    Args:
        analysis: the numbers.
        subsets: "groups", "subjects": tables of the parts of a task too.
        max_loss: of accuracy in the old language that a recommended λ may cost.
    """
    study = analysis.study
    build = Builder(Lines(analysis))
    choice = choose(build, max_loss)
    return Document(
        title=f"Report on {study.title}",
        leads=leads(analysis, build),
        tables=_tables(build, choice, subsets),
        lists=[part for part in (missing(study), problems(study)) if part[1]],
        build=build,
        choice=choice,
    )


def _tables(build: Builder, choice: Choice | None, subsets: Sequence[str]) -> list[Table]:
    """In reading order."""
    if not build.study.runs:
        return []
    tables: list[Table | None] = [summary(build), criterion_table(build), tradeoff(build), choice_table(build, choice)]
    tables += [knowledge(build, language) for language in build.languages]
    tables += [differences(build, language) for language in build.languages]
    tables += [fluency(build, column) for column in build.study.columns if column.kind == "perplexity"]
    tables += [held_table(build), cost_table(build)]
    tables += [table for kind in subsets for table in subset_tables(build, kind)]
    return [table for table in tables if table is not None]


def leads(analysis: Analysis, build: Builder) -> list[str]:
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
    if trained and not build.lines.repeated:
        found.append("One seed a setting: what is said here is about these checkpoints, not about a λ.")
    elif build.lines.repeated:
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
