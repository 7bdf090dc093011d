"""Rows of a run's status: one for each stage of each run, with its progress."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from hpc_ewc import records
from hpc_ewc.errors import ArtefactError
from hpc_ewc.rundir import StageDir

STAGES = ("tokens", "fisher", "train", "evaluate", "report")
STATES = ("running", "failed", "blocked", "stopped", "waiting", "missing", "done")
"""The most urgent first."""
JSON_FIELDS = ("rate", "tokens_per_s", "loss", "eta_s", "cell", "updated")


@dataclass(frozen=True)
class Progress:
    """How much of an artefact exists."""

    done: float
    total: float
    unit: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    """The newest progress file: loss, eta_s, tokens_per_s, cell, node, …"""

    @property
    def share(self) -> float:
        return min(1.0, self.done / self.total) if self.total else 0.0

    @property
    def amount(self) -> str:
        """`120/180 step`, or "" if the total is unknown."""
        return f"{self.done:.0f}/{self.total:.0f} {self.unit}" if self.total else ""


@dataclass(frozen=True)
class Row:
    """The status of one stage of one run."""

    stage: str
    run: str
    state: str
    """done, running, waiting, missing, failed, stopped, or blocked (an input of it failed)."""
    progress: Progress | None = None
    note: str = ""
    restarts: int = 0
    nodes: str = ""
    gpu_hours: float = 0.0
    """Summed over all attempts."""
    reason: str = ""
    """Slurm's reason code for a job that waits."""

    @property
    def id(self) -> str:
        return f"{self.stage}/{self.run}" if self.run else self.stage

    def as_json(self) -> dict[str, Any]:
        """The row as an entry of `stages` in `status --json`, without its jobs."""
        facts: dict[str, Any] = {"stage": self.stage, "run": self.run, "state": self.state, "note": self.note}
        facts |= {"reason": self.reason, "restarts": self.restarts, "nodes": self.nodes}
        facts["gpu_hours"] = round(self.gpu_hours, 4)
        if self.progress is not None:
            amount = {"done": self.progress.done, "total": self.progress.total, "unit": self.progress.unit}
            shown = {name: self.progress.fields[name] for name in JSON_FIELDS if name in self.progress.fields}
            facts["progress"] = {**amount, **shown, "text": describe(self.progress)}
        return facts


def read_progress(folder: StageDir, job_ids: Iterable[str], expected: int = 0) -> Progress | None:
    """The progress files of a stage's live jobs, combined; None if there are none.

    Args:
        folder: of the stage.
        job_ids: live jobs; files of other jobs are ignored.
        expected: cells of an evaluation; cells that no live job works on count as done.
    """
    wanted = set(job_ids)
    files = []
    for path in sorted(folder.progress_dir.glob("*.json")):
        with suppress(FileNotFoundError, ArtefactError):
            facts = records.read_checked(path, "progress")
            if str(facts.get("job_id")) in wanted:
                files.append(facts)
    if not files:
        return None
    newest = max(files, key=lambda facts: float(facts["updated"]))
    if not expected:
        return Progress(float(newest["done"]), float(newest["total"]), str(newest["unit"]), newest)
    left = sum(float(facts["total"]) - float(facts["done"]) for facts in files)
    return Progress(expected - left, expected, str(newest["unit"]), newest)


def describe(progress: Progress) -> str:
    """`120/180 step, loss 1.234, 45 s left`."""
    parts = [progress.amount]
    for name in ("cell", "loss"):
        value = progress.fields.get(name)
        parts.append(f"{name} {value:.3f}" if isinstance(value, float) else str(value or ""))
    eta = progress.fields.get("eta_s")
    parts.append(f"{duration(float(eta))} left" if isinstance(eta, (int, float)) else "")
    return ", ".join(filter(None, parts))


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


def count_states(rows: Iterable[Row]) -> str:
    """`1 running, 3 done`, the most urgent state first."""
    found = Counter(row.state for row in rows)
    return ", ".join(f"{found[state]} {state}" for state in STATES if found[state])


def count_by_stage(rows: Sequence[Row]) -> str:
    """`train: 1 running, 3 done, evaluate: 4 waiting`."""
    by_stage = {stage: [row for row in rows if row.stage == stage] for stage in STAGES}
    return ", ".join(f"{stage}: {count_states(mine)}" for stage, mine in by_stage.items() if mine)


def most_urgent(rows: Sequence[Row], limit: int) -> list[Row]:
    """All rows if they are within the limit; else at most `limit` of those that are neither done nor waiting."""
    if len(rows) <= limit:
        return list(rows)
    chosen = {row.id for row in sorted(rows, key=lambda row: STATES.index(row.state))[:limit]}
    return [row for row in rows if row.id in chosen and row.state not in ("done", "waiting")]
