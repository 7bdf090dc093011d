"""The status of one stage of one run: from its files first, then from Slurm or local processes."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from hpc_ewc import records, rundir
from hpc_ewc.artefacts.artefact import REPORT
from hpc_ewc.artefacts.failure import last_error
from hpc_ewc.artefacts.job_logs import last_lines
from hpc_ewc.artefacts.outcome import read_exit
from hpc_ewc.errors import ArtefactError
from hpc_ewc.launch.ledger.job_history import Job
from hpc_ewc.launch.ledger.reconcile import INTERRUPTED, last_restart
from hpc_ewc.launch.show.rows import Progress, Row, read_progress
from hpc_ewc.launch.slurm.reasons import describe_end, describe_reason
from hpc_ewc.launch.watch.run_status import RunStatus
from hpc_ewc.rundir import StageDir
from hpc_ewc.schemas import AttemptExit, GraphNode

FRESH_S = 180.0
"""If Slurm does not answer, a job whose progress file is younger than this counts as running."""
NODES_SHOWN = 2
RESUME = "resubmit to resume"


class State(NamedTuple):
    """A row's state, its note and Slurm's reason."""

    state: str
    note: str = ""
    reason: str = ""


class StageStatus:
    """Derives the row of one stage of one run.

    Args:
        status: of the run folder; its rows so far include the stage's inputs.
        node: stage, run and what it depends on, as the last submit recorded them.
        done: stage/runs known to be done; the stage is added if it is done.
    """

    def __init__(self, status: RunStatus, node: GraphNode, done: set[str]) -> None:
        self.status, self.known_done = status, done
        self.stage, self.run = str(node["stage"]), str(node["run"])
        self.id = f"{self.stage}/{self.run}" if self.run else self.stage
        self.depends = [str(name) for name in node.get("depends", [])]
        self.folder = status.root.stage(self.stage, self.run) if self.run else StageDir(status.root.root)
        self.jobs = status.jobs[self.id]
        self.known = status.slurm.jobs
        self.slurm = [self.known[job.job_id] for job in self.jobs if job.job_id in self.known]
        queued = [job for job in self.jobs if job.job_id in self.known and not self.known[job.job_id].ended]
        self.link = min((job.link for job in queued), default=0)
        """In a chain of jobs, the one whose turn it is; its successors do not count."""
        self.queued = [job for job in queued if job.link == self.link]
        self.live = [self.known[job.job_id] for job in self.queued]

    def row(self) -> Row:
        state, note, reason = self._state()
        progress = self._progress() if state in ("running", "waiting") else None
        restarts = self.link + max((job.restarts for job in self.live or self.slurm), default=0)
        nodes, hours = self._nodes(progress), self._gpu_hours()
        return Row(self.stage, self.run, state, progress, note, restarts, nodes, hours, reason)

    # ------------------------------------------------------------------------------------------ state

    def _state(self) -> State:
        if any(job.is_alive() for job in self.jobs):
            return State("running")
        if self.stage == REPORT:
            return self._report_state()
        try:
            if self._is_done():
                return State("done")
        except ArtefactError as error:
            recompute = "a record is missing or corrupt: resubmit to recompute it"
            return State("missing", recompute if self.stage == "evaluate" else str(error))
        return self._live_state() or self._ended_state()

    def _is_done(self) -> bool:
        """Whether the artefact is complete.

        Raises:
            ArtefactError: an output is gone, or a file was not written by hpc-ewc.
        """
        if self.id not in self.known_done:
            with suppress(FileNotFoundError):
                key = records.read_checked(self.folder.stage_json, "stage")["key"]
                if records.read_done(self.folder.done, key) is not None:
                    self.known_done.add(self.id)
        return self.id in self.known_done

    def _live_state(self) -> State | None:
        """The state of jobs that run, wait or may do so; None if there are none."""
        n = len(self.live)
        if any(job.runs for job in self.live):
            waiting = sum(job.waits for job in self.live)
            return State("running", f"{n - waiting} running, {waiting} waiting" if n > 1 else "")
        if self.live:
            reason = Counter(job.reason for job in self.live).most_common(1)[0][0]
            if reason.startswith("DependencyNeverSatisfied"):
                return State("blocked", self._failed_input() or "an input failed", reason)
            prefix = f"{n} waiting: " if n > 1 else ""
            return State("waiting", prefix + describe_reason(reason, self.live[0], self.link), reason)
        unknown = [job for job in self.jobs if job.is_open and job.job_id not in self.known]
        if any(self._is_fresh(job) for job in unknown):
            return State("running")
        for job in unknown:
            if job.job_id and (why := self.status.slurm.why_unknown(job)):
                return State("waiting", why)
        if all(job.job_id for job in unknown):
            return None
        if self.status.submitter:
            return State("waiting", "being submitted")
        return State("missing", "submit was interrupted before it recorded the job id: resubmit to look for the job")

    def _ended_state(self) -> State:
        """The state of a stage that is not done and has no job in the queue."""
        error = last_error(self.folder)
        if error:
            return State("failed", error)
        failed_input = self._failed_input()
        if failed_input:
            return State("blocked", failed_input)
        cancelled = self.id in self.status.history.cancelled
        outcomes = [self._exit(job).get("outcome") for job in self.jobs if job.is_open]
        outcomes += [job.outcome for job in self.jobs[-1:]]
        if "stopped" in outcomes or (cancelled and self.slurm):
            return State("stopped", f"cancelled; {RESUME}" if cancelled else RESUME)
        tried = [job for job in self.jobs if job.is_open and job.job_id]
        if tried:
            return self._unfinished(tried)
        return State("waiting" if self.status.submitter else "missing")

    def _unfinished(self, tried: Sequence[Job]) -> State:
        """The state if all jobs ended and left neither an error nor a complete artefact."""
        known = [self.known[job.job_id] for job in tried if job.job_id in self.known]
        ends = sorted((job for job in known if job.state != "COMPLETED"), key=lambda job: job.state in INTERRUPTED)
        if ends and ends[0].state in INTERRUPTED:
            return State("stopped", f"{describe_end(ends[0])}; {RESUME}")
        if ends:
            return State("failed", describe_end(ends[0]))
        what = "ended before its output was complete" if known else "is no longer known to Slurm"
        return State("missing", f"job {tried[-1].job_id} {what}: {RESUME}")

    def _report_state(self) -> State:
        history, submitter = self.status.history, self.status.submitter
        submitted_at = float(history.graph["at"])
        if float(history.reported.get("at", 0.0)) > submitted_at:
            return State("done", str(history.reported.get("out", "")))
        # a job of an earlier submit counts too if this one found it still in the queue
        recent = [job for job in self.jobs if job.is_open or job.at >= submitted_at]
        if not recent or recent[-1].scheduler != "slurm":
            failed = bool(self.jobs) and self.jobs[-1].outcome == "failed"
            return State("waiting" if submitter else "failed" if failed else "missing")
        live = self._live_state()
        if live is not None:
            return live
        known = self.known.get(recent[-1].job_id)
        if (known is not None and known.state == "COMPLETED") or self._exit(recent[-1]).get("status") == 0:
            return State("done", str(history.graph.get("out", "")))
        if known is None:
            return State(recent[-1].outcome if recent[-1].outcome in ("failed", "stopped") else "missing")
        return State("stopped" if known.state in INTERRUPTED else "failed", describe_end(known))

    # ------------------------------------------------------------------------------------------ details

    def _failed_input(self) -> str:
        failed = {row.id for row in self.status.rows if row.state in ("failed", "blocked")}
        lost = [name for name in self.depends if name in failed]
        return f"needs {lost[0]}" if lost and self.stage != REPORT else ""

    def _is_fresh(self, job: Job) -> bool:
        """Whether a job that Slurm does not report started or wrote progress a moment ago."""
        if not job.job_id or job.outcome:
            return False
        for path in self.folder.progress_dir.glob("*.json"):
            with suppress(OSError, ArtefactError):
                if _is_young(path) and records.read_json(path).get("job_id") == job.job_id:
                    return True
        folder = self.status.root.job(job.job_id)  # made when the job starts
        return _is_young(folder) and not any(folder.glob("exit.*"))

    def _exit(self, job: Job) -> AttemptExit:
        """The exit file of a job's last attempt; empty if that has not ended."""
        root, known = self.status.root, self.known.get(job.job_id)
        restart = max(last_restart(root, job), known.restarts if known else 0)
        return read_exit(rundir.exit_file(root.job(job.job_id), restart))

    def _progress(self) -> Progress | None:
        local = [job for job in self.jobs if job.is_alive()]
        fresh = [job for job in self.jobs if job.scheduler == "slurm" and job.job_id not in self.known]
        working = self.queued or local + [job for job in fresh if self._is_fresh(job)]
        expected = 0
        if self.stage == "evaluate":
            with suppress(FileNotFoundError, ArtefactError):
                expected = len(records.read_checked(self.folder.stage_json, "stage")["expected"])
        found = read_progress(self.folder, [job.job_id for job in working], expected)
        if found is None:
            return None
        if expected:  # cells of array elements that wait are not done
            waiting = {job.job_id for job in self.live if job.waits}
            queued = sum(len(job.covers) for job in working if job.job_id in waiting)
            return replace(found, done=max(0.0, found.done - queued))
        if self.stage == "train" and "tokens_per_s" not in found.fields:
            return replace(found, fields=found.fields | last_speed(self.folder.metrics))
        return found

    def _nodes(self, progress: Progress | None) -> str:
        names = list(dict.fromkeys(job.nodes for job in self.live if job.nodes))
        if not names and progress is not None:
            names = [str(progress.fields.get("node", ""))]
        more = f" +{len(names) - NODES_SHOWN}" if len(names) > NODES_SHOWN else ""
        return ",".join(names[:NODES_SHOWN]) + more

    def _gpu_hours(self) -> float:
        """Slurm's count; without one (local jobs, no accounting), what the job recorded at its end."""
        counted = sum(job.gpu_s for job in self.slurm) / 3600
        if counted or self.id not in self.known_done:
            return counted
        with suppress(FileNotFoundError, ArtefactError, KeyError, TypeError, ValueError):
            return float(records.read_json(self.folder.done)["summary"].get("gpu_hours", 0.0))
        return 0.0


def _is_young(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime < FRESH_S
    except OSError:
        return False


def last_speed(metrics: Path) -> dict[str, float]:
    """`tokens_per_s` of the last complete line of metrics.jsonl; {} if there is none."""
    for line in reversed(last_lines(metrics, 3).splitlines()):
        with suppress(ValueError, KeyError, TypeError):
            return {"tokens_per_s": float(json.loads(line)["tokens_per_s"])}
    return {}
