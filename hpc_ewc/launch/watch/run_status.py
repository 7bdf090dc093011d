"""The status of a run folder, combined from its files, the ledger, local processes and Slurm.

Files decide: a stage is done if its `done.json` says so, whatever Slurm says of the job. No content key is computed.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from hpc_ewc.errors import ConfigError
from hpc_ewc.launch.ledger.job_history import History, Job
from hpc_ewc.launch.show.rows import Row
from hpc_ewc.launch.slurm.output import SlurmJob
from hpc_ewc.process import Process
from hpc_ewc.rundir import RunDir


def open_run(folder: Path) -> RunDir:
    """The run folder at a path given by the user.

    Raises:
        ConfigError: nothing was ever submitted there.
    """
    root = RunDir(folder.expanduser().absolute())
    if not root.ledger.is_file():
        near = sorted(path.parent for path in root.root.parent.glob("*/jobs.jsonl"))
        known = f"; run folders beside it: {', '.join(map(str, near))}" if near else ""
        raise ConfigError(f"{folder}: not a run folder, no {root.ledger.name} in it{known}")
    return root


@dataclass
class SlurmStatus:
    """Slurm's last answer about the jobs of a run."""

    jobs: dict[str, SlurmJob] = field(default_factory=dict)
    """By job id."""
    queried: set[str] = field(default_factory=set)
    """Main ids of the jobs in the query."""
    warnings: list[str] = field(default_factory=list)
    """One for each Slurm command that failed."""
    queue_answered: bool = True
    """squeue answered: a job that is not in `jobs` is not in the queue."""

    def why_unknown(self, job: Job) -> str:
        """Why a job may be in Slurm's queue although it is not in `jobs`; "" if Slurm no longer has it."""
        if job.main_id not in self.queried:
            return "just submitted"
        return "" if self.queue_answered else "unknown: Slurm did not answer"


@dataclass
class RunStatus:
    """The status of a run folder at one moment."""

    root: RunDir
    history: History
    jobs: defaultdict[str, list[Job]]
    """By stage/run, oldest first."""
    slurm: SlurmStatus
    submitter: Process | None = None
    """The submit that is running."""
    rows: list[Row] = field(default_factory=list)
    """One per stage and run of the last submit; inputs come before what reads them."""

    def live_jobs(self, node: str) -> list[Job]:
        """The jobs of a stage/run that run or wait."""
        return [job for job in self.jobs[node] if self.is_live(job)]

    def is_live(self, job: Job) -> bool:
        if job.scheduler != "slurm":
            return job.is_alive()
        known = self.slurm.jobs.get(job.job_id)
        return known is not None and not known.ended

    @property
    def gpu_hours(self) -> float:
        return sum(row.gpu_hours for row in self.rows)
