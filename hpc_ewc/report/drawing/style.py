"""One style for all figures: colours for colour-blind readers and grey printers, and a λ axis with a true 0."""

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
"""Most λs that have a tick each; of more, only labelled ones have."""
MANY = 60
"""More points than these would cover each other with marks and bars: a line with a band replaces them."""
INK = "#222222"
GREY = "#767676"


@dataclass(frozen=True)
class Look:
    """Colour (Okabe and Ito 2008), marker and line style of one language, distinct without colour too."""

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
    """The look of the language at this place of the report's order."""
    return LOOKS[place % len(LOOKS)]


@contextmanager
def styled() -> Iterator[None]:
    """Set matplotlib to the report's style within the block, whatever the user's own settings are."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC)  # type: ignore[arg-type]  # its keys are literals
        try:
            yield
        finally:
            plt.close("all")


@dataclass(frozen=True)
class StrengthAxis:
    """λ on a log axis; λ = 0, which has no logarithm, is shown left of a break."""

    strengths: tuple[float, ...]

    @property
    def positive(self) -> list[float]:
        return sorted({s for s in self.strengths if s > 0})

    @property
    def zero(self) -> float:
        """Position of 0: a tenth of the axis, and at least one decade, left of the smallest λ."""
        if not self.positive:
            return 0.0
        low, high = (math.log10(f(self.positive)) for f in (min, max))
        return low - max(1.0, 0.16 * (high - low))

    def place(self, strength: float) -> float:
        """Position of a λ on the axis, in decades."""
        return self.zero if strength == 0 else math.log10(strength)

    def dress(self, axes: Axes, *, label: bool = True, room: float = 0.055) -> None:
        """Set the ticks at the λs, and draw the break beside 0.

        Args:
            axes: axes to change.
            label: name the axis.
            room: share of the axis that a tick's label needs; of two closer ones only the first is labelled.
        """
        shown = sorted(set(self.strengths))
        has_break = 0 in shown and bool(self.positive)
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
            axes.set_xlabel(f"λ (log scale{'; λ = 0 shown left of the break' if has_break else ''})")
        if has_break:
            self._break(axes)

    def _break(self, axes: Axes) -> None:
        """Draw two strokes through the axis, halfway between 0 and the smallest λ."""
        middle = (self.zero + math.log10(self.positive[0])) / 2
        low, high = axes.get_xlim()
        at = (middle - low) / (high - low)
        draw: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False, "linewidth": 0.9}
        axes.plot([at - 0.012, at + 0.012], [0, 0], color="white", zorder=5, **(draw | {"linewidth": 3}))
        for shift in (-0.012, 0.012):
            axes.plot([at + shift - 0.008, at + shift + 0.008], [-0.022, 0.022], color="#444444", zorder=6, **draw)


def _tick(strength: float) -> str:
    """The label of a λ: 10^6 for 1e6, as on a paper's axis."""
    if strength == 0 or strength < 1:
        return strength_text(strength)
    exponent = math.log10(strength)
    return rf"$10^{{{exponent:.0f}}}$" if abs(exponent - round(exponent)) < 1e-9 else strength_text(strength)


GROUP_MARKERS = ("", "v", "P", "X")
"""Markers of the settings after the first, in any language; the first setting has the language's own."""


def legend_below(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Put a legend under all panels, in as many rows as it takes.

    Widths are estimated from the number of letters: measuring them takes another drawing of the figure.
    """
    rows, room = 1, 72.0 * figure.get_figwidth()
    while rows < len(labels):
        columns = [labels[start : start + rows] for start in range(0, len(labels), rows)]
        if sum(5.2 * max(map(len, column)) + 40.0 for column in columns) <= room:
            break
        rows += 1
    figure.legend(handles, labels, loc="lower center", ncols=-(-len(labels) // rows), fontsize=8.5)
    figure.set_figheight(figure.get_figheight() + 0.19 * (rows - 1))  # the panels keep their height
    figure.tight_layout(rect=(0, (0.09 + 0.19 * rows) / figure.get_figheight(), 1, 1))


def plain(text: str) -> str:
    """A name that matplotlib shows literally: no mathematics between dollars, no leading underscore that hides it."""
    return clean(text).replace("$", r"\$").replace("_", "\u200b_", 1 if text.startswith("_") else 0)
