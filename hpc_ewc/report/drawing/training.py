"""Training curves by λ, and the distribution of the Fisher over the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hpc_ewc import records
from hpc_ewc.errors import ArtefactError
from hpc_ewc.report.analysis.statistics import Array
from hpc_ewc.report.drawing.curves import groups
from hpc_ewc.report.drawing.style import legend_below, look, plain
from hpc_ewc.report.study.json_numbers import finite_number
from hpc_ewc.report.study.runs import Run
from hpc_ewc.report.tables.builder import Builder
from hpc_ewc.report.tables.lines import Line

POINTS = 80
"""Most points of a curve: a longer run is shown by the means of equal stretches."""
PANELS = (("loss", "task loss, nats a token"), ("penalty", "penalty λ/2 Σ F (θ−θ*)²"), ("distance", "distance ‖θ−θ*‖"))
MOST_CURVES = 12
"""Most λs whose training is drawn; of more, that many are taken evenly from the smallest to the largest."""
STYLES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)))


def training_figure(build: Builder) -> Figure | None:
    """Loss, penalty and distance to the anchor against the step, one line per λ."""
    curves: list[tuple[Line, dict[str, Array]]] = []
    for line in drawn(build):
        read = read_metrics(build, line.first)
        if read is not None:
            curves.append((line, read))
    if not curves:
        return None
    shown = [(name, label) for name, label in PANELS if any(np.isfinite(read[name]).any() for _, read in curves)]
    figure, grid = plt.subplots(1, len(shown), figsize=(3.7 * len(shown), 3.7), squeeze=False)
    strengths = sorted({line.first.strength or 0.0 for line, _ in curves})
    settings = list(dict.fromkeys(build.lines.setting(line) for line, _ in curves))
    colours = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.85, len(strengths)))
    for axes, (name, label) in zip(grid.flat, shown, strict=True):
        for line, read in curves:
            place, setting = strengths.index(line.first.strength or 0.0), settings.index(build.lines.setting(line))
            steps, values = thin(read["step"], read[name])
            if name == "penalty" and not (values > 0).any():
                continue
            axes.plot(
                steps,
                np.where(values > 0, values, np.nan) if name == "penalty" else values,
                color=colours[place],
                linestyle=STYLES[(setting if len(settings) > 1 else place) % len(STYLES)],
                linewidth=1.4,
                label=plain(build.lines.name(line)),
            )
        if name == "penalty":
            axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_title(label)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    legend_below(figure, handles, labels)
    return figure


def drawn(build: Builder) -> list[Line]:
    """The lines whose training is drawn: all; if these are many, the first group or some of it."""
    every = [line for lines in groups(build) for line in lines]
    if len(every) <= MOST_CURVES:
        return every
    lines = groups(build)[0]
    if len(lines) <= MOST_CURVES:
        return lines
    return [lines[round(place)] for place in np.linspace(0, len(lines) - 1, MOST_CURVES)]


def read_metrics(build: Builder, run: Run) -> dict[str, Array] | None:
    """Columns of metrics.jsonl, with the last line of each step; None if there is no such file or it is corrupt."""
    trained = build.study.trained(run)
    if trained is None:
        return None
    lines: dict[float, Mapping[str, Any]] = {}
    try:
        for line in records.read_lines(trained.folder.metrics):
            if (step := finite_number(line.get("step"))) is not None:
                lines[step] = line
    except ArtefactError:
        return None
    if not lines:
        return None
    order = sorted(lines)
    columns = {name: np.array([drawable(lines[step].get(name)) for step in order]) for name, _ in PANELS}
    return columns | {"step": np.array(order)}


def drawable(value: Any) -> float:
    """The number, or NaN for anything that matplotlib cannot draw: its margins overflow near the largest float."""
    number = finite_number(value)
    return math.nan if number is None or abs(number) > 1e100 else number


def thin(steps: Array, values: Array) -> tuple[Array, Array]:
    """Means over at most POINTS stretches of equal length."""
    if len(steps) <= POINTS:
        return steps, values
    parts = np.array_split(np.arange(len(steps)), POINTS)
    return np.array([steps[p].mean() for p in parts]), np.array([values[p].mean() for p in parts])


# ---------------------------------------------------------------------------------------------- Fisher


def fisher_figure(build: Builder) -> Figure | None:
    """Share of tr F by layer and by kind of parameter."""
    summary = next((found for run in build.study.runs if (found := fisher_summary(build, run))), None)
    if summary is None:
        return None
    layers, kinds = summary["share_by_layer"], summary["share_by_kind"]
    rows = max(len(layers), len(kinds))
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.4, min(11.0, 1.4 + 0.26 * rows)))
    numbered = [f"{n}" for n in sorted(int(name) for name in layers if name.isdecimal())]
    before = [name for name in layers if "embed" in name]
    after = [name for name in layers if name not in (*before, *numbered)]
    names = [*map(short, before), *(f"layer {n}" for n in numbered), *map(short, after)]
    _bars(left, names, [layers[name] for name in (*before, *numbered, *after)], rows)
    left.set_title("by layer")
    order = sorted(kinds, key=lambda name: -kinds[name])
    _bars(right, [short(name) for name in order], [kinds[name] for name in order], rows)
    right.set_title("by kind of parameter")
    figure.tight_layout()
    return figure


def fisher_summary(build: Builder, run: Run) -> dict[str, Any] | None:
    """The summary in the manifest of a run's Fisher, if it has shares by layer and by kind."""
    trained = build.study.trained(run)
    summary = None if trained is None else trained.fisher.get("summary")
    if not isinstance(summary, dict):
        return None
    found = {}
    for name in ("share_by_layer", "share_by_kind"):
        shares = summary.get(name)
        found[name] = {k: finite_number(v) for k, v in shares.items()} if isinstance(shares, dict) else {}
    return found if all(part and None not in part.values() for part in found.values()) else None


def short(name: str) -> str:
    """A parameter's name without its common prefix and suffix."""
    return plain(name.removeprefix("model.").removesuffix(".weight"))


def _bars(axes: Axes, names: Sequence[str], shares: Sequence[float], rows: int) -> None:
    """Draw bars from the top, with room for `rows`, so that the bars of both panels have one height."""
    places = np.arange(len(names))
    axes.barh(places, [100 * share for share in shares], color=look(0).colour, height=0.72)
    axes.set_yticks(places, names, fontsize=8)
    axes.set_ylim(rows - 0.4, -0.6)
    axes.set_xlabel("share of tr F in %")
    axes.grid(axis="y", visible=False)
