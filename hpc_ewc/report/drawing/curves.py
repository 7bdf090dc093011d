"""Curves against λ: accuracy of each task in the layout of the paper's figure 3, the mean, perplexities."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hpc_ewc.report.analysis.estimates import Estimate
from hpc_ewc.report.analysis.means import Mean
from hpc_ewc.report.drawing.paper import PaperCurve, accuracy_curve, perplexity_curve
from hpc_ewc.report.drawing.style import GREY, GROUP_MARKERS, INK, MANY, StrengthAxis, legend_below, look, plain
from hpc_ewc.report.study.columns import Column, language_name
from hpc_ewc.report.tables.builder import Builder, plain_name
from hpc_ewc.report.tables.lines import Line
from hpc_ewc.report.tables.texts import BITS, shown_texts

MOST_GROUPS = 4
"""Most curves of one language in one panel; more could not be distinguished."""


def groups(build: Builder) -> list[list[Line]]:
    """Groups of trained lines that differ only in λ, final checkpoints only; the largest group first."""
    found: dict[object, list[Line]] = defaultdict(list)
    last = max((run.fraction for run in build.study.runs), default=1.0)
    for line in build.lines.lines:
        run = line.first
        if run.strength is not None and run.fraction == last:
            key = (run.source, run.others, () if len(line.runs) > 1 else run.seeds)
            found[key].append(line)
    return sorted(found.values(), key=lambda lines: -len(lines))


def axis_of(build: Builder, *, paper: bool = False) -> StrengthAxis:
    """The λ axis with every λ that is drawn."""
    strengths = [line.first.strength or 0.0 for lines in groups(build) for line in lines]
    if paper:
        curve = accuracy_curve("mean", "en")
        strengths += [] if curve is None else curve[0]
    return StrengthAxis(tuple(strengths))


def draw_curve(
    axes: Axes, build: Builder, what: Column | Mean, x: StrengthAxis, metric: str | None = None, *, paper: bool
) -> None:
    """Draw values with standard errors, joined over λ > 0; the base as a horizontal line; the paper's in grey."""
    style = look(build.languages.index(what.language))
    scale = 100.0 if metric is None else 1.0  # accuracy in per cent
    single = what.single if isinstance(what, Mean) else None
    name = language_name(what.language) + ("" if single is None else f": {plain_name(single)} alone")

    def value_of(line: Line) -> Estimate | None:
        return build.lines.value(line, what, metric)[0]

    for number, lines in enumerate(groups(build)[:MOST_GROUPS]):
        points = [(line.first.strength or 0.0, e) for line in lines if (e := value_of(line)) is not None]
        if not points:
            continue
        alpha = 1.0 if number == 0 else 0.55
        joined = [point for point in points if point[0] > 0]
        places, values, errors = _xy(joined, x, scale)
        if len(joined) > MANY:
            low, high = (np.array(values) + sign * np.array(errors) for sign in (-1, 1))
            axes.fill_between(places, low, high, color=style.colour, alpha=0.25 * alpha, linewidth=0, zorder=2)
        axes.plot(places, values, color=style.colour, linestyle=style.dashes, linewidth=1.4, alpha=alpha, zorder=3)
        marked = [point for point in points if point[0] == 0] if len(joined) > MANY else points
        places, values, errors = _xy(marked, x, scale)
        axes.errorbar(
            places,
            values,
            yerr=errors,
            color=style.colour,
            marker=GROUP_MARKERS[number] or style.marker,
            markersize=4.5,
            markerfacecolor=style.colour if style.filled else "white",
            linestyle="none",
            elinewidth=1,
            capsize=2,
            alpha=alpha,
            label=plain(name) if number == 0 else None,
            zorder=4,
        )
    for value in filter(None, map(value_of, build.lines.bases)):
        axes.axhline(scale * value.value, color=style.colour, linewidth=0.9, linestyle=(0, (1, 1.5)), zorder=2)
        if value.stderr:
            low, high = value.value - value.stderr, value.value + value.stderr
            axes.axhspan(scale * low, scale * high, color=style.colour, alpha=0.10, linewidth=0, zorder=1)
    if chance := build.analysis.chances.get(what) if isinstance(what, Column) and metric is None else None:
        axes.axhline(scale * chance, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    published = _paper_curve(what, metric) if paper else None
    if published is not None:
        strengths, values, _ = published
        places, values = [x.place(s) for s in strengths], [scale * v for v in values]
        grey: dict[str, Any] = {"color": GREY, "alpha": 0.8, "zorder": 2}
        face = GREY if style.filled else "white"
        axes.plot(places, values, marker=style.marker, markersize=3, markerfacecolor=face, linestyle="none", **grey)
        free = sum(s == 0 for s in strengths)  # sorted: λ = 0 comes first, and is not joined
        axes.plot(places[free:], values[free:], linestyle=style.dashes, linewidth=0.8, **grey)


def _xy(
    points: Sequence[tuple[float, Estimate]], x: StrengthAxis, scale: float
) -> tuple[list[float], list[float], list[float]]:
    """Positions on the axis, values and standard errors."""
    places = [x.place(strength) for strength, _ in points]
    return places, [scale * e.value for _, e in points], [scale * (e.stderr or 0.0) for _, e in points]


# ---------------------------------------------------------------------------------------------- figures


def accuracy_figure(build: Builder, *, paper: bool) -> Figure | None:
    """One panel per task with both languages, the mean last: the paper's figure 3."""
    panels: dict[str, list[Column]] = defaultdict(list)
    for language in build.languages:
        for column in build.study.means(language):
            if not column.variant:
                panels[column.label].append(column)
    if not panels or not groups(build):
        return None
    means = [mean for mean in _means(build) if mean.single is None]  # a single task has its own panel
    x = axis_of(build, paper=paper)
    count = len(panels) + bool(means)
    columns = min(4, count)
    rows = -(-count // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(2.75 * columns, 2.35 * rows + 0.5), squeeze=False, sharex=True)
    each = list(grid.flat)
    for axes, members in zip(each, panels.values(), strict=False):
        for column in members:
            draw_curve(axes, build, column, x, paper=paper)
        axes.set_title(plain(plain_name(members[0])))
    for mean in means:
        draw_curve(each[len(panels)], build, mean, x, paper=paper)
        each[len(panels)].set_title("mean over tasks", fontweight="bold")
    for axes in each[count:]:
        axes.set_visible(False)
    _finish(each[:count], columns, x, "accuracy in %")
    shown = [column for members in panels.values() for column in members]
    _legend(figure, build, each[:count], paper=paper, chance=any(map(build.analysis.chances.get, shown)))
    return figure


def mean_figure(build: Builder, *, paper: bool) -> Figure | None:
    """Mean accuracy of each language against λ: the paper's figure 1b."""
    means = _means(build)
    if not means or not groups(build):
        return None
    x = axis_of(build, paper=paper)
    figure, axes = plt.subplots(figsize=(5.6, 3.9))
    for mean in means:
        draw_curve(axes, build, mean, x, paper=paper)
    _finish([axes], 1, x, "accuracy in %, mean over tasks")
    _legend(figure, build, [axes], paper=paper)
    return figure


def perplexity_figure(build: Builder, *, paper: bool) -> Figure | None:
    """TruthfulQA's mean perplexity (the paper's figure 1a) and bits per byte, against λ."""
    panels: dict[tuple[str, str], list[Column]] = defaultdict(list)
    for column in build.study.columns:
        if column.kind == "perplexity" and column.task == "ppl_truthfulqa":
            panels["perplexity_mean", ""].append(column)
    for column in shown_texts(build):
        panels[BITS, column.variant].append(column)
    if not panels or not groups(build):
        return None
    x = axis_of(build, paper=paper)
    width = 5.0 if len(panels) < 3 else 4.0
    figure, grid = plt.subplots(1, len(panels), figsize=(width * len(panels), 3.9), squeeze=False)
    for axes, ((metric, _), columns) in zip(grid.flat, panels.items(), strict=True):
        for column in columns:
            draw_curve(axes, build, column, x, metric, paper=paper)
        title = plain(", ".join(dict.fromkeys(map(plain_name, columns))))
        if metric == BITS:
            axes.set_title(f"{title}: all bytes")
            axes.set_ylabel("bits per byte (lower is better)")
        else:
            axes.set_title(f"{title}: mean over texts")
            axes.set_ylabel("perplexity (log scale; lower is better)")
            axes.set_yscale("log")
            _plain_log(axes)
        x.dress(axes)
    figure.tight_layout(w_pad=2.5)
    _legend(figure, build, list(grid.flat), paper=paper)
    return figure


# ---------------------------------------------------------------------------------------------- parts


def _means(build: Builder) -> list[Mean]:
    return [mean for language in build.languages if (mean := build.analysis.mean(language)) is not None]


def _paper_curve(what: Column | Mean, metric: str | None) -> PaperCurve | None:
    if metric is not None:
        return perplexity_curve(what.language) if metric == "perplexity_mean" else None
    return accuracy_curve("mean" if isinstance(what, Mean) else what.task, what.language)


def _finish(panels: Sequence[Axes], columns: int, x: StrengthAxis, label: str) -> None:
    """Label the axes, and limit them to what a percentage can be."""
    for place, axes in enumerate(panels):
        low = place + columns >= len(panels)
        axes.tick_params(labelbottom=low)
        x.dress(axes, label=low, room=0.055 if len(panels) == 1 else 0.11)
        if len(panels) > 1:
            axes.set_xlabel("λ" if low else "")
        axes.set_ylabel(label if place % columns == 0 else "")
        bottom, top = axes.get_ylim()
        axes.set_ylim(max(-2.5, bottom), min(102.5, top))  # room for a mark at 0 or at 100


def _legend(figure: Figure, build: Builder, panels: Sequence[Axes], *, paper: bool, chance: bool = False) -> None:
    """Put a legend below all panels: languages, then the other marks."""
    from matplotlib.lines import Line2D

    each = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in panels]
    known = {label: handle for pairs in each for handle, label in pairs}
    handles, labels = list(known.values()), list(known)
    if build.lines.bases:
        handles.append(Line2D([], [], color=INK, linewidth=0.9, linestyle=(0, (1, 1.5))))
        labels.append("base model")
    if chance:
        handles.append(Line2D([], [], color=GREY, linewidth=0.8, linestyle=(0, (4, 3))))
        labels.append("chance")
    if paper:
        handles.append(Line2D([], [], color=GREY, linewidth=0.8, marker="o", markersize=3, linestyle="-"))
        labels.append("paper (its λ has another scale)")
    settings = [build.lines.setting(lines[0]) for lines in groups(build)[:MOST_GROUPS]]
    for name, marker in zip(settings, GROUP_MARKERS, strict=False) if len(settings) > 1 else ():
        alpha = 0.55 if marker else 1.0
        handles.append(Line2D([], [], color=INK, linewidth=1.4, marker=marker, markersize=4.5, alpha=alpha))
        labels.append(plain(name))
    legend_below(figure, handles, labels)


def _plain_log(axes: Axes) -> None:
    """Label a log axis with plain numbers: 0.5, 2, 30, 800."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_ylim()
    narrow = high / low < 30
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 3, 5) if narrow else (1, 3), numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
