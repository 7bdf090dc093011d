"""Print the tables of gpu.py."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

WIDTH = 150
"""Width of tables that are printed to a file."""


def show(result: Mapping[str, Any]) -> None:
    """Print trainings, best first; memory of the best by part; the Fisher; and what to set in a profile."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    trained, estimated = result["training, best first"], result["Fisher, best first"]
    console.print(table_of_trainings(trained))
    good = [row for row in trained if row["outcome"] == "ok"]
    if good:
        console.print(table_of_memory(good[0]))
    if estimated:
        console.print(table_of_fishers(estimated))
    for name in ("left out for want of time", "left out, larger than what had too little memory"):
        if result[name]:
            console.print(f"{name}: {result[name]} combinations")
    if result["not installed"]:
        console.print(f"not installed here: {', '.join(result['not installed'])}")
    if good and result["gpus"]:
        console.print(f"in a profile, for the forecast: gpu_tflops = {good[0]['tflops_per_s of a rank']:.0f}")


def table_of_trainings(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return one row per training; a row that did not run says why."""
    table = Table(title="training, best first: settings, speed, EWC's share, memory of a rank and its forecast")
    for name in ("sequences × tokens", "recomputed", "compile", "attention", "loss"):
        table.add_column(name)
    for name in ("tokens/s", "TFLOP/s", "MFU", "λ > 0 / λ = 0", "penalty", "GB", "forecast"):
        table.add_column(name, justify="right")
    for row in rows:
        way = row["settings"]
        batch = f"{way['rows']} × {way['length']}" + (f" × {way['microbatches']}" if way["microbatches"] > 1 else "")
        compiled = "yes" if way["compile"] else "no"
        table.add_row(batch, way["activation_checkpointing"], compiled, way["attention"], way["loss"], *figures(row))
    return table


def figures(row: Mapping[str, Any]) -> list[str]:
    """Return the figures of a training, or its outcome if it did not run."""
    if row["outcome"] != "ok":
        return [row["outcome"]]
    highest = row["memory_gb of a rank"]["highest"]
    return [
        f"{row['tokens_per_s']:,.0f}",
        f"{row['tflops_per_s of a rank']:.3g}",
        "" if row["mfu"] is None else f"{row['mfu']:.0%}",
        f"{row['λ > 0 / λ = 0, whole step']['median']:.3f}",
        f"{row['penalty alone / step']:.1%}",
        f"{highest['measured']:.3g}",
        f"{highest['predicted']:.3g}",
    ]


def table_of_memory(row: Mapping[str, Any]) -> Table:
    """Return the memory of a training by part."""
    table = Table(title="memory of a rank, the fastest of all")
    table.add_column("part")
    for name in ("GB", "forecast", "measured / forecast"):
        table.add_column(name, justify="right")
    for name, pair in row["memory_gb of a rank"].items():
        over = f"{pair['measured'] / pair['predicted']:.2f}" if pair["predicted"] else ""
        table.add_row(name, f"{pair['measured']:.3g}", f"{pair['predicted']:.3g}", over)
    return table


def table_of_fishers(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return one row per batch of the Fisher."""
    table = Table(title="Fisher (fp32, gold labels, last token scored), best first")
    for name in ("questions × tokens", "examples/s", "GB", "forecast (512 tokens)"):
        table.add_column(name, justify="right")
    for row in rows:
        batch = f"{row['settings']['rows']} × {row['settings']['length']}"
        if row["outcome"] != "ok":
            table.add_row(batch, row["outcome"])
            continue
        highest = row["memory_gb of a rank"]["highest"]
        table.add_row(
            batch, f"{row['examples_per_s']:.3g}", f"{highest['measured']:.3g}", f"{highest['predicted']:.3g}"
        )
    return table
