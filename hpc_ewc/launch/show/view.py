"""What a person sees of an experiment: a row a stage and run, on a terminal or as plain lines."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hpc_ewc import records
from hpc_ewc.errors import ArtefactError
from hpc_ewc.rundir import StageDir

STAGES = ("tokens", "fisher", "train", "evaluate", "report")
COLOURS = {"done": "green", "running": "cyan", "failed": "red", "stopped": "yellow", "blocked": "red"}
ORDER = ("running", "failed", "blocked", "stopped", "waiting", "missing", "done")
BAR = 16
PLAIN_EVERY_S = 30.0


@dataclass(frozen=True)
class Progress:
    """How far an artefact is."""

    done: float
    total: float
    unit: str = ""
    fields: dict[str, Any] | None = None

    @property
    def share(self) -> float:
        return min(1.0, self.done / self.total) if self.total else 0.0


@dataclass(frozen=True)
class Row:
    """One stage of one run."""

    stage: str
    run: str
    state: str
    """done, running, waiting, missing, failed, stopped, or blocked: something it reads failed."""
    progress: Progress | None = None
    note: str = ""
    restarts: int = 0
    nodes: str = ""
    gpu_hours: float = 0.0
    """Of all its attempts."""
    reason: str = ""
    """Slurm's word for why it waits."""

    @property
    def id(self) -> str:
        return f"{self.stage}/{self.run}" if self.run else self.stage


def read_progress(folder: StageDir, job_ids: Iterable[str], expected: int = 0) -> Progress | None:
    """What the elements that run now say of themselves, as one.

    Args:
        folder: of the stage.
        job_ids: of its live jobs; what earlier jobs left says nothing.
        expected: cells of an evaluation; those that no running element has are done.
    """
    wanted = set(job_ids)
    lines = []
    for path in sorted(folder.progress_dir.glob("*.json")):
        with suppress(FileNotFoundError, ArtefactError):
            line = records.read_checked(path, "progress")
            if str(line.get("job_id")) in wanted:
                lines.append(line)
    if not lines:
        return None
    newest = max(lines, key=lambda line: float(line["updated"]))
    if not expected:
        return Progress(float(newest["done"]), float(newest["total"]), str(newest["unit"]), newest)
    left = sum(float(line["total"]) - float(line["done"]) for line in lines)
    return Progress(expected - left, expected, str(newest["unit"]), newest)


def describe(progress: Progress) -> str:
    """`120/180 steps, loss 1.234, 45 s left`."""
    fields = progress.fields or {}
    parts = [f"{progress.done:.0f}/{progress.total:.0f} {progress.unit}" if progress.total else ""]
    for name in ("cell", "loss"):
        value = fields.get(name)
        parts.append(f"{name} {value:.3f}" if isinstance(value, float) else str(value) if value else "")
    eta = fields.get("eta_s")
    parts.append(f"{duration(float(eta))} left" if isinstance(eta, (int, float)) else "")
    return ", ".join(part for part in parts if part)


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 05 min`."""
    if not math.isfinite(seconds):
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def counts(states: Iterable[str]) -> str:
    """`3 done, 1 running`, in the order that matters."""
    found = Counter(states)
    return ", ".join(f"{found[state]} {state}" for state in ORDER if found[state])


# ---------------------------------------------------------------------------------------------- as a table


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Lines of aligned text. rich takes a second for what a thousand runs need here."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def render_table(rows: Sequence[Row], limit: int | None = None) -> RenderableType:
    """A line a stage and run. With a limit, first a line a stage, then the rows that are not simply done or waiting."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("stage", "run", "state", "progress", ""):
        table.add_column(name, no_wrap=name != "", overflow="ellipsis")
    for row in rows if limit is None else busiest(rows, limit):
        table.add_row(row.stage, row.run, _state(row.state), _bar(row), _detail(row))
    if limit is None or len(rows) <= limit:
        return table
    return Group(Text(", ".join(f"{stage}: {line}" for stage, line in by_stage(rows))), table)


def by_stage(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Each stage with how many of its rows are in which state."""
    return [(s, counts(row.state for row in rows if row.stage == s)) for s in STAGES if any(r.stage == s for r in rows)]


def busiest(rows: Sequence[Row], limit: int) -> list[Row]:
    """All, or as many as may be shown of those that are not simply done or waiting."""
    if len(rows) <= limit:
        return list(rows)
    chosen = {row.id for row in sorted(rows, key=lambda row: ORDER.index(row.state))[:limit]}
    return [row for row in rows if row.id in chosen and row.state not in ("done", "waiting")]


def _state(state: str) -> Text:
    return Text(state, style=COLOURS.get(state, "dim"))


def _bar(row: Row) -> str:
    if row.progress is None or row.state != "running":
        return ""
    filled = round(BAR * row.progress.share)
    return "█" * filled + "·" * (BAR - filled)


def _detail(row: Row) -> str:
    return row.note or (describe(row.progress) if row.progress is not None and row.state == "running" else "")


# ---------------------------------------------------------------------------------------------- while it runs


class Display(AbstractContextManager["Display"]):
    """Progress on stderr: a live table on a terminal, plain lines elsewhere."""

    def __init__(self, *, force_plain: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.plain = force_plain or not self.console.is_terminal
        self.live: Live | None = None
        self.states: dict[tuple[str, str], str] = {}
        self.said_at = time.monotonic()

    def __enter__(self) -> Display:
        if not self.plain:
            # A progress table is no place for what was on the screen before: it goes away at the end.
            self.live = Live(console=self.console, refresh_per_second=4, transient=True, redirect_stdout=False)
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def say(self, text: str) -> None:
        """One line that stays."""
        if self.plain:
            sys.stderr.write(f"{time.strftime('%H:%M:%S')}  {text}\n")
            sys.stderr.flush()
        else:
            self.console.print(text, markup=False, soft_wrap=True)

    def update(self, rows: Sequence[Row]) -> None:
        """How things stand now."""
        if self.live is not None:
            self.live.update(render_table(rows, limit=max(8, self.console.size.height - 6)))
        elif self.plain:
            self._lines(rows)

    def _lines(self, rows: Sequence[Row]) -> None:
        """A line for each change of state, and now and then how far the running ones are."""
        for row in rows:
            known = self.states.get((row.stage, row.run))
            if known is not None and known != row.state:
                self.say(
                    " ".join(filter(None, [row.stage, row.run, row.state])) + (f": {row.note}" if row.note else "")
                )
                self.said_at = time.monotonic()
            self.states[row.stage, row.run] = row.state
        if time.monotonic() - self.said_at > PLAIN_EVERY_S:
            self.said_at = time.monotonic()
            for row in rows:
                if row.state == "running" and row.progress is not None:
                    self.say(f"{row.stage} {row.run} {describe(row.progress)}")
