"""One look for all figures: colours that colour-blind eyes and grey printers tell apart, and a λ axis with a true 0."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hpc_ewc.report.tables.formats import clean, strength_text

RC: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.edgecolor": "#444444",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "hpc_ewc",
    "pdf.fonttype": 42,
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "axes.unicode_minus": True,
}
MOST_TICKS = 40
"""λs that have a tick each; of more, those that are written."""
MANY = 60
"""Points of a figure, from which on marks and bars would cover each other: a line with a band stands for them."""
INK = "#222222"
GREY = "#767676"


@dataclass(frozen=True)
class Look:
    """How one language is drawn. Colours of Okabe and Ito (2008); markers and dashes tell them apart without colour."""

    colour: str
    marker: str
    dashes: str
    filled: bool


LOOKS = (
    Look("#0072B2", "o", "-", True),
    Look("#D55E00", "s", "--", False),
    Look("#009E73", "^", "-.", True),
    Look("#CC79A7", "D", ":", False),
)


def look(place: int) -> Look:
    """Of the language in this place of the report's order."""
    return LOOKS[place % len(LOOKS)]


@contextmanager
def styled() -> Iterator[None]:
    """Within it matplotlib draws as the report does, whatever the user's own settings are."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC)  # type: ignore[arg-type]  # its keys are literals
        try:
            yield
        finally:
            plt.close("all")


@dataclass(frozen=True)
class StrengthAxis:
    """λ on a log axis, with 0 to the left of a break: it has no place on a logarithm."""

    strengths: tuple[float, ...]

    @property
    def positive(self) -> list[float]:
        return sorted({s for s in self.strengths if s > 0})

    @property
    def zero(self) -> float:
        """Where 0 stands: a tenth of the axis, and at least one decade, left of the smallest λ."""
        if not self.positive:
            return 0.0
        low, high = (math.log10(f(self.positive)) for f in (min, max))
        return low - max(1.0, 0.16 * (high - low))

    def place(self, strength: float) -> float:
        """On the axis, in decades."""
        return self.zero if strength == 0 else math.log10(strength)

    def dress(self, axes: Axes, *, label: bool = True, room: float = 0.055) -> None:
        """Ticks at the λs there are, and the break beside 0.

        Args:
            axes: to be dressed.
            label: name the axis.
            room: share of the axis that a tick's label needs; of two that stand closer only the first is written.
        """
        shown = sorted(set(self.strengths))
        places = [self.place(s) for s in shown]
        labels, last = [], -math.inf
        for strength, place in zip(shown, places, strict=True):
            is_clear = place - last >= room * (places[-1] - places[0])
            labels.append(_tick(strength) if is_clear else "")
            last = place if is_clear else last
        if len(shown) > MOST_TICKS:  # a tick costs matplotlib a millisecond each time it draws
            labelled = [(place, label) for place, label in zip(places, labels, strict=True) if label]
            axes.set_xticks([place for place, _ in labelled], [label for _, label in labelled])
        else:
            axes.set_xticks(places, labels)
        axes.tick_params(axis="x", labelsize=8)
        margin = 0.05 * (max(places) - min(places)) or 0.5
        axes.set_xlim(min(places) - margin, max(places) + margin)
        if label:
            axes.set_xlabel("λ (log scale; 0 stands beside it)" if 0 in shown and self.positive else "λ (log scale)")
        if 0 in shown and self.positive:
            self._break(axes)

    def _break(self, axes: Axes) -> None:
        """Two strokes through the axis, halfway between 0 and the smallest λ."""
        middle = (self.zero + math.log10(self.positive[0])) / 2
        low, high = axes.get_xlim()
        at = (middle - low) / (high - low)
        draw: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False, "linewidth": 0.9}
        axes.plot([at - 0.012, at + 0.012], [0, 0], color="white", zorder=5, **(draw | {"linewidth": 3}))
        for shift in (-0.012, 0.012):
            axes.plot([at + shift - 0.008, at + shift + 0.008], [-0.022, 0.022], color="#444444", zorder=6, **draw)


def _tick(strength: float) -> str:
    """10^6 for 1e6: the form of a paper's axis."""
    if strength == 0 or strength < 1:
        return strength_text(strength)
    exponent = math.log10(strength)
    return rf"$10^{{{exponent:.0f}}}$" if abs(exponent - round(exponent)) < 1e-9 else strength_text(strength)


GROUP_MARKERS = ("", "v", "P", "X")
"""Of the second setting and those after it, in any language; the first has the language's own."""


def legend_below(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """A legend under all panels, in as many rows as it takes, and the panels above it.

    Widths are guessed from the letters: to measure them a renderer would have to draw the figure once more.
    """
    rows, room = 1, 72.0 * figure.get_figwidth()
    while rows < len(labels):
        columns = [labels[start : start + rows] for start in range(0, len(labels), rows)]
        if sum(5.2 * max(map(len, column)) + 40.0 for column in columns) <= room:
            break
        rows += 1
    figure.legend(handles, labels, loc="lower center", ncols=-(-len(labels) // rows), fontsize=8.5)
    figure.set_figheight(figure.get_figheight() + 0.19 * (rows - 1))  # the panels stay as high as they were
    figure.tight_layout(rect=(0, (0.09 + 0.19 * rows) / figure.get_figheight(), 1, 1))


def plain(text: str) -> str:
    """A name as matplotlib shows it: no mathematics between dollars, nothing that a legend hides for its underscore."""
    return clean(text).replace("$", r"\$").replace("_", "\u200b_", 1 if text.startswith("_") else 0)
