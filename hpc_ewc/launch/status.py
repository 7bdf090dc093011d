"""What became of an experiment, told from its folder and the processes of this machine: no key is computed here."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from hpc_ewc import records
from hpc_ewc.errors import ArtefactError, ConfigError
from hpc_ewc.launch.artefacts import last_error
from hpc_ewc.launch.graph import REPORT
from hpc_ewc.launch.ledger import History, Job, Ledger, lock_holder
from hpc_ewc.launch.view import Row, counts, describe, read_progress, render_table, render_text
from hpc_ewc.rundir import RunDir, StageDir

WATCH_S = 1.0


def status(folder: Path, watch: bool, as_json: bool) -> int:
    """Print how an experiment stands; 0 all done, 1 something failed, 3 not finished yet."""
    root = open_run(folder)
    console = Console(highlight=False)
    if watch and console.is_terminal and not as_json:
        return _watch(root, console)
    rows, jobs = survey(root)
    if as_json:
        sys.stdout.write(json.dumps(_as_json(root, rows, jobs), ensure_ascii=False, indent=1) + "\n")
    else:
        console.print(render_table(rows) if console.is_terminal else render_text(rows), markup=False, soft_wrap=True)
        console.print(summary(root, rows))
    while watch and not as_json and exit_status(rows) == 3:  # no terminal: a line a change
        time.sleep(WATCH_S)
        before, (rows, _) = rows, survey(root)
        if [row.state for row in before] != [row.state for row in rows]:
            console.print(summary(root, rows))
    return exit_status(rows)


def _watch(root: RunDir, console: Console) -> int:
    rows, _ = survey(root)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(render_table(rows, limit=max(8, console.size.height - 4)), refresh=True)
            if exit_status(rows) != 3:
                break
            time.sleep(WATCH_S)
            rows, _ = survey(root)
    console.print(summary(root, rows))
    return exit_status(rows)


def open_run(folder: Path) -> RunDir:
    """The run folder that a command was given.

    Raises:
        ConfigError: nothing was ever submitted there.
    """
    root = RunDir(folder.expanduser().absolute())
    if not root.ledger.is_file():
        near = sorted(path.parent for path in root.root.parent.glob("*/jobs.jsonl"))
        known = f"; there are: {', '.join(map(str, near))}" if near else ""
        raise ConfigError(f"{folder}: not a run folder, no {root.ledger.name} in it{known}")
    return root


def survey(root: RunDir) -> tuple[list[Row], dict[str, list[Job]]]:
    """A row a stage and run of the last submit, and the jobs of each by id."""
    history = Ledger(root).read()
    holder = lock_holder(root)
    at_work = holder is not None and holder.is_alive()
    rows: list[Row] = []
    states: dict[str, str] = {}
    for listed in history.graph.get("nodes", []):
        row = _row(root, listed, history, at_work, states)
        states[_id(row.stage, row.run)] = row.state
        rows.append(row)
    return rows, {_id(row.stage, row.run): history.of(_id(row.stage, row.run)) for row in rows}


def _row(root: RunDir, listed: dict[str, Any], history: History, at_work: bool, states: dict[str, str]) -> Row:
    stage, run = str(listed["stage"]), str(listed["run"])
    folder = root.stage(stage, run)
    jobs = history.of(_id(stage, run))
    live = [job.job_id for job in jobs if job.is_alive()]
    if live:
        expected = _expected(folder) if stage == "evaluate" else 0
        return Row(stage, run, "running", read_progress(folder, live, expected))
    if stage == REPORT:
        done = float(history.reported.get("at", 0.0)) > float(history.graph["at"])
        failed = bool(jobs) and jobs[-1].outcome == "failed"
        state = "done" if done else "failed" if failed and not at_work else "waiting" if at_work else "missing"
        return Row(stage, run, state, note=str(history.reported.get("out", "")) if done else "")
    try:
        if _is_done(folder):
            return Row(stage, run, "done")
    except ArtefactError as error:
        return Row(stage, run, "missing", note=str(error))
    lost = [name for name in listed.get("depends", []) if states.get(name) in ("failed", "blocked")]
    error_line = last_error(folder)
    if error_line:
        return Row(stage, run, "failed", note=error_line)
    if lost:
        return Row(stage, run, "blocked", note=f"needs {lost[0]}")
    if jobs and jobs[-1].outcome == "stopped":
        return Row(stage, run, "stopped", note="goes on with the next submit")
    return Row(stage, run, "waiting" if at_work else "missing")


def _is_done(folder: StageDir) -> bool:
    try:
        key = str(records.read_checked(folder.stage_json, "stage")["key"])
    except FileNotFoundError:
        return False
    return records.read_done(folder.done, key) is not None


def _expected(folder: StageDir) -> int:
    try:
        return len(records.read_checked(folder.stage_json, "stage")["expected"])
    except (FileNotFoundError, ArtefactError):
        return 0


def _id(stage: str, run: str) -> str:
    return f"{stage}/{run}" if run else stage


def summary(root: RunDir, rows: Sequence[Row]) -> str:
    """One line: how many in which state, and who is at work."""
    holder = lock_holder(root)
    work = ""
    if holder is not None and holder.is_alive():
        work = f"; submit at work: pid {holder.pid} on {holder.host}"
    return f"{root.name}: {counts(row.state for row in rows)}{work}"


def exit_status(rows: Sequence[Row]) -> int:
    """0 all done; 1 something failed and nothing runs any more; 3 not finished."""
    states = {row.state for row in rows}
    if states <= {"done"}:
        return 0
    return 1 if states & {"failed", "blocked"} and not states & {"running", "waiting"} else 3


def _as_json(root: RunDir, rows: Sequence[Row], jobs: dict[str, list[Job]]) -> dict[str, Any]:
    listed = []
    for row in rows:
        facts: dict[str, Any] = {"stage": row.stage, "run": row.run, "state": row.state, "note": row.note}
        facts["jobs"] = [job.job_id for job in jobs[_id(row.stage, row.run)] if job.job_id]
        if row.progress is not None:
            facts["progress"] = {"done": row.progress.done, "total": row.progress.total, "unit": row.progress.unit}
            facts["progress"]["text"] = describe(row.progress)
        listed.append(facts)
    return {"schema": records.SCHEMA, "name": root.name, "stages": listed, "exit_status": exit_status(rows)}
