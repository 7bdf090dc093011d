"""Draw front.svg, the README's picture, from results/gemma3-270m-lt/results.csv: `make docs`."""

from __future__ import annotations

import csv
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parents[1] / "results" / "gemma3-270m-lt" / "results.csv"
PICTURE = HERE / "front.svg"

TEXTS = {
    "ppl_heldout.lt": ("Lithuanian statutes", "the new texts"),
    "ppl_heldout.en.flores": ("English sentences", "the old language (FLORES)"),
    "ppl_heldout.en.news": ("English news", "the old language"),
    "ppl_heldout.lt.flores": ("Lithuanian sentences", "the new language (FLORES)"),
    "ppl_heldout.lt.news": ("Lithuanian news", "the new language"),
}
RUNS = {0.0: ("without", "λ = 0: no penalty"), 1e3: ("with", "λ = 1e3: held by EWC")}

WIDTH, HEIGHT = 860, 392
LEFT, RIGHT, TOP, ROW = 280, 826, 98, 50
LOW, HIGH = -0.15, 0.325
"""Range of the axis, in bits per byte."""

STYLE = """
    svg { --paper: #ffffff; --ink: #1f2328; --faint: #59636e; --line: #d1d9e0; --without: #c44900; --with: #0072b2 }
    @media (prefers-color-scheme: dark) {
      svg { --paper: #161b22; --ink: #f0f6fc; --faint: #9198a1; --line: #3d444d; --without: #ff9650; --with: #58b4f0 }
    }
    text { font: 14px system-ui, sans-serif; fill: var(--ink) }
    .title { font-size: 17px; font-weight: 600 }
    .faint { fill: var(--faint); font-size: 12px }
    .middle { text-anchor: middle }
    .without { fill: var(--without); stroke: var(--without) } .with { fill: var(--with); stroke: var(--with) }
    text.without, text.with { stroke: none; font-weight: 600 }
"""


def read_changes() -> dict[tuple[str, float], tuple[float, float, float]]:
    """Return the change in bits per byte against the base, and its 95 % interval, by text and λ."""
    with RESULTS.open(encoding="utf-8", newline="") as file:
        return {
            (row["cell"], float(row["strength"])): (
                float(row["difference"]),
                float(row["difference_low"]),
                float(row["difference_high"]),
            )
            for row in csv.DictReader(file)
            if row["metric"] == "bits_per_byte" and row["difference"] and not row["subset"]
        }


def across(change: float) -> float:
    """Return the horizontal position of a change."""
    return round(LEFT + (change - LOW) / (HIGH - LOW) * (RIGHT - LEFT), 1)


def render() -> str:
    """Return the picture: a row for each text, with the change of both runs and its 95 % interval."""
    changes = read_changes()
    bottom = TOP + ROW * len(TEXTS)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="title">',
        '<title id="title">Change in bits per byte after training Gemma 3 270M on Lithuanian statutes</title>',
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" style="fill: var(--paper)"/>',
        '<text class="title" x="24" y="34">Gemma 3 270M learns Lithuanian law: what happens to the rest?</text>',
    ]
    for (name, words), x in zip(RUNS.values(), (24, 212), strict=True):
        parts.append(f'<circle class="{name}" cx="{x + 6}" cy="59" r="6"/>')
        parts.append(f'<text class="{name}" x="{x + 18}" y="64">{words}</text>')
    parts.append(
        f'<text class="faint middle" x="{(LEFT + across(0)) / 2:g}" y="{TOP - 10}">← better than before</text>'
    )
    parts.append(f'<text class="faint middle" x="{(across(0) + RIGHT) / 2:g}" y="{TOP - 10}">forgotten →</text>')
    for tick in (-0.1, 0.0, 0.1, 0.2, 0.3):
        x, strong = across(tick), ' stroke-width="2"' if tick == 0 else ""
        parts.append(f'<path d="M{x} {TOP}V{bottom}" style="stroke: var(--line)"{strong}/>')
        label = f"{tick:+.1f}".replace("-", "−") if tick else "0"
        parts.append(f'<text class="faint middle" x="{x}" y="{bottom + 18}">{label}</text>')
    for number, (cell, (text, note)) in enumerate(TEXTS.items()):
        middle = TOP + ROW * number + ROW // 2
        parts.append(f'<text x="24" y="{middle}">{text}</text>')
        parts.append(f'<text class="faint" x="24" y="{middle + 16}">{note}</text>')
        for (strength, (name, _)), y in zip(RUNS.items(), (middle - 8, middle + 8), strict=True):
            change, low, high = changes[cell, strength]
            parts.append(f'<path class="{name}" d="M{across(low)} {y}H{across(high)}" stroke-width="3"/>')
            parts.append(f'<circle class="{name}" cx="{across(change)}" cy="{y}" r="5.5"/>')
    caption = "change in bits per byte against the base model; bars: 95 % intervals, paired by document; one seed"
    parts.append(f'<text class="faint" x="24" y="{bottom + 36}">{caption}</text>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(render(), encoding="utf-8")
