"""Formats numbers for readers: a value with its standard error, to as many digits as the error justifies."""

from __future__ import annotations

import math
import re

MINUS = "−"
NOTHING = "–"
"""Shown in place of a missing value; the list of missing cells says why."""
SOFT_HYPHEN = "\u00ad"
"""Marks a place at which a terminal may break a head; other media drop it."""

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters and direction marks, by which a name could move the cursor or reverse a line."""

TASK_HEADS = {
    "arc_easy": "ARC easy",
    "belebele": "Belebele",
    "gsm8k": "GSM8K",
    "hellaswag": "HellaSwag",
    "mmlu": "MMLU",
    "truthfulqa_mc2": "Truthful\u00adQA mc2",
    "winogrande": "Wino\u00adgrande",
    "ppl_truthfulqa": "TruthfulQA text",
    "ppl_heldout": "held-out text",
    "judged_answers": "answers, judged",
}


def clean(text: str) -> str:
    """Text without control characters and direction marks."""
    return CONTROL.sub("�", text)


def strength_text(strength: float | None) -> str:
    """λ as the paper writes it: 0, 1e2, 2.5e6."""
    if strength is None:
        return NOTHING
    if strength == 0 or 0.01 <= strength < 100:
        return f"{strength:g}"
    mantissa, exponent = f"{strength:.6e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def percent(value: float, stderr: float | None = None, *, sign: bool = False) -> str:
    """A share in per cent: 61.2±1.3; with `sign` a difference in points: +1.3±0.4."""
    return _with_error(_fixed(100 * value, 1, sign=sign, whole=100.0), stderr, 100, 1)


def number(value: float, stderr: float | None = None, *, sign: bool = False) -> str:
    """A perplexity or a count, to three digits or as many as the error justifies: 12.7±0.3, 784±53, 1.2e+08."""
    if abs(value) >= 1e5:
        text = f"{value:+.1e}" if sign else f"{value:.1e}"
        return text.replace("-", MINUS) + ("" if stderr is None or math.isnan(stderr) else f"±{stderr:.1e}")
    size = max(abs(value), stderr or 0.0)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2
    return _with_error(_fixed(value, digits, sign=sign), stderr, 1, digits)


def bits(value: float, stderr: float | None = None, *, sign: bool = False) -> str:
    """Bits per byte to three decimals, or five if the error is smaller: 0.208±0.004, +0.00023±0.00003."""
    digits = 5 if stderr is not None and 0 < stderr < 5e-4 else 3
    return _with_error(_fixed(value, digits, sign=sign), stderr, 1, digits)


def amount(value: float | None) -> str:
    """A count in full, or any other quantity to three digits: 4,096, 1.23e9, 0.0312."""
    if value is None:
        return NOTHING
    is_count = float(value).is_integer() and abs(value) < 1e7
    return f"{int(value):,}".replace("-", MINUS) if is_count else measure(value)


def measure(value: float | None) -> str:
    """A measured quantity to three digits: 1.23e9, 0.0312."""
    if value is None:
        return NOTHING
    if 1000 <= abs(value) < 9999.5:
        return f"{value:.0f}".replace("-", MINUS)
    return f"{value:.3g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-").replace("-", MINUS)


def duration(seconds: float | None) -> str:
    """A time in a unit that suits it: 33 s, 5.4 min, 2.1 h."""
    if seconds is None:
        return NOTHING
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"


def p_text(p: float | None) -> str:
    """A p-value: .03, <.001; a dash if there is none."""
    if p is None:
        return NOTHING
    return "<.001" if p < 0.001 else f"{p:.3f}".lstrip("0") if p < 0.1 else f"{p:.2f}".lstrip("0") if p < 0.995 else "1"


def _fixed(value: float, digits: int, *, sign: bool, whole: float | None = None) -> str:
    if whole is not None and not sign and round(value, digits) == whole:
        return f"{whole:g}"  # 100 leaves the column as narrow as 99.9
    rounded = round(value, digits) + 0.0  # no minus zero
    text = f"{rounded:+.{digits}f}" if sign and rounded != 0 else f"{rounded:.{digits}f}"
    return text.replace("-", MINUS)


def _with_error(text: str, stderr: float | None, scale: float, digits: int) -> str:
    if stderr is None or math.isnan(stderr):
        return text
    return f"{text}±{scale * stderr:.{digits}f}"
