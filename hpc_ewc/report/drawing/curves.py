"""Curves against λ: accuracy of each task in the layout of the paper's figure 3, the mean, perplexities."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hpc_ewc.report.analysis.estimates import Estimate
from hpc_ewc.report.drawing.paper import accuracy_curve, perplexity_curve
from hpc_ewc.report.drawing.style import GREY, GROUP_MARKERS, INK, MANY, Look, StrengthAxis, legend_below, look, plain
from hpc_ewc.report.study.columns import Column, language_name
from hpc_ewc.report.tables.builder import Builder, plain_name
from hpc_ewc.report.tables.lines import Line
from hpc_ewc.report.tables.texts import shown_texts

MOST_GROUPS = 4
"""Most curves of one language in one panel; more could not be distinguished."""
Values = Callable[[Line], Estimate | None]
PaperCurve = tuple[list[float], list[float], float]


@dataclass(frozen=True)
class Curve:
    """One quantity in one language."""

    label: str
    look: Look
    values: Values
    chance: float | None = None
    paper: PaperCurve | None = None
    scale: float = 100.0
    """100 for values shown in per cent, else 1."""


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


def draw_curve(axes: Axes, build: Builder, curve: Curve, x: StrengthAxis) -> None:
    """Draw values with standard errors, joined over λ > 0; the base as a horizontal line; the paper's in grey."""
    style = curve.look
    for number, lines in enumerate(groups(build)[:MOST_GROUPS]):
        points = [(line.first.strength or 0.0, e) for line in lines if (e := curve.values(line)) is not None]
        if not points:
            continue
        alpha = 1.0 if number == 0 else 0.55
        joined = [point for point in points if point[0] > 0]
        places, values, errors = _xy(joined, x, curve.scale)
        if len(joined) > MANY:
            low, high = (np.array(values) + sign * np.array(errors) for sign in (-1, 1))
            axes.fill_between(places, low, high, color=style.colour, alpha=0.25 * alpha, linewidth=0, zorder=2)
        axes.plot(places, values, color=style.colour, linestyle=style.dashes, linewidth=1.4, alpha=alpha, zorder=3)
        marked = [point for point in points if point[0] == 0] if len(joined) > MANY else points
        places, values, errors = _xy(marked, x, curve.scale)
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
            label=curve.label if number == 0 else None,
            zorder=4,
        )
    for value in filter(None, map(curve.values, build.lines.bases)):
        axes.axhline(curve.scale * value.value, color=style.colour, linewidth=0.9, linestyle=(0, (1, 1.5)), zorder=2)
        if value.stderr:
            low, high = value.value - value.stderr, value.value + value.stderr
            axes.axhspan(curve.scale * low, curve.scale * high, color=style.colour, alpha=0.10, linewidth=0, zorder=1)
    if curve.chance is not None:
        axes.axhline(curve.scale * curve.chance, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    if curve.paper is not None:
        strengths, values, _ = curve.paper
        places, values = [x.place(s) for s in strengths], [curve.scale * v for v in values]
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
    panels: dict[str, list[tuple[int, Column]]] = defaultdict(list)
    means = _mean_curves(build, paper, several=True)
    for place, language in enumerate(build.languages):
        for column in build.study.means(language):
            if not column.variant:
                panels[column.label].append((place, column))
    if not panels or not groups(build):
        return None
    x = axis_of(build, paper=paper)
    count = len(panels) + bool(means)
    columns = min(4, count)
    rows = -(-count // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(2.75 * columns, 2.35 * rows + 0.5), squeeze=False, sharex=True)
    each = list(grid.flat)
    for axes, (_, members) in zip(each, panels.items(), strict=False):
        for place, column in members:
            draw_curve(axes, build, _task_curve(build, column, place, paper), x)
        axes.set_title(plain(plain_name(members[0][1])))
    for curve in means:
        draw_curve(each[len(panels)], build, curve, x)
        each[len(panels)].set_title("mean over tasks", fontweight="bold")
    for axes in each[count:]:
        axes.set_visible(False)
    _finish(figure, each[:count], columns, x, "accuracy in %")
    shown = [column for members in panels.values() for _, column in members]
    _legend(figure, build, each[:count], paper, chance=any(build.analysis.chances.get(column) for column in shown))
    return figure


def mean_figure(build: Builder, *, paper: bool) -> Figure | None:
    """Mean accuracy of each language against λ: the paper's figure 1b."""
    curves = _mean_curves(build, paper)
    if not curves or not groups(build):
        return None
    x = axis_of(build, paper=paper)
    figure, axes = plt.subplots(figsize=(5.6, 3.9))
    for curve in curves:
        draw_curve(axes, build, curve, x)
    _finish(figure, [axes], 1, x, "accuracy in %, mean over tasks")
    _legend(figure, build, [axes], paper)
    return figure


def perplexity_figure(build: Builder, *, paper: bool) -> Figure | None:
    """TruthfulQA's mean perplexity (the paper's figure 1a) and bits per byte, against λ."""
    texts = [c for c in build.study.columns if c.kind == "perplexity" and c.task == "ppl_truthfulqa"]
    held: dict[str, list[Column]] = defaultdict(list)
    for column in shown_texts(build):
        held[column.variant].append(column)
    if not (texts or held) or not groups(build):
        return None
    x = axis_of(build, paper=paper)
    parts = [(texts, "perplexity_mean"), *((columns, "bits_per_byte") for columns in held.values())]
    parts = [(columns, metric) for columns, metric in parts if columns]
    width = 5.0 if len(parts) < 3 else 4.0
    figure, grid = plt.subplots(1, len(parts), figsize=(width * len(parts), 3.9), squeeze=False)
    for axes, (columns, metric) in zip(grid.flat, parts, strict=True):
        for column in columns:
            place = build.languages.index(column.language)
            overlay = perplexity_curve(column.language) if paper and metric == "perplexity_mean" else None
            curve = Curve(
                language_name(column.language),
                look(place),
                lambda line, column=column, metric=metric: build.lines.value(line, column, metric)[0],  # type: ignore[misc]
                paper=overlay,
                scale=1.0,
            )
            draw_curve(axes, build, curve, x)
        if metric == "perplexity_mean":
            axes.set_yscale("log")
            _plain_log(axes)
            axes.set_ylabel("perplexity (log scale; lower is better)")
        else:
            axes.set_ylabel("bits per byte (lower is better)")
        x.dress(axes)
        titles = list(dict.fromkeys(plain_name(column) for column in columns))
        axes.set_title(
            plain(", ".join(titles)) + (": mean over texts" if metric == "perplexity_mean" else ": all bytes")
        )
    figure.tight_layout(w_pad=2.5)
    _legend(figure, build, list(grid.flat), paper)
    return figure


# ---------------------------------------------------------------------------------------------- parts


def _task_curve(build: Builder, column: Column, place: int, paper: bool) -> Curve:
    return Curve(
        language_name(column.language),
        look(place),
        lambda line: build.lines.value(line, column)[0],
        build.analysis.chances.get(column) or None,
        accuracy_curve(column.task, column.language) if paper else None,
    )


def _mean_curves(build: Builder, paper: bool, *, several: bool = False) -> list[Curve]:
    """The mean of each language; with `several`, only of languages with several tasks."""
    curves = []
    for place, language in enumerate(build.languages):
        mean = build.analysis.mean(language)
        if mean is not None and not (several and mean.single):
            alone = f": {plain_name(mean.single)} alone" if mean.single else ""
            curves.append(
                Curve(
                    plain(f"{language_name(language)}{alone}"),
                    look(place),
                    lambda line, mean=mean: build.lines.value(line, mean)[0],  # type: ignore[misc]
                    paper=accuracy_curve("mean", language) if paper else None,
                )
            )
    return curves


def _finish(figure: Figure, panels: Sequence[Axes], columns: int, x: StrengthAxis, label: str) -> None:
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


def _legend(figure: Figure, build: Builder, panels: Sequence[Axes], paper: bool, *, chance: bool = False) -> None:
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
