"""How one stage of one run stands: its files first, then Slurm or the processes of this machine."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc_ewc import records
from hpc_ewc.artefacts.artefact import REPORT
from hpc_ewc.artefacts.failure import last_error
from hpc_ewc.artefacts.job_logs import last_lines
from hpc_ewc.errors import ArtefactError
from hpc_ewc.launch.ledger.job_history import History, Job
from hpc_ewc.launch.ledger.reconcile import INTERRUPTED
from hpc_ewc.launch.show.view import Progress, Row, read_progress
from hpc_ewc.launch.slurm.client import SlurmJob
from hpc_ewc.launch.slurm.reasons import describe_end, describe_reason
from hpc_ewc.rundir import RunDir, StageDir

FRESH_S = 180.0
"""A progress file younger than this is of a job that runs, where Slurm does not say."""
LONGEST_NODES = 2


@dataclass
class Context:
    """What is known of the whole experiment."""

    history: History
    jobs: Mapping[str, list[Job]]
    """By stage/run, oldest first."""
    slurm: Mapping[str, SlurmJob]
    """By job id."""
    why_unknown: Callable[[Job], str]
    """Why Slurm may have a job and it is not seen here; "" where Slurm has it no longer."""
    at_work: bool
    """A submit is."""
    done: set[str]
    """stage/runs that were found done before; added to."""
    states: dict[str, str] = field(default_factory=dict)
    """Of the stage/runs looked at so far: whatever is depended on comes first."""


class StageStatus:
    """One stage of one run, as it stands now.

    Args:
        root: the run folder.
        context: of the whole experiment.
        listed: stage, run and what it depends on, as the last submit wrote them down.
    """

    def __init__(self, root: RunDir, context: Context, listed: dict[str, Any]) -> None:
        self.root, self.context, self.history = root, context, context.history
        self.stage, self.run = str(listed["stage"]), str(listed["run"])
        self.depends = [str(name) for name in listed.get("depends", [])]
        self.id = f"{self.stage}/{self.run}" if self.run else self.stage
        self.jobs = context.jobs.get(self.id, [])
        self.folder = root.stage(self.stage, self.run) if self.run else StageDir(root.root)
        self.slurm = [context.slurm[job.job_id] for job in self.jobs if job.job_id in context.slurm]
        queued = [job for job in self.jobs if job.job_id in context.slurm and not context.slurm[job.job_id].ended]
        self.link = min((job.link for job in queued), default=0)
        """Of a chain, the job whose turn it is: its successors only stand ready."""
        self.queued = [job for job in queued if job.link == self.link]
        self.live = [context.slurm[job.job_id] for job in self.queued]

    def row(self) -> Row:
        state, note, reason = self._state()
        working = self.queued or [job for job in self.jobs if self._works(job)]
        progress = self._progress(working) if state in ("running", "waiting") else None
        return Row(
            self.stage,
            self.run,
            state,
            progress,
            note,
            restarts=self.link + max((one.restarts for one in self.live or self.slurm), default=0),
            nodes=self._nodes(progress),
            gpu_hours=self._gpu_hours(),
            reason=reason,
        )

    # ------------------------------------------------------------------------------------------ state

    def _state(self) -> tuple[str, str, str]:
        """State, what to say of it, and Slurm's own word for why it waits."""
        if any(job.is_alive() for job in self.jobs):
            return "running", "", ""
        if self.stage == REPORT:
            return self._report_state()
        try:
            if self._is_done():
                return "done", "", ""
        except ArtefactError as error:
            again = "a record is absent or damaged: the next submit computes it again"
            return "missing", again if self.stage == "evaluate" else str(error), ""
        return self._live_state() or self._ended_state()

    def _is_done(self) -> bool:
        if self.id not in self.context.done and is_done(self.folder):
            self.context.done.add(self.id)
        return self.id in self.context.done

    def _live_state(self) -> tuple[str, str, str] | None:
        """What Slurm has in its queue of this; None: nothing."""
        live = self.live
        if any(one.runs for one in live):
            waits = sum(one.waits for one in live)
            return "running", f"{len(live) - waits} run, {waits} wait" if len(live) > 1 else "", ""
        if live:
            reasons = Counter(one.reason for one in live)
            reason = reasons.most_common(1)[0][0]
            if reason.startswith("DependencyNeverSatisfied"):
                return "blocked", self._lost() or "what it needs did not end well", reason
            many = f"{len(live)} wait: " if len(live) > 1 else ""
            return "waiting", f"{many}{describe_reason(reason, live[0], self.link)}", reason
        unknown = [job for job in self.jobs if job.is_open and job.job_id not in self.context.slurm]
        if any(self._is_fresh(job) for job in unknown):
            return "running", "", ""
        for job in unknown:
            if job.job_id and (why := self.context.why_unknown(job)):
                return "waiting", why, ""
        if any(not job.job_id for job in unknown):
            if self.context.at_work:
                return "waiting", "being submitted", ""
            return "missing", "its submit was ended half-way: the next one looks whether Slurm has it", ""
        return None

    def _ended_state(self) -> tuple[str, str, str]:
        """Not done, and nothing in the queue."""
        error_line = last_error(self.folder)
        if error_line:
            return "failed", error_line, ""
        lost = self._lost()
        if lost:
            return "blocked", lost, ""
        cancelled = self.id in self.history.cancelled
        goes_on = "cancelled; the next submit goes on" if cancelled else "goes on with the next submit"
        if self._was_stopped() or (cancelled and self.slurm):
            return "stopped", goes_on, ""
        tried = [job for job in self.jobs if job.is_open and job.job_id]
        if tried:
            return self._unfinished(tried)
        return "waiting" if self.context.at_work else "missing", "", ""

    def _unfinished(self, tried: Sequence[Job]) -> tuple[str, str, str]:
        """Slurm ended its jobs, and nothing else tells why it is not done."""
        known = [self.context.slurm[job.job_id] for job in tried if job.job_id in self.context.slurm]
        ends = sorted((one for one in known if one.state != "COMPLETED"), key=lambda one: one.state in INTERRUPTED)
        if ends and ends[0].state in INTERRUPTED:
            return "stopped", f"{describe_end(ends[0])}; the next submit goes on", ""
        if ends:
            return "failed", describe_end(ends[0]), ""
        words = "ended, and it is not whole" if known else "is no longer known to Slurm"
        return "missing", f"job {tried[-1].job_id} {words}: the next submit goes on", ""

    def _report_state(self) -> tuple[str, str, str]:
        history, at_work = self.history, self.context.at_work
        done = float(history.reported.get("at", 0.0)) > float(history.graph["at"])
        if done:
            return "done", str(history.reported.get("out", "")), ""
        # one that a later submit found in the queue and kept is as good as its own
        recent = [job for job in self.jobs if job.is_open or job.at >= float(history.graph["at"])]
        last = recent[-1] if recent else None
        if last is not None and last.scheduler == "slurm":
            known = self.context.slurm.get(last.job_id)
            if self._live_state() is None and (
                (known is not None and known.state == "COMPLETED") or self._exit(last).get("status") == 0
            ):
                return "done", str(history.graph.get("out", "")), ""
            return self._live_state() or self._ended_report(last, known)
        failed = bool(self.jobs) and self.jobs[-1].outcome == "failed"
        return "failed" if failed and not at_work else "waiting" if at_work else "missing", "", ""

    def _ended_report(self, last: Job, known: SlurmJob | None) -> tuple[str, str, str]:
        if known is None:
            return last.outcome if last.outcome in ("failed", "stopped") else "missing", "", ""
        return "stopped" if known.state in INTERRUPTED else "failed", describe_end(known), ""

    # ------------------------------------------------------------------------------------------ details

    def _lost(self) -> str:
        lost = [name for name in self.depends if self.context.states.get(name) in ("failed", "blocked")]
        return f"needs {lost[0]}" if lost and self.stage != REPORT else ""

    def _works(self, job: Job) -> bool:
        """It runs, as far as can be told without Slurm."""
        if job.scheduler != "slurm":
            return job.is_alive()
        return job.job_id not in self.context.slurm and self._is_fresh(job)

    def _is_fresh(self, job: Job) -> bool:
        """It wrote how far it is a moment ago, or has only just begun."""
        if not job.job_id or job.outcome:
            return False
        for path in self.folder.progress_dir.glob("*.json"):
            with suppress(OSError, ArtefactError):
                if _is_young(path) and records.read_json(path).get("job_id") == job.job_id:
                    return True
        place = self.root.job(job.job_id)  # made when the job starts
        return _is_young(place) and not any(place.glob("exit.*"))

    def _was_stopped(self) -> bool:
        """The last attempt of one of its jobs was asked to stop, and did."""
        if self.jobs and self.jobs[-1].outcome == "stopped":
            return True
        return any(self._exit(job).get("outcome") == "stopped" for job in self.jobs if job.is_open)

    def _exit(self, job: Job) -> dict[str, Any]:
        """What the launcher of a job's last attempt left when it ended; nothing if it could not."""
        found = sorted(self.root.job(job.job_id).glob("exit.*"), key=_attempt) if job.job_id else []
        known = self.context.slurm.get(job.job_id)
        if not found or (known is not None and known.restarts > _attempt(found[-1])):
            return {}
        with suppress(FileNotFoundError, ArtefactError):
            return records.read_json(found[-1])
        return {}

    def _progress(self, working: Sequence[Job]) -> Progress | None:
        """How far it is; of an array, what still waits is not done."""
        if not working:
            return None
        expected = expected_cells(self.folder) if self.stage == "evaluate" else 0
        found = read_progress(self.folder, [job.job_id for job in working], expected)
        if found is None:
            return None
        if expected:
            waits = {one.job_id for one in self.live if one.waits}
            queued = sum(len(job.covers) for job in working if job.job_id in waits)
            found = Progress(max(0.0, found.done - queued), found.total, found.unit, found.fields)
        if self.stage == "train" and found.fields is not None and "tokens_per_s" not in found.fields:
            speed = last_speed(self.folder.metrics)
            found.fields.update({} if speed is None else {"tokens_per_s": speed})
        return found

    def _nodes(self, progress: Progress | None) -> str:
        names = list(dict.fromkeys(one.nodes for one in self.live if one.nodes))
        if not names and progress is not None and progress.fields:
            names = [str(progress.fields.get("node", ""))]
        more = f" +{len(names) - LONGEST_NODES}" if len(names) > LONGEST_NODES else ""
        return ",".join(names[:LONGEST_NODES]) + more

    def _gpu_hours(self) -> float:
        """What Slurm counted; where it did not (local jobs, say), what the job wrote at its end."""
        counted = sum(one.gpu_s for one in self.slurm) / 3600
        if counted or self.id not in self.context.done:
            return counted
        with suppress(FileNotFoundError, ArtefactError, KeyError, TypeError, ValueError):
            return float(records.read_json(self.folder.done)["summary"].get("gpu_hours", 0.0))
        return 0.0


# ---------------------------------------------------------------------------------------------- files


def _attempt(path: Path) -> int:
    """3 of `exit.3`."""
    suffix = path.suffix[1:]
    return int(suffix) if suffix.isdigit() else -1


def _is_young(path: Path) -> bool:
    """Changed a moment ago."""
    try:
        return time.time() - path.stat().st_mtime < FRESH_S
    except OSError:
        return False


def is_done(folder: StageDir) -> bool:
    """Whether a stage's artefact is there, whole.

    Raises:
        ArtefactError: an output of it went away, or a file is not ours.
    """
    try:
        key = str(records.read_checked(folder.stage_json, "stage")["key"])
    except FileNotFoundError:
        return False
    return records.read_done(folder.done, key) is not None


def expected_cells(folder: StageDir) -> int:
    """How many records an evaluation is to make; 0 where that cannot be read."""
    try:
        return len(records.read_checked(folder.stage_json, "stage")["expected"])
    except (FileNotFoundError, ArtefactError):
        return 0


def last_speed(metrics: Path) -> float | None:
    """Tokens a second in the last whole line of metrics.jsonl."""
    for line in reversed(last_lines(metrics, 3).splitlines()):
        with suppress(ValueError, KeyError, TypeError):
            return float(json.loads(line)["tokens_per_s"])
    return None
