"""A report before it is rendered: title, first sentences, tables, lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpc_ewc.report.analysis.estimates import Analysis
from hpc_ewc.report.study.study import SMALL_MODEL, Study
from hpc_ewc.report.tables.accuracy import accuracy, differences
from hpc_ewc.report.tables.builder import Builder
from hpc_ewc.report.tables.choose import MAX_LOSS, Choice, choose
from hpc_ewc.report.tables.lines import Lines
from hpc_ewc.report.tables.recommendation import choice_table, sentence
from hpc_ewc.report.tables.subsets import subset_tables
from hpc_ewc.report.tables.summary import summary, tradeoff
from hpc_ewc.report.tables.table import Table
from hpc_ewc.report.tables.texts import fluency, judged, texts
from hpc_ewc.report.tables.training import cost_table, overshot, penalty_table


@dataclass(frozen=True)
class Figure:
    """A figure in every format in which it was saved."""

    name: str
    caption: str
    files: dict[str, bytes]
    """By file ending."""


@dataclass
class Document:
    """The report that every medium renders."""

    title: str
    leads: list[str]
    """Sentences before the first table."""
    tables: list[Table]
    lists: list[tuple[str, list[str]]]
    build: Builder
    choice: Choice | None


def build_document(
    analysis: Analysis, *, subsets: Sequence[str] = (), max_loss: float = MAX_LOSS, gain: str = "auto"
) -> Document:
    """The whole report of an analysis.

    Args:
        analysis: the numbers.
        subsets: "groups", "subjects": also tabulate the parts of a task.
        max_loss: accuracy in the old language that a recommended λ may cost.
        gain: how the gain in the new language is measured: auto, accuracy or text.
    """
    study = analysis.study
    build = Builder(Lines(analysis), gain)
    choice = choose(build, max_loss)
    return Document(
        title=f"Report on {study.title}",
        leads=leads(analysis, build, choice),
        tables=_tables(build, choice, subsets),
        lists=[part for part in (missing(study), problems(study)) if part[1]],
        build=build,
        choice=choice,
    )


def _tables(build: Builder, choice: Choice | None, subsets: Sequence[str]) -> list[Table]:
    """All tables in reading order."""
    if not build.study.runs:
        return []
    tables: list[Table | None] = [summary(build), tradeoff(build), choice_table(build, choice)]
    tables.append(texts(build))
    tables += [accuracy(build, language) for language in build.languages]
    tables += [differences(build, language) for language in build.languages]
    tables += [fluency(build, column) for column in build.study.columns if column.kind == "perplexity"]
    tables += [judged(build, column) for column in build.study.columns if column.kind == "judged"]
    tables += [penalty_table(build), cost_table(build)]
    tables += [table for kind in subsets for table in subset_tables(build, kind)]
    return [table for table in tables if table is not None]


FIGURES_AFTER = {
    "tradeoff": ("tradeoff", "mean"),
    "accuracy": ("accuracy",),
    "fluency": ("perplexity",),
    "penalty": ("training", "fisher"),
}
"""Figures that follow the last table of a kind."""


def interleaved(tables: Sequence[Table], figures: Sequence[Figure]) -> list[Table | Figure]:
    """Tables, each figure after the tables with its numbers; a figure without a table comes last."""
    waiting = {figure.name: figure for figure in figures}
    kinds = [table.key.split(".")[0] for table in tables]
    found: list[Table | Figure] = []
    for place, table in enumerate(tables):
        found.append(table)
        if kinds[place] not in kinds[place + 1 :]:
            found += [waiting.pop(name) for name in FIGURES_AFTER.get(kinds[place], ()) if name in waiting]
    return [*found, *waiting.values()]


def leads(analysis: Analysis, build: Builder, choice: Choice | None) -> list[str]:
    """Sentences that a reader needs before any number."""
    study = analysis.study
    found = []
    if study.illustration:
        found.append(
            f"An illustration: the model has fewer than {SMALL_MODEL / 1e6:.0f} million parameters. Its figures show "
            "how the experiment works, not what a real language model does."
        )
    if not study.runs:
        found.append("No cell has a value yet.")
    elif not any(run.is_base for run in study.runs):
        found.append(
            "The base model is not among these records: there is nothing to compare to. evaluate.base = true requests "
            "it; if it was measured elsewhere, give that folder too."
        )
    trained = [run for run in study.runs if run.strength is not None]
    if trained and not build.lines.repeated:
        found.append("Single seed per setting: conclusions apply to these checkpoints only.")
    elif build.lines.repeated:
        found.append(
            "Settings were repeated with several seeds: a value is their mean, ± covers documents and seeds, and the "
            "standard deviation over seeds follows in brackets."
        )
    found += [] if choice is None else [sentence(build, choice)]
    if names := overshot(build):
        found.append(
            f"Overshot: {'; '.join(names)}. Loss and penalty ended above where they began, so these runs do not show "
            "the effect of their λ (docs/penalty.md)."
        )
    found += [] if (several := versions(study)) is None else [several]
    return [*found, *(f"Left out: {part}." for part in analysis.left_out)]


def versions(study: Study) -> str | None:
    """A warning if the runs were measured by several versions of a package, else None."""
    seen: dict[str, set[str]] = {}
    for record in study.records.values():
        facts = record.get("versions")
        for package, version in facts.items() if isinstance(facts, dict) else ():
            seen.setdefault(str(package), set()).add(str(version))
    several = [f"{name} {', '.join(sorted(each))}" for name, each in sorted(seen.items()) if len(each) > 1]
    if not several:
        return None
    return f"Measured by several versions ({'; '.join(several)}): they may explain a difference between runs."


def missing(study: Study) -> tuple[str, list[str]]:
    """Cells without a value, grouped by reason."""
    groups: dict[tuple[str, str, float, str], list[str]] = {}
    for cell in study.missing:
        groups.setdefault((cell.source, cell.run, cell.fraction, cell.why), []).append(cell.cell)
    lines = []
    for (source, run, fraction, why), cells in sorted(groups.items()):
        at = "" if fraction in (0.0, 1.0) else f" at {fraction:g} of training"
        lines.append(f"{source}: {run}{at}: {', '.join(cells)}: {why}")
    return "Cells without a value", lines


def problems(study: Study) -> tuple[str, list[str]]:
    """Files that were skipped."""
    return "Skipped files", [f"{problem.where}: {problem.what}" for problem in study.problems]
