"""The trade-off: the old language kept against the new one learnt."""

from __future__ import annotations

from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from hpc_ewc.report.analysis.means import Mean
from hpc_ewc.report.drawing.curves import MOST_GROUPS, groups
from hpc_ewc.report.drawing.style import GREY, GROUP_MARKERS, INK, MANY, legend_below, look, plain
from hpc_ewc.report.study.columns import SOURCE_LANGUAGE, language_name
from hpc_ewc.report.tables.builder import Builder
from hpc_ewc.report.tables.choose import Choice
from hpc_ewc.report.tables.formats import strength_text
from hpc_ewc.report.tables.lines import Line
from hpc_ewc.report.tables.measure import Gain, gain
from hpc_ewc.report.tables.recommendation import points_text
from hpc_ewc.report.tables.summary import front

MOST_NAMES = 16
"""Most points that are all labelled; of more only some are."""


def tradeoff_figure(build: Builder, choice: Choice | None) -> Figure | None:
    """One point per run, the front joined, the recommended λ ringed, the forbidden loss shaded."""
    old, new = build.analysis.mean(SOURCE_LANGUAGE), gain(build)
    if old is None or new is None:
        return None
    scale = 100.0 if isinstance(new.what, Mean) else 1.0
    points: dict[Line, tuple[float, float, float, float]] = {}
    for line in build.lines.lines:
        kept, learnt = build.lines.value(line, old)[0], new.value(build, line)
        if kept is not None and learnt is not None:
            errors = (100 * (kept.stderr or 0.0), scale * (learnt.stderr or 0.0))
            points[line] = (100 * kept.value, scale * learnt.value, *errors)
    if len(points) < 2:
        return None
    figure, axes = plt.subplots(figsize=(6.2, 4.6))
    best = [points[line] for line in front(build) if line in points]
    best.sort()
    axes.plot([p[0] for p in best], [p[1] for p in best], color=GREY, linewidth=1.0, linestyle="-", zorder=1)
    style = look(0)
    marked = points if len(points) <= MANY else {line: p for line, p in points.items() if line in named(build, choice)}
    place_of = {line: place for place, lines in enumerate(groups(build)[:MOST_GROUPS]) for line in lines}
    if len(points) > MANY:
        cloud = [p for line, p in points.items() if line not in marked]
        axes.plot([p[0] for p in cloud], [p[1] for p in cloud], ".", color=style.colour, alpha=0.4, zorder=2)
    several = len(groups(build)) > 1
    for line, (x, y, dx, dy) in marked.items():
        place = place_of.get(line, MOST_GROUPS if several else 0)
        axes.errorbar(
            x,
            y,
            xerr=dx,
            yerr=dy,
            color=INK if line.first.is_base else look(place).colour if place < MOST_GROUPS else GREY,
            marker="*" if line.first.is_base else (*GROUP_MARKERS, ".")[place] or "o",
            markersize=12 if line.first.is_base else 6,
            elinewidth=0.8,
            alpha=0.95,
            zorder=4 if line.first.is_base else 3,
        )
    axes.margins(0.12)
    if new.sign < 0:
        axes.invert_yaxis()
    if choice is not None:
        _shade(axes, choice, points)
    axes.set_xlabel(f"{language_name(SOURCE_LANGUAGE)} accuracy in % (kept →)")
    axes.set_ylabel(_learnt(new))
    _make_room(axes, [x for x, *_ in points.values()])
    _ring(figure, axes, build, choice, points)
    some = set(marked) if len(marked) <= MOST_NAMES else named(build, choice)
    from_the_top = sorted((item for item in marked.items() if item[0] in some), key=lambda item: -new.sign * item[1][1])
    names = [
        f"λ = {strength_text(line.first.strength)}" if several and line in place_of else build.lines.name(line)
        for line, _ in from_the_top
    ]
    _name_points(axes, [(name, (x, y)) for name, (_, (x, y, *_)) in zip(names, from_the_top, strict=True)])
    return figure


def _learnt(new: Gain) -> str:
    """Label of the vertical axis."""
    language = language_name(new.what.language)
    if isinstance(new.what, Mean):
        return f"{language} accuracy in % (learnt →)"
    return plain(f"{language} bits per byte{new.what.variant and ', '}{new.what.variant} (learnt →)")


def named(build: Builder, choice: Choice | None) -> set[Line]:
    """Points that are labelled among many: the base, the ends of the λs and of the front, the recommended one."""
    lines = build.lines.lines
    found = {line for line in lines if line.first.is_base}
    trained = [line for line in lines if line.first.strength is not None]
    new = gain(build)
    values = {} if new is None else {line: (new.sign, new.value(build, line)) for line in front(build)}
    best = sorted((sign * e.value, line.first, line) for line, (sign, e) in values.items() if e is not None)
    found |= {trained[0], trained[-1]} if trained else set()
    found |= {best[0][-1], best[-1][-1]} if best else set()
    return found | ({choice.best.line} if choice is not None and choice.best is not None else set())


def _make_room(axes: Axes, values: list[float]) -> None:
    """Make room for labels right of the rightmost point; beyond 100 % the axis has no ticks."""
    low, high = axes.get_xlim()
    axes.set_xlim(low, max(values) + max(0.2 * (max(values) - low), min(high, 100.0) - max(values)))
    axes.set_xticks([tick for tick in axes.get_xticks() if low <= tick <= 100.0])


def _name_points(axes: Axes, points: list[tuple[str, tuple[float, float]]]) -> None:
    """Label each point beside it, clear of other labels and points; a thin line joins a label that had to move away.

    Widths are estimated from the number of letters: measuring them takes another drawing of the figure.
    """
    height, letter = 12.0, 5.6  # of 8.5 pt text, in points
    scale = 72.0 / float(axes.figure.dpi)
    marks = [axes.transData.transform(point) * scale for _, point in points]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in marks]
    edge = axes.transAxes.transform((1.0, 1.0))[0] * scale
    sides = [
        (side, (9.0 + max(0.0, abs(dy) - 16.0)) * side, dy)
        for side in (1, -1)
        for dy in (3.0, -15.0, 17.0, -29.0, 31.0, -43.0)
    ]
    for (name, point), (x, y) in zip(points, marks, strict=True):
        width = letter * len(name)
        boxes = [
            (x + dx if side > 0 else x + dx - width, y + dy, x + dx + (width if side > 0 else 0), y + dy + height)
            for side, dx, dy in sides
        ]
        free = [
            place
            for place, box in enumerate(boxes)
            if box[2] <= edge and not any(_overlap(box, other) for other in taken)
        ]
        place = free[0] if free else 0
        taken.append(boxes[place])
        side, dx, dy = sides[place]
        axes.annotate(
            plain(name),
            point,
            xytext=(dx, dy),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="bottom",
            fontsize=8.5,
            zorder=6,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkB": 3.0} if abs(dy) > 16 else None,
        )


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _shade(axes: Axes, choice: Choice, points: dict[Line, tuple[float, float, float, float]]) -> None:
    """Shade where more is lost than the rule allows; several base models have no common limit."""
    bases = [line for line in points if line.first.is_base]
    if len(bases) != 1:
        return
    limit = points[bases[0]][0] - 100 * choice.max_loss
    low, high = axes.get_xlim()
    low = min(low, limit - 0.05 * (high - low))
    axes.axvspan(low - 100, limit, color="#000000", alpha=0.05, linewidth=0, zorder=0)
    axes.set_xlim(low, high)


def _ring(
    figure: Figure,
    axes: Axes,
    build: Builder,
    choice: Choice | None,
    points: dict[Line, tuple[float, float, float, float]],
) -> None:
    """Ring the recommended λ, and explain ring and shade in a legend below."""
    handles: list[Any] = []
    settings = [lines for lines in groups(build)[:MOST_GROUPS] if any(line in points for line in lines)]
    for place, lines in enumerate(settings if len(settings) > 1 else ()):
        look_of = {"color": look(place).colour, "marker": GROUP_MARKERS[place] or "o", "linestyle": "none"}
        handles.append(Line2D([], [], label=plain(build.lines.setting(lines[0])), **look_of))  # type: ignore[arg-type]
    if choice is not None and sum(line.first.is_base for line in points) == 1:
        handles.append(Patch(color="#000000", alpha=0.08, linewidth=0))
        handles[-1].set_label(f"loses more than {points_text(choice.max_loss)}")
    if choice is not None and choice.best is not None and choice.best.line in points:
        x, y, *_ = points[choice.best.line]
        ring = {"marker": "o", "markerfacecolor": "none", "markeredgecolor": "#D55E00", "markeredgewidth": 1.8}
        axes.plot(x, y, markersize=15, **ring)  # type: ignore[arg-type]  # of floats and strings
        name = f"recommended: {build.lines.name(choice.best.line)} ({100 * choice.best.chosen:.0f} % of resamples)"
        handles.append(Line2D([], [], linestyle="none", markersize=10, label=plain(name), **ring))  # type: ignore[arg-type]
    if handles:
        legend_below(figure, handles, [handle.get_label() for handle in handles])
    else:
        figure.tight_layout()
