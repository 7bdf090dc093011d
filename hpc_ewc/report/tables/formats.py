"""Numbers as they are read: a value with its standard error, to the digits that the error leaves meaning to."""

from __future__ import annotations

import math
import re

MINUS = "−"
NOTHING = "–"
"""Stands where there is no value; the list of missing cells says why."""
SOFT_HYPHEN = "\u00ad"
"""Where a head may be broken on a terminal; other media leave it out."""

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters and marks of direction: a name could otherwise move the cursor or turn the line around."""

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
    """Text that does nothing to a terminal but stand there."""
    return CONTROL.sub("�", text)


def task_name(task: str) -> str:
    """ARC easy for arc_easy; what is not known here keeps its own name."""
    return TASK_HEADS.get(task, task).replace(SOFT_HYPHEN, "")


def strength_text(strength: float | None) -> str:
    """λ as in the paper: 0, 1e2, 2.5e6."""
    if strength is None:
        return NOTHING
    if strength == 0 or 0.01 <= strength < 100:
        return f"{strength:g}"
    mantissa, exponent = f"{strength:.6e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def percent(value: float, stderr: float | None = None, *, sign: bool = False) -> str:
    """A share in per cent: 61.2±1.3. With `sign`, a difference in points: +1.3±0.4."""
    return _with_error(_fixed(100 * value, 1, sign=sign, whole=100.0), stderr, 100, 1)


def number(value: float, stderr: float | None = None, *, sign: bool = False) -> str:
    """A perplexity or a count, with three digits or as many as the error leaves: 12.7±0.3, 784±53, 1.2e+08."""
    if abs(value) >= 1e5:
        text = f"{value:+.1e}" if sign else f"{value:.1e}"
        return text.replace("-", MINUS) + ("" if stderr is None or math.isnan(stderr) else f"±{stderr:.1e}")
    size = max(abs(value), stderr or 0.0)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2
    return _with_error(_fixed(value, digits, sign=sign), stderr, 1, digits)


def bits(value: float, stderr: float | None = None, *, sign: bool = False) -> str:
    """Bits per byte, to three decimals, five where the error is smaller than that: 0.208±0.004, +0.00023±0.00003."""
    digits = 5 if stderr is not None and 0 < stderr < 5e-4 else 3
    return _with_error(_fixed(value, digits, sign=sign), stderr, 1, digits)


def amount(value: float | None) -> str:
    """A quantity of any size to three digits: 4,096, 1.23e9, 0.0312."""
    if value is None:
        return NOTHING
    return f"{int(value):,}".replace("-", MINUS) if value == int(value) and abs(value) < 1e7 else measure(value)


def measure(value: float | None) -> str:
    """What is measured and not counted, to three digits: 1.23e9, 0.0312."""
    if value is None:
        return NOTHING
    if 1000 <= abs(value) < 9999.5:
        return f"{value:.0f}".replace("-", MINUS)
    return f"{value:.3g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-").replace("-", MINUS)


def duration(seconds: float | None) -> str:
    """33 s, 5.4 min, 2.1 h."""
    if seconds is None:
        return NOTHING
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"


def p_text(p: float | None) -> str:
    """.03, <.001; nothing where there is none."""
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
