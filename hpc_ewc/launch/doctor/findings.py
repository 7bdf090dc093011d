"""What `hpc-ewc doctor` found, one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "look", "wrong", "not tried"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    check: str
    state: State
    """look: jobs will run, perhaps not as meant. wrong: they will not."""
    text: str
    fix: str = ""


def ok(check: str, text: str) -> Finding:
    return Finding(check, "ok", text)


def look(check: str, text: str, fix: str) -> Finding:
    return Finding(check, "look", text, fix)


def wrong(check: str, text: str, fix: str) -> Finding:
    return Finding(check, "wrong", text, fix)


def not_tried(check: str, why: str) -> Finding:
    return Finding(check, "not tried", why)
