"""One attempt of a job on Slurm, on one of its nodes: whether it begins, how it reacts to signals, how it ends.

submitit calls a `StageTask` on every node, as the only task there. Node 0 decides; the other nodes follow its exit
file. node_attempt.py runs the workers.

    finished  return: the job is COMPLETED, and its dependants start
    stopped   after USR2 (the time limit is near) requeue; then wait until Slurm ends this process, since an exit within
              a preemption's grace time would count as COMPLETED or FAILED, never as requeued
    failed    raise, the first rank's own traceback first
"""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from hpc_ewc.artefacts.artefact import REPORT, stored_artefact
from hpc_ewc.artefacts.outcome import Outcome, decide_outcome, read_outcome, report_fingerprint
from hpc_ewc.errors import StageError
from hpc_ewc.node.attempt import poll_until
from hpc_ewc.node.attempts import begin_attempt
from hpc_ewc.node.failure import build_failure, lost_peer, write_reason
from hpc_ewc.node.node_attempt import NodeAttempt
from hpc_ewc.node.slurm_command import SchedulerError, scontrol
from hpc_ewc.node.task import JobContext, JobTask
from hpc_ewc.rundir import RunDir

KILL_WAIT_S = 90.0
"""Slurm's KillWait (30 s) and a minute, on top of the grace time."""
REQUEUE_EVERY_S = 10.0
PEER_REPORT_S = 60.0
"""How long a node that failed may take to report its error before it counts as gone."""


class StoppedError(StageError):
    """An attempt was stopped, its artefact is unfinished, and nothing resumes it by itself."""


@dataclass(frozen=True)
class StageTask(JobTask):
    """The task of a job that makes an artefact, or the report."""

    def __call__(self) -> str:
        """Run this node's part of the attempt to its end."""
        return SlurmAttempt(self).run()

    def checkpoint(self) -> Any:
        """Submit the same task again: submitit calls this if USR2 comes before our own handler is set."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class SlurmAttempt(NodeAttempt):
    """One attempt, on one node."""

    def __init__(self, task: JobTask) -> None:
        super().__init__(task, JobContext.from_slurm())
        self.reported = ""
        """Fingerprint of the evaluations that a report is about to read."""

    def run(self) -> str:
        """Run the workers and end as the module docstring says; any exception fails the job.

        Raises:
            StageError: the ranks failed, or three restarts made no progress.
            StoppedError: it was stopped, and Slurm did not end it.
        """
        self.handle_signals()
        self.job.mkdir(parents=True, exist_ok=True)
        # submitit leaves an error here when a node crashes, though the job is requeued and finishes
        (self.job / f"{self.context.job_id}_{os.environ.get('SLURM_PROCID', '0')}_result.pkl").unlink(missing_ok=True)
        finished = self._outcome(None) == "finished"  # by an earlier job of a chain, or before USR2
        if self.context.node == 0:
            if finished:
                return self._end("finished")
            self._check_attempts()
        elif finished:
            return "finished"
        if self.task.stage == REPORT:
            self.reported = report_fingerprint(RunDir(self.folder.path), self.task.runs)
        return self._conclude(self.run_workers())

    def _check_attempts(self) -> None:
        """Begin an attempt, or give up.

        Raises:
            StageError: three restarts made no progress, or the previous job of a chain failed.
        """
        if reason := begin_attempt(self):
            write_reason(self, reason)
            self._end("failed")
            raise StageError(f"{self.task.name}: {reason}")

    # ------------------------------------------------------------------------------------------ after the workers

    def _conclude(self, statuses: list[int]) -> str:
        status = next((status for status in statuses if status != 0), 0 if statuses else None)
        if read_outcome(self.exit_file) == "failed":  # another node failed first and took this one down
            raise build_failure(self, status)
        if self.context.node > 0:
            return self._follow_node_0(status)
        outcome = self._outcome(status)
        if outcome == "failed":
            return self._fail(status)
        self._end(outcome, status)
        if outcome == "finished":
            return outcome
        if not self._waits_for_slurm:
            raise self._stopped()
        return self._wait_for_slurm(requeue="SIGUSR2" in self._reasons())

    def _outcome(self, status: int | None) -> Outcome:
        """The outcome of all elements of this job together."""
        artefact = None if self.task.stage == REPORT else stored_artefact(self.folder)
        return decide_outcome(artefact, self.elements, self.job, self.restart, status)

    def _follow_node_0(self, status: int | None) -> str:
        """On another node: a rank that failed here fails the job; otherwise node 0 decides."""
        if status and not self.stop_file.exists():
            return self._fail(status)
        for _ in poll_until(self.task.grace_time_s + KILL_WAIT_S, every_s=1.0):
            match read_outcome(self.exit_file):
                case "finished":
                    return "finished"
                case "failed":
                    raise build_failure(self, status)
                case "stopped" if not self._waits_for_slurm:
                    break
        raise self._stopped()

    def _fail(self, status: int | None) -> str:
        """A rank of this node failed. If it only lost a rank of another node, that node reports why, or is gone.

        Raises:
            StageError: always, unless Slurm ends this process first.
        """
        if len(self.context.hosts) > 1 and lost_peer(self, status):
            return self._wait_for_peer(status)
        failure = build_failure(self, status)
        self._end("failed", status)
        raise failure

    def _wait_for_peer(self, status: int | None) -> str:
        """Wait until the other node reports its error; if it does not, the machine failed and the job is requeued.

        Raises:
            StageError: the reported error, or none was found.
        """
        sys.stderr.write(f"{self.task.name}: a rank of another node is gone; waiting for that node to report why\n")
        for _ in poll_until(PEER_REPORT_S):
            if self.signals or read_outcome(self.exit_file) == "failed":
                break
        if read_outcome(self.exit_file) == "failed":
            raise build_failure(self, status)
        if not self.task.requeue:
            self._end("stopped", status)
            raise build_failure(self, status)
        return self._wait_for_slurm(requeue=not self.signals)

    def _end(self, outcome: Outcome, status: int | None = 0) -> str:
        report = {"reported": self.reported, "out": self.task.out} if self.reported else {}
        self.write_exit(status, outcome=outcome, why=sorted(self._reasons()), node=socket.gethostname(), **report)
        return outcome

    # ------------------------------------------------------------------------------------------ stopped

    def _reasons(self) -> set[str]:
        """Names of the signals that asked for this stop, on any node; empty if a person wrote the stop file."""
        names = {signal.Signals(number).name for number in self.signals}
        with suppress(OSError):
            names |= {self.stop_file.read_text().strip()} - {""}
        return names

    @property
    def _waits_for_slurm(self) -> bool:
        """Whether Slurm will end this job, by itself or on request: then no node may end before."""
        return self.task.requeue and bool(self._reasons())

    def _wait_for_slurm(self, *, requeue: bool) -> str:
        """Wait until Slurm ends this process.

        Args:
            requeue: ask for a requeue; after a TERM Slurm has already decided what it does with the job.

        Raises:
            StoppedError: Slurm did not end it within the longest grace time.
        """
        asked_at = -math.inf
        for _ in poll_until(self.task.grace_time_s + KILL_WAIT_S, every_s=1.0):
            if requeue and time.monotonic() - asked_at > REQUEUE_EVERY_S:
                asked_at = time.monotonic()
                try:
                    scontrol("requeue", self.context.raw_id)
                    requeue = False
                except SchedulerError as error:
                    sys.stderr.write(f"{self.task.name}: saved, but not requeued: {error}\n")
        raise self._stopped()

    def _stopped(self) -> StoppedError:
        why = ", ".join(sorted(self._reasons())) or "on request"
        return StoppedError(f"{self.task.name}: stopped ({why}) and saved; resubmit to resume")
