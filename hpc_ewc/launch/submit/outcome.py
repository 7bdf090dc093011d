"""The last lines of a submit: the tables, what failed or is left, and the exit status."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from hpc_ewc.artefacts.artefact import REPORT
from hpc_ewc.launch.plan.plan import Plan
from hpc_ewc.launch.plan.request import relative_path
from hpc_ewc.rundir import RunDir, rank_logs

if TYPE_CHECKING:
    from hpc_ewc.launch.submit.slurm import SubmitSummary

DONE, FAILED, UNFINISHED, INTERRUPTED = 0, 1, 3, 130
"""Exit statuses of the commands; 2, refused, is set in cli/."""
IDS_SHOWN = 5


def nothing_to_do(plan: Plan) -> int:
    """Show the tables of an experiment that is complete."""
    show_report(plan.graph.root, plan.history.reported.get("token", ""))
    return _end(plan, "nothing to do: everything is done", DONE)


def show_report(root: RunDir, token: str) -> None:
    """Print the tables that a report job printed."""
    for path in sorted(rank_logs(root.job(token)).rglob("stdout.log")) if token else ():
        sys.stdout.write(path.read_text(encoding="utf-8", errors="replace"))
        sys.stdout.flush()


def of_local_run(plan: Plan, rows: dict[str, list[tuple[str, str]]], *, completed: bool) -> int:
    """Print what failed and what is left of a local run; return the exit status.

    Args:
        plan: what was run.
        rows: ids of nodes and notes about them, by state.
        completed: the run was not interrupted.
    """
    root = relative_path(plan.graph.root.root)
    for name, note in rows.get("failed", []):
        sys.stderr.write(f"{name} failed: {note}\n")
        if not name.startswith(REPORT):
            stage, _, run = name.partition("/")
            sys.stderr.write(f"  see: hpc-ewc logs {root} {run} --stage {stage}\n")
    for name, note in rows.get("blocked", []):
        sys.stderr.write(f"{name} was not started: {note}\n")
    resume = f"{plan.request.resume_command} resumes"
    if not completed:
        return _end(plan, f"interrupted; finished work is kept: {resume}", INTERRUPTED)
    if rows.get("failed"):
        return _end(plan, f"{len(rows['failed'])} failed; {resume}", FAILED)
    if rows.get("stopped"):
        return _end(plan, f"{len(rows['stopped'])} stopped; {resume}", UNFINISHED)
    return _end(plan, "done", DONE)


def of_submission(plan: Plan, summary: SubmitSummary) -> int:
    """Print how many jobs Slurm took and which stages are left; return the exit status."""
    kept = f" ({summary.kept} were queued or running already)" if summary.kept else ""
    follow = f"follow them: hpc-ewc status {relative_path(plan.graph.root.root)} --watch"
    postponed = summary.postponed
    if not summary.submitted and not postponed:
        return _end(plan, f"nothing to submit{kept}; {follow}", DONE)
    sys.stderr.write(f"submitted {summary.submitted} jobs in {summary.batches} submissions{kept}; {follow}\n")
    if postponed:
        more = f" and {len(postponed) - IDS_SHOWN} more" if len(postponed) > IDS_SHOWN else ""
        text = f"the limit on submitted jobs leaves out {len(postponed)} stages: {', '.join(postponed[:IDS_SHOWN])}"
        return _end(plan, f"{text}{more}; later, {plan.request.resume_command} submits them", UNFINISHED)
    return _end(plan, "everything is submitted", DONE)


def _end(plan: Plan, text: str, status: int) -> int:
    folders = f"Runs: {relative_path(plan.graph.root.root)}; tables: {relative_path(plan.out)}"
    sys.stderr.write(f"{text}. {folders}\n")
    return status
