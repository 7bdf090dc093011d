"""The figures of a report as files: SVG and PDF for a paper, PNG for a screen; the same numbers give the same bytes."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from hpc_ewc.report.choose import points_text
from hpc_ewc.report.document import Document, Figure
from hpc_ewc.report.formats import strength_text
from hpc_ewc.report.paper import paper
from hpc_ewc.report.study import SOURCE_LANGUAGE, language_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

METADATA: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
}


def draw_figures(document: Document, *, overlay: bool = False) -> list[Figure]:
    """Every figure that the report's numbers allow. Needs matplotlib.

    Args:
        document: the report.
        overlay: draw the paper's own curves beside ours.
    """
    from hpc_ewc.report.drawing.curves import accuracy_figure, mean_figure, perplexity_figure
    from hpc_ewc.report.drawing.plane import tradeoff_figure
    from hpc_ewc.report.drawing.style import styled
    from hpc_ewc.report.drawing.training import fisher_figure, training_figure

    build = document.build
    captions = _captions(document, overlay)
    with styled():
        figures: dict[str, Canvas | None] = {
            "accuracy": accuracy_figure(build, paper=overlay),
            "mean": mean_figure(build, paper=overlay),
            "perplexity": perplexity_figure(build, paper=overlay),
            "tradeoff": tradeoff_figure(build, document.choice),
            "training": training_figure(build),
            "fisher": fisher_figure(build),
        }
        return [Figure(name, captions[name], _saved(f)) for name, f in figures.items() if f is not None]


def _captions(document: Document, overlay: bool) -> dict[str, str]:
    build, choice = document.build, document.choice
    old, new = language_name(SOURCE_LANGUAGE), language_name(build.study.target)
    common = (
        "Bars: one standard error. Dotted lines: the base model, with its standard error as a band. λ = 0 has no "
        "place on a log axis: it stands left of the break and is not joined."
    )
    paper_words = f" Grey: {paper()['source']}; {paper()['how']} {paper()['warning']}" if overlay else ""
    label = "An illustration with the miniature model. " if build.study.illustration else ""
    tradeoff = f"{label}{old} kept against {new} learnt, mean accuracy over tasks. Joined: the front."
    if choice is not None:
        tradeoff += f" Shaded: more than {points_text(choice.max_loss)} of {old} lost."
        if choice.best is not None:
            strength = strength_text(choice.best.line.first.strength)
            tradeoff += (
                f" Ringed: λ = {strength}, the largest gain among the runs outside the shade, on the half of the "
                f"documents that it was chosen on; chosen in {100 * choice.best.chosen:.0f} % of resamples."
            )
    return {
        "accuracy": f"{label}Accuracy of each task against λ. {common}{paper_words}",
        "mean": f"{label}Mean accuracy over tasks against λ. {common}{paper_words}",
        "perplexity": f"{label}Perplexity of TruthfulQA's questions with their answers, and bits per byte. "
        f"{common}{paper_words}",
        "tradeoff": tradeoff,
        "training": f"{label}Task loss, penalty and distance to the anchor while training, by λ; a long run "
        "is shown by the means of 80 equal stretches.",
        "fisher": f"{label}Where the Fisher information lies: share of its trace by layer and by kind of parameter.",
    }


def _saved(figure: Canvas) -> dict[str, bytes]:
    files = {}
    for ending, metadata in METADATA.items():
        out = io.BytesIO()
        figure.savefig(out, format=ending, metadata=metadata)
        files[ending] = out.getvalue()
    return files
