"""Findings of `hpc-ewc doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

State = Literal["ok", "warn", "fail", "skipped"]
CHECK_WIDTH = 16


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    state: State
    """warn: jobs will run, but perhaps not as intended. fail: they will not run."""
    check: str
    text: str
    fix: str = ""

    def render(self) -> str:
        """`ok       torch             2.13.0`, with the fix on a second line."""
        start = f"{self.state:<7}  {self.check:<{CHECK_WIDTH}}  "
        return f"{start}{self.text}\n" + (f"{'':<{len(start)}}→ {self.fix}\n" if self.fix else "")


ok = partial(Finding, "ok")
warn = partial(Finding, "warn")
fail = partial(Finding, "fail")
skipped = partial(Finding, "skipped")
