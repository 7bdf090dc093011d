"""`hpc-ewc status`: what became of an experiment, as a table, for a person who watches, or for a program."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from hpc_ewc import records
from hpc_ewc.launch.show.overview import render_table, render_text
from hpc_ewc.launch.show.view import Row, counts, describe
from hpc_ewc.launch.watch.survey import Survey, Surveyor, open_run
from hpc_ewc.rundir import RunDir

WATCH_S = 1.0
"""Between two looks at the files; Slurm is asked once a minute."""
REASONS_SHOWN = 3


def status(folder: Path, watch: bool, as_json: bool) -> int:
    """Print how an experiment stands; 0 all done, 1 something failed, 3 not finished yet."""
    root = open_run(folder)
    surveyor = Surveyor(root)
    console = Console(highlight=False)
    if watch and console.is_terminal and not as_json:
        return _watch(root, surveyor, console)
    found = surveyor.look()
    if as_json:
        sys.stdout.write(json.dumps(_as_json(root, found), ensure_ascii=False, indent=1) + "\n")
    else:
        table = render_table(found.rows, console.width) if console.is_terminal else render_text(found.rows)
        console.print(table, markup=False, soft_wrap=True)
        console.print(*_notes(found), summary(root, found), sep="\n", markup=False, soft_wrap=True)
    while watch and not as_json and exit_status(found.rows) == 3:  # no terminal: a line a change
        time.sleep(WATCH_S)
        before, found = found, surveyor.look()
        if [row.state for row in before.rows] != [row.state for row in found.rows]:
            console.print(summary(root, found), markup=False, soft_wrap=True)
            sys.stdout.flush()
    return exit_status(found.rows)


def _watch(root: RunDir, surveyor: Surveyor, console: Console) -> int:
    found = surveyor.look()
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(_screen(root, found, console), refresh=True)
            if exit_status(found.rows) != 3:
                break
            time.sleep(WATCH_S)
            found = surveyor.look()
    return exit_status(found.rows)


def _screen(root: RunDir, found: Survey, console: Console) -> RenderableType:
    notes = [Text(note, style="yellow") for note in _notes(found)]
    table = render_table(found.rows, console.width, limit=max(8, console.height * 2 // 3 - len(notes)))
    return Group(table, *notes, Text(summary(root, found)))


def _notes(found: Survey) -> list[str]:
    return [" ".join(note.split()) for note in found.unanswered]


def summary(root: RunDir, found: Survey) -> str:
    """One line: how many in which state, for what they wait, what it cost, and who is at work."""
    states = {row.state for row in found.rows}
    parts = [f"{root.name}: {counts(row.state for row in found.rows)}"]
    reasons = Counter(row.reason for row in found.rows if row.state == "waiting" and row.reason)
    if reasons:
        parts.append("waiting for " + ", ".join(f"{word} ({n})" for word, n in reasons.most_common(REASONS_SHOWN)))
    if found.gpu_hours >= 0.05:
        parts.append(f"{found.gpu_hours:.1f} GPU-hours")
    if found.holder is not None:
        parts.append(f"submit at work: pid {found.holder.pid} on {found.holder.host}")
    elif exit_status(found.rows) and not states & {"running", "waiting"} and not found.unanswered:
        parts.append("nothing runs: the same submit goes on from here")
    return "; ".join(parts)


def exit_status(rows: Sequence[Row]) -> int:
    """0 all done; 1 something failed and nothing runs any more; 3 not finished."""
    states = {row.state for row in rows}
    if states <= {"done"}:
        return 0
    return 1 if states & {"failed", "blocked"} and not states & {"running", "waiting"} else 3


def _as_json(root: RunDir, found: Survey) -> dict[str, Any]:
    listed = []
    for row in found.rows:
        facts: dict[str, Any] = {"stage": row.stage, "run": row.run, "state": row.state, "note": row.note}
        facts |= {"reason": row.reason, "restarts": row.restarts, "nodes": row.nodes}
        facts["gpu_hours"] = round(row.gpu_hours, 4)
        facts["jobs"] = [_job(found, job.job_id, job.outcome) for job in found.jobs[row.id] if job.job_id]
        if row.progress is not None:
            facts["progress"] = {"done": row.progress.done, "total": row.progress.total, "unit": row.progress.unit}
            for name in ("rate", "tokens_per_s", "loss", "eta_s", "cell", "updated"):
                if row.progress.fields and name in row.progress.fields:
                    facts["progress"][name] = row.progress.fields[name]
            facts["progress"]["text"] = describe(row.progress)
        listed.append(facts)
    facts = {"schema": records.SCHEMA, "name": root.name, "stages": listed, "gpu_hours": round(found.gpu_hours, 4)}
    return facts | {"unanswered": found.unanswered, "exit_status": exit_status(found.rows)}


def _job(found: Survey, job_id: str, outcome: str) -> dict[str, Any]:
    known = found.slurm.get(job_id)
    return {"job_id": job_id, "outcome": outcome, "slurm": known.state if known else ""}
