"""One attempt of one job on Slurm, seen from one of its nodes: whether it begins, what a signal asks for, how it ended.

submitit calls a `SlurmTask` on every node, as the one task there. Node 0 decides; the others follow what it wrote. Its
workers while they work: workers.py.

    finished  return: the job is COMPLETED, and its dependants start
    stopped   after USR2 (the time limit is near) requeue; then wait until Slurm ends this process, since an exit inside
              a preemption's grace time would count as COMPLETED or FAILED, never as requeued
    failed    raise, the first rank's own traceback first
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from hpc_ewc import records, rundir
from hpc_ewc.artefacts.artefact import REPORT, stored_artefact
from hpc_ewc.artefacts.outcome import Exit, Outcome, decide, report_fingerprint
from hpc_ewc.errors import StageError
from hpc_ewc.node.environment import node_environment, node_folder
from hpc_ewc.node.failure import build_failure, lost_another, write_reason
from hpc_ewc.node.history import begin_attempt, read_outcome, unless_full
from hpc_ewc.node.slurm_command import SchedulerError, scontrol
from hpc_ewc.node.task import SlurmContext, SlurmTask
from hpc_ewc.node.torchrun import POLL_S
from hpc_ewc.node.workers import NodeWorkers
from hpc_ewc.rundir import RunDir, StageDir

KILL_WAIT_S = 90.0
"""Slurm's KillWait (30 s) and a minute, on top of the grace time."""
REQUEUE_EVERY_S = 10.0
CAUSE_S = 60.0
"""What a node that failed gets to say why, before it is taken to be gone."""


class StoppedError(StageError):
    """An attempt was stopped, its artefact is not there, and nothing goes on with it by itself."""


class SlurmAttempt:
    """One attempt, on one node."""

    def __init__(self, task: SlurmTask) -> None:
        self.here = SlurmContext.read()
        self.task = task.at(self.here.index)
        self.folder = task.job(self.here.job_id)
        self.elements = task.elements[self.here.index]
        self.stop_file = rundir.stop_file(self.folder, self.here.restart)
        self.exit_file = rundir.exit_file(self.folder, self.here.restart)
        self.signals: set[int] = set()
        self.statuses: list[int] = []
        """Of this node's workers."""
        self.reported = ""
        """Fingerprint of what a report is about to read."""

    def run(self) -> str:
        """Whatever is raised here fails the job.

        Raises:
            StageError: the ranks failed, or three restarts made no progress.
            StoppedError: it was stopped, and Slurm did not end it.
        """
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        self.folder.mkdir(parents=True, exist_ok=True)
        # submitit leaves an error here when a node crashes, though the job is requeued and finishes
        (self.folder / f"{self.here.job_id}_{os.environ.get('SLURM_PROCID', '0')}_result.pkl").unlink(missing_ok=True)
        if self.here.node == 0:
            if self._outcome(Exit(None)) == "finished":  # a successor in a chain, or USR2 after the last step
                return self._end("finished")
            self._check_history()
        elif self.task.stage != REPORT and self._outcome(Exit(None)) == "finished":
            return "finished"
        if self.task.stage == REPORT:
            self.reported = report_fingerprint(RunDir(Path(self.task.folder)), self.task.runs)
        with node_folder(self.task.scratch, f"{self.here.job_id}.{self.here.restart}") as scratch:
            if not self.stop_file.exists():
                environment = node_environment(self.task, self.here, self.stop_file, scratch)
                self.statuses = NodeWorkers(self.task, self.here, self.signals).run(environment)
        return self._conclude()

    # ------------------------------------------------------------------------------------------ before

    def _check_history(self) -> None:
        """Begin an attempt, or give up.

        Raises:
            StageError: three restarts made nothing, or the job before in a chain failed.
        """
        reason = begin_attempt(self.task, self.here, self.elements)
        if reason:
            write_reason(self.task, self.here, self.elements[0], reason)
            self._end("failed")
            raise StageError(f"{self.task.name}: {reason}")

    # ------------------------------------------------------------------------------------------ signals

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signals.add(number)
        if not self.stop_file.exists() and read_outcome(self.exit_file) is None:
            with suppress(OSError):  # a full or lost file system: the ranks still get the signal of Slurm itself
                self.stop_file.write_text(signal.Signals(number).name)

    def _reason(self) -> set[str]:
        """Which signals asked for this stop, on any node; none: a person did, by the file."""
        told = {signal.Signals(number).name for number in self.signals}
        with suppress(OSError):
            told |= {self.stop_file.read_text().strip()} - {""}
        return told

    # ------------------------------------------------------------------------------------------ after

    def _conclude(self) -> str:
        worst = next((status for status in self.statuses if status != 0), 0 if self.statuses else None)
        ended = Exit(worst)
        if read_outcome(self.exit_file) == "failed":  # another node saw it first, and this one is taken down with it
            raise self._failure(ended)
        if self.here.node > 0:
            return self._follow(ended)
        outcome = self._outcome(ended)
        if outcome == "finished":
            return self._end(outcome, ended)
        if outcome == "stopped":
            self._end(outcome, ended)
            return self._stop()
        return self._fail(ended)

    def _fail(self, ended: Exit) -> str:
        """Some rank of this node failed. Where it only lost a rank of another node, that node says why, or is gone.

        Raises:
            StageError: always, unless Slurm ends this process first.
        """
        if len(self.here.hosts) > 1 and lost_another(self.task, self.here, self.elements[0], ended):
            return self._wait_for_cause(ended)
        failure = self._failure(ended)
        self._end("failed", ended)
        raise failure

    def _wait_for_cause(self, ended: Exit) -> str:
        """Until the node that failed says so, or Slurm sees that it is gone; else requeue: the machine failed, not we.

        Raises:
            StageError: the cause, or that there is none to be found.
        """
        sys.stderr.write(f"{self.task.name}: a rank of another node is gone; waiting for what that node says\n")
        give_up = time.monotonic() + CAUSE_S
        while time.monotonic() < give_up and not self.signals:
            if read_outcome(self.exit_file) == "failed":
                break
            time.sleep(POLL_S)
        if read_outcome(self.exit_file) == "failed":
            raise self._failure(ended)
        if not self.task.requeue:
            self._end("stopped", ended)
            raise self._failure(ended)
        return self._wait_to_be_ended(requeue=not self.signals)

    def _outcome(self, ended: Exit) -> Outcome:
        """Of all elements of this job together."""
        if self.task.stage == REPORT:
            return "finished" if ended.status == 0 else "stopped" if self.stop_file.exists() else "failed"
        node = stored_artefact(StageDir(Path(self.task.folder)))
        found = {decide(node, element, self.folder, self.here.restart, ended, note=False) for element in self.elements}
        return "failed" if "failed" in found else "stopped" if "stopped" in found else "finished"

    def _follow(self, ended: Exit) -> str:
        """Another node than 0: a rank that failed here fails the job; else node 0 says how it ended."""
        if ended.status and not self.stop_file.exists():
            return self._fail(ended)
        deadline = time.monotonic() + self.task.grace_time_s + KILL_WAIT_S
        while time.monotonic() < deadline:
            match read_outcome(self.exit_file):
                case "finished":
                    return "finished"
                case "failed":
                    raise self._failure(ended)
                case "stopped" if not self._waits:
                    raise self._stopped()
            time.sleep(1.0)
        raise self._stopped()

    def _end(self, outcome: Outcome, ended: Exit | None = None) -> str:
        """Write down how this attempt ended, for the other nodes and for whoever looks at the job afterwards."""
        facts: dict[str, Any] = {"status": ended.status if ended else 0, "outcome": outcome}
        facts |= {"stopped": self.stop_file.exists(), "why": sorted(self._reason()), "ended_at": time.time()}
        facts |= {"node": socket.gethostname()}
        facts |= {"reported": self.reported, "out": self.task.out} if self.reported else {}
        with unless_full(self.exit_file):
            records.write_json(self.exit_file, facts)
        return outcome

    def _failure(self, ended: Exit) -> StageError:
        return build_failure(self.task, self.here, self.elements[0], ended)

    # ------------------------------------------------------------------------------------------ stopped

    @property
    def _waits(self) -> bool:
        """Slurm will end this job itself, or is asked to: then nothing may end before."""
        return self.task.requeue and bool(self._reason())

    def _stop(self) -> str:
        """Stopped: where nothing goes on by itself, say so; else requeue at a time limit, and stay.

        Raises:
            StoppedError: a chain's successor, or the next submit, goes on with it; or Slurm did not act.
        """
        if not self._waits:
            raise self._stopped()
        return self._wait_to_be_ended(requeue="SIGUSR2" in self._reason())

    def _wait_to_be_ended(self, requeue: bool) -> str:
        """Stay until Slurm ends this process.

        Args:
            requeue: ask for it; after a TERM Slurm knows already what it does with the job.

        Raises:
            StoppedError: it did not, in the longest grace time.
        """
        deadline = time.monotonic() + self.task.grace_time_s + KILL_WAIT_S
        asked_at = -REQUEUE_EVERY_S
        while time.monotonic() < deadline:
            if requeue and time.monotonic() - asked_at > REQUEUE_EVERY_S:
                asked_at = time.monotonic()
                requeue = not self._requeue()
            time.sleep(1.0)
        raise self._stopped()

    def _requeue(self) -> bool:
        try:
            scontrol("requeue", self.here.raw_id)
        except SchedulerError as error:
            sys.stderr.write(f"{self.task.name}: saved, but not requeued: {error}\n")
            return False
        return True

    def _stopped(self) -> StoppedError:
        why = ", ".join(sorted(self._reason())) or "on request"
        return StoppedError(f"{self.task.name}: stopped ({why}) and saved; the next submit goes on with it")
