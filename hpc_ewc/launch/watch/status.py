"""`hpc-ewc status`: the status of a run, as a table, a live table, or JSON."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from hpc_ewc import records
from hpc_ewc.launch.show.rows import Row, count_states
from hpc_ewc.launch.show.table import render_table
from hpc_ewc.launch.watch.reader import StatusReader
from hpc_ewc.launch.watch.run_status import RunStatus, open_run

WATCH_INTERVAL_S = 1.0
"""Between two reads of the files; Slurm is queried once a minute."""
REASONS_SHOWN = 3


def status(folder: Path, *, watch: bool, as_json: bool) -> int:
    """Print the status of a run; 0 all done, 1 something failed and nothing is running, 3 not finished."""
    reader = StatusReader(open_run(folder))
    console = Console(highlight=False)
    if watch and console.is_terminal and not as_json:
        return _watch(reader, console)
    found = reader.read()
    if as_json:
        sys.stdout.write(json.dumps(_as_json(found), ensure_ascii=False, indent=1) + "\n")
        return exit_status(found.rows)
    console.print(render_status(found, console.width if console.is_terminal else None), soft_wrap=True)
    while watch and exit_status(found.rows) == 3:  # without a terminal: one line per change
        time.sleep(WATCH_INTERVAL_S)
        before, found = found, reader.read()
        if [row.state for row in before.rows] != [row.state for row in found.rows]:
            console.print(summary(found), markup=False, soft_wrap=True)
            sys.stdout.flush()
    return exit_status(found.rows)


def _watch(reader: StatusReader, console: Console) -> int:
    with Live(console=console, auto_refresh=False) as live:
        while True:
            found = reader.read()
            live.update(render_status(found, console.width, console.height), refresh=True)
            if exit_status(found.rows) != 3:
                return exit_status(found.rows)
            time.sleep(WATCH_INTERVAL_S)


def render_status(found: RunStatus, width: int | None, height: int | None = None) -> Text:
    """The table, what Slurm did not answer, and a summary.

    Args:
        found: the status.
        width: of the terminal; None: plain text.
        height: of the terminal, which the table must fit; None: show all rows.
    """
    warnings = [" ".join(warning.split()) for warning in found.slurm.warnings]
    limit = None if height is None else max(8, height * 2 // 3 - len(warnings))
    text = render_table(found.rows, width, limit)
    for warning in warnings:
        text.append(f"\n{warning}", "yellow")
    return text.append(f"\n{summary(found)}")


def summary(found: RunStatus) -> str:
    """One line: rows by state, why they wait, GPU-hours, and the submit that is running."""
    states = {row.state for row in found.rows}
    parts = [f"{found.root.name}: {count_states(found.rows)}"]
    reasons = Counter(row.reason for row in found.rows if row.state == "waiting" and row.reason)
    if reasons:
        parts.append("waiting for " + ", ".join(f"{word} ({n})" for word, n in reasons.most_common(REASONS_SHOWN)))
    if found.gpu_hours >= 0.05:
        parts.append(f"{found.gpu_hours:.1f} GPU-hours")
    if found.submitter is not None:
        parts.append(f"submit is running: pid {found.submitter.pid} on {found.submitter.host}")
    elif exit_status(found.rows) and not states & {"running", "waiting"} and not found.slurm.warnings:
        parts.append("nothing is running: resubmit to resume")
    return "; ".join(parts)


def exit_status(rows: Sequence[Row]) -> int:
    """0 all done; 1 something failed and nothing is running; 3 not finished."""
    states = {row.state for row in rows}
    if states <= {"done"}:
        return 0
    return 1 if states & {"failed", "blocked"} and not states & {"running", "waiting"} else 3


def _as_json(found: RunStatus) -> dict[str, Any]:
    stages = []
    for row in found.rows:
        jobs = []
        for job in (job for job in found.jobs[row.id] if job.job_id):
            known = found.slurm.jobs.get(job.job_id)
            jobs.append({"job_id": job.job_id, "outcome": job.outcome, "slurm": known.state if known else ""})
        stages.append(row.as_json() | {"jobs": jobs})
    facts = {"schema": records.SCHEMA, "name": found.root.name, "stages": stages}
    facts |= {"gpu_hours": round(found.gpu_hours, 4), "unanswered": found.slurm.warnings}
    return facts | {"exit_status": exit_status(found.rows)}
