"""Captions: the meaning of each figure's marks, and what it leaves out."""

from __future__ import annotations

from hpc_ewc.report.analysis.means import Mean
from hpc_ewc.report.drawing.curves import MOST_GROUPS, groups
from hpc_ewc.report.drawing.paper import paper
from hpc_ewc.report.drawing.plane import MOST_NAMES
from hpc_ewc.report.drawing.style import MANY
from hpc_ewc.report.drawing.training import drawn
from hpc_ewc.report.study.columns import SOURCE_LANGUAGE, language_name
from hpc_ewc.report.tables.builder import Builder, mean_name, plain_name
from hpc_ewc.report.tables.document import Document
from hpc_ewc.report.tables.measure import gain
from hpc_ewc.report.tables.recommendation import points_text
from hpc_ewc.report.tables.texts import shown_texts


def captions(document: Document, *, overlay: bool) -> dict[str, str]:
    """The caption of every figure, by its name.

    Args:
        document: the report.
        overlay: the paper's curves are drawn.
    """
    build, choice = document.build, document.choice
    old, new = language_name(SOURCE_LANGUAGE), language_name(build.study.target)
    common = f"{_how_drawn(build)} λ = 0 is shown left of the break in the log axis and is not joined."
    common += _which_groups(build)
    paper_words = f" Grey: {paper()['source']}; {paper()['how']} {paper()['warning']}" if overlay else ""
    label = "An illustration with a very small model. " if build.study.illustration else ""
    tradeoff = f"{label}{old} kept against {new} learnt: {_measured(build)}. Joined: the front."
    if choice is not None:
        if len(build.lines.bases) == 1:
            tradeoff += f" Shaded: more than {points_text(choice.max_loss)} of {old} lost."
        if choice.best is not None:
            tradeoff += (
                f" Ringed: {build.lines.name(choice.best.line)}, the largest gain among the runs outside the shade, on "
                f"the half of the documents used for choosing; chosen in {100 * choice.best.chosen:.0f} % of resamples."
            )
        if len(build.lines.lines) > MOST_NAMES:
            tradeoff += " Only a few of so many points are labelled; all are in the table."
    return {
        "accuracy": f"{label}Accuracy of each task against λ. {common}{paper_words}",
        "mean": f"{label}Mean accuracy over tasks against λ. {common}{paper_words}",
        "perplexity": f"{label}{_texts(build)}. {common}{paper_words}",
        "tradeoff": tradeoff,
        "training": f"{label}Task loss, penalty and distance to the anchor while training, by λ; a long run "
        f"is shown by the means of 80 equal stretches.{_which_curves(build)}",
        "fisher": f"{label}Share of the Fisher's trace by layer and by kind of parameter.",
    }


def _measured(build: Builder) -> str:
    """The measures on the axes of the trade-off."""
    old, new = build.analysis.mean(SOURCE_LANGUAGE), gain(build)
    if new is not None and not isinstance(new.what, Mean):
        first = (
            f"accuracy of {plain_name(old.single)}" if old is not None and old.single else "mean accuracy over tasks"
        )
        return f"{first}; {new.unit}, fewer above"
    means = [mean for mean in (old, None if new is None else new.what) if isinstance(mean, Mean)]
    alone = [f"{language_name(mean.language)}: {mean_name(mean)}" for mean in means if mean.single]
    return "; ".join(["mean accuracy over tasks", *alone])


def _texts(build: Builder) -> str:
    """The quantities in the figure of perplexities."""
    pairs = any(column.task == "ppl_truthfulqa" for column in build.study.columns)
    parts = ["perplexity of TruthfulQA's questions with their answers"] if pairs else []
    parts += ["bits per byte"] if shown_texts(build) else []
    words = ", and ".join(parts)
    return f"{words[:1].upper()}{words[1:]} against λ, one panel per text"


def _how_drawn(build: Builder) -> str:
    """The meaning of bars and bands."""
    bars = "Bars: one standard error."
    if any(sum(line.first.strength != 0 for line in lines) > MANY for lines in groups(build)):
        bars = "With so many λs, the band along a line: one standard error."
    return f"{bars} Dotted lines: the base model, with its standard error as a band."


def _which_groups(build: Builder) -> str:
    """Which setting each curve shows, if runs differ in more than λ."""
    names = [build.lines.setting(lines[0]) for lines in groups(build)]
    if len(names) < 2:
        return ""
    faint = names[1:MOST_GROUPS]
    words = f" In full colour {names[0]}; faint, with other markers, {'; '.join(faint)}."
    left = len(names) - MOST_GROUPS
    return f"{words} {left} more settings are only in the tables." if left > 0 else words


def _which_curves(build: Builder) -> str:
    lines, every = drawn(build), groups(build)
    if len(lines) == sum(map(len, every)):
        return ""
    of = f" Of {build.lines.setting(every[0][0])}." if len(every) > 1 else ""
    return of + (f" {len(lines)} of {len(every[0])} λs are drawn." if len(lines) < len(every[0]) else "")
