"""Saves the figures of a report: SVG and PDF for a paper, PNG for a screen; the same numbers give the same bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hpc_ewc.report.tables.document import Document, Figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

METADATA: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
}
ENDINGS = tuple(METADATA)


def draw_figures(document: Document, *, overlay: bool = False, endings: Sequence[str] = ENDINGS) -> list[Figure]:
    """Every figure that the report's numbers allow. Needs matplotlib.

    Args:
        document: the report.
        overlay: draw the paper's own curves beside ours.
        endings: file formats; a page needs only svg.
    """
    from hpc_ewc.report.drawing.captions import captions
    from hpc_ewc.report.drawing.curves import accuracy_figure, mean_figure, perplexity_figure
    from hpc_ewc.report.drawing.plane import tradeoff_figure
    from hpc_ewc.report.drawing.style import styled
    from hpc_ewc.report.drawing.training import fisher_figure, training_figure

    build = document.build
    said = captions(document, overlay=overlay)
    with styled():
        figures: dict[str, Canvas | None] = {
            "accuracy": accuracy_figure(build, paper=overlay),
            "mean": mean_figure(build, paper=overlay),
            "perplexity": perplexity_figure(build, paper=overlay),
            "tradeoff": tradeoff_figure(build, document.choice),
            "training": training_figure(build),
            "fisher": fisher_figure(build),
        }
        return [Figure(name, said[name], _saved(f, endings)) for name, f in figures.items() if f is not None]


def _saved(figure: Canvas, endings: Sequence[str]) -> dict[str, bytes]:
    files = {}
    for ending in endings:
        out = io.BytesIO()
        figure.savefig(out, format=ending, metadata=METADATA[ending])
        files[ending] = out.getvalue()
    return files
