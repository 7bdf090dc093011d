"""Reading a run's status, once or again and again.

Slurm is queried with two commands (squeue, sacct) whatever the number of jobs, and at most once a minute.
"""

from __future__ import annotations

import time
from collections import defaultdict

from hpc_ewc.launch.ledger.job_history import History, Job, Ledger
from hpc_ewc.launch.ledger.lock import lock_holder
from hpc_ewc.launch.slurm.client import ask
from hpc_ewc.launch.watch.run_status import RunStatus, SlurmStatus
from hpc_ewc.launch.watch.stage_status import StageStatus
from hpc_ewc.node.slurm_command import SchedulerError
from hpc_ewc.rundir import RunDir

QUERY_INTERVAL_S = 60.0


def read_status(root: RunDir) -> RunStatus:
    """The current status of a run."""
    return StatusReader(root).read()


class StatusReader:
    """Reads a run's status repeatedly; files are read again only if they may have changed.

    Args:
        root: the run folder.
        query_interval_s: least seconds between two queries to Slurm.
    """

    def __init__(self, root: RunDir, query_interval_s: float = QUERY_INTERVAL_S) -> None:
        self.root, self.query_interval_s = root, query_interval_s
        self.queried_at = -query_interval_s
        self.slurm = SlurmStatus()
        self.ledger_version = (0, 0)
        self.history = History()
        self.done: set[str] = set()

    def read(self) -> RunStatus:
        """The current status."""
        self._read_ledger()
        self._query_slurm()
        jobs: defaultdict[str, list[Job]] = defaultdict(list)
        for job in self.history.jobs.values():
            jobs[job.node].append(job)
        holder = lock_holder(self.root)
        submitter = holder if holder is not None and holder.is_alive() else None
        status = RunStatus(self.root, self.history, jobs, self.slurm, submitter)
        for node in self.history.graph.get("nodes", []):
            status.rows.append(StageStatus(status, node, self.done).row())
        return status

    def _read_ledger(self) -> None:
        stat = self.root.ledger.stat()
        version = (stat.st_size, stat.st_mtime_ns)
        if version != self.ledger_version:
            before = self.history.graph.get("at")
            self.ledger_version, self.history = version, Ledger(self.root).read()
            if self.history.graph.get("at") != before:  # a new submit may want more of what was done
                self.done.clear()

    def _query_slurm(self) -> None:
        """Ask Slurm about all jobs ever submitted: GPU-hours include those that ended."""
        jobs = [job for job in self.history.jobs.values() if job.scheduler == "slurm" and job.job_id]
        if not jobs or time.monotonic() - self.queried_at < self.query_interval_s:
            return
        self.queried_at = time.monotonic()
        wanted = {job.main_id for job in jobs}
        owner = str(self.root.ledger.stat().st_uid)  # members of a project read each other's runs
        try:
            answer = ask(wanted, since=min(job.at for job in jobs) - 86400, user=owner)
        except SchedulerError as error:
            warning = f"Slurm did not answer; status is from files only: {error}"
            self.slurm = SlurmStatus(self.slurm.jobs, wanted, [warning], queue_answered=False)
            return
        known = {job.job_id: job for listed in answer.jobs.values() for job in listed}
        warnings = [f"Slurm's answer is incomplete: {error}" for error in answer.unanswered]
        self.slurm = SlurmStatus(known, wanted, warnings, answer.queue_answered)
