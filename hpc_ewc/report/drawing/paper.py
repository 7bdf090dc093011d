"""The paper's own curves for an overlay: values read off its figures, with their source."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

PaperCurve = tuple[list[float], list[float], float]
"""λs, values, and the value of the unmodified model."""


@cache
def paper() -> dict[str, Any]:
    """Contents of paper_fig3.json: source, how, warning, accuracy, perplexity."""
    loaded: dict[str, Any] = json.loads(resources.files(__package__).joinpath("paper_fig3.json").read_text("utf-8"))
    return loaded


def curve(facts: dict[str, Any], language: str) -> PaperCurve | None:
    """The curve of one quantity in one language."""
    found = facts.get(language)
    if found is None:
        return None
    points = sorted((float(strength), float(value)) for strength, value in found["lambda"].items())
    return [x for x, _ in points], [y for _, y in points], float(found["unmodified"])


def accuracy_curve(task: str, language: str) -> PaperCurve | None:
    """The curve of one task, as shares; for `mean`, over the paper's seven tasks."""
    accuracy = paper()["accuracy"]
    if task != "mean":
        return curve(accuracy.get(task, {}), language)
    each = [curve(facts, language) for facts in accuracy.values()]
    known = [c for c in each if c is not None]
    if not known:
        return None
    values = [sum(column) / len(known) for column in zip(*(c[1] for c in known), strict=True)]
    return known[0][0], values, sum(c[2] for c in known) / len(known)


def perplexity_curve(language: str) -> PaperCurve | None:
    """The curve of the mean perplexity of TruthfulQA's pairs."""
    return curve(paper()["perplexity"], language)
