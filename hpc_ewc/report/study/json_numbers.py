"""Checks of numbers in JSON files, which Python reads without asking whether they are finite floats."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any


def finite_number(value: Any) -> float | None:
    """The value as a float; None for anything else: NaN, an integer beyond every float, a boolean, a string."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        with suppress(OverflowError):
            return float(value) if math.isfinite(value) else None
    return None


def find_bad_number(value: Any) -> str | None:
    """The first few characters of a number, at any depth, that is not a finite float; None if there is none."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, (dict, list)):
            waiting += item.values() if isinstance(item, dict) else item
        elif isinstance(item, (int, float)) and not isinstance(item, bool) and finite_number(item) is None:
            return str(item)[:20]
    return None
