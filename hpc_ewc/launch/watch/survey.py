"""How an experiment stands: its folder, the ledger, the processes of this machine, and Slurm where it knows the jobs.

No key is computed here, and files decide: a stage is done when its `done.json` says so, whatever Slurm thinks of the
job. Slurm is asked twice (squeue, sacct) whatever the number of jobs, and at most once a minute.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from hpc_ewc.errors import ConfigError
from hpc_ewc.launch.ledger.job_history import History, Job, Ledger
from hpc_ewc.launch.ledger.lock import lock_holder
from hpc_ewc.launch.show.view import Row
from hpc_ewc.launch.slurm.client import SlurmJob, ask
from hpc_ewc.launch.watch.stage_status import Context, StageStatus
from hpc_ewc.node.slurm_command import SchedulerError
from hpc_ewc.process import Process
from hpc_ewc.rundir import RunDir

ASK_EVERY_S = 60.0


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


@dataclass
class Survey:
    """How everything stood at one moment."""

    rows: list[Row]
    """A stage and run of the last submit each."""
    jobs: dict[str, list[Job]]
    """By stage/run, oldest first."""
    slurm: dict[str, SlurmJob] = field(default_factory=dict)
    """By job id, what Slurm knows."""
    unanswered: list[str] = field(default_factory=list)
    """Of Slurm, what did not answer."""
    queue_answered: bool = True
    """What Slurm is not known to have, it has not."""
    holder: Process | None = None
    """The submit at work."""

    def live(self, node: str) -> list[Job]:
        """The jobs of a stage/run that run or wait now."""
        return [job for job in self.jobs.get(node, []) if self.is_live(job)]

    def is_live(self, job: Job) -> bool:
        if job.scheduler != "slurm":
            return job.is_alive()
        known = self.slurm.get(job.job_id)
        return known is not None and not known.ended

    @property
    def gpu_hours(self) -> float:
        return sum(row.gpu_hours for row in self.rows)


def survey(root: RunDir) -> Survey:
    """How an experiment stands now."""
    return Surveyor(root).look()


class Surveyor:
    """Looks again and again, and reads again only what may have changed.

    Args:
        root: the run folder.
        ask_every_s: seconds between two questions to Slurm.
    """

    def __init__(self, root: RunDir, ask_every_s: float = ASK_EVERY_S) -> None:
        self.root, self.ask_every_s = root, ask_every_s
        self.asked_at = -ask_every_s
        self.asked: set[str] = set()
        self.slurm: dict[str, SlurmJob] = {}
        self.unanswered: list[str] = []
        self.queue_answered = True
        self.read_at: tuple[int, int] = (0, 0)
        self.history = History()
        self.done: set[str] = set()

    def look(self) -> Survey:
        """Everything, in one go."""
        self._read_ledger()
        self._ask()
        by_node: dict[str, list[Job]] = {}
        for job in self.history.jobs.values():
            by_node.setdefault(job.node, []).append(job)
        holder = lock_holder(self.root)
        at_work = holder if holder is not None and holder.is_alive() else None
        found = Survey([], by_node, self.slurm, self.unanswered, self.queue_answered, at_work)
        context = Context(self.history, by_node, self.slurm, self.why_unknown, at_work is not None, self.done)
        for listed in self.history.graph.get("nodes", []):
            row = StageStatus(self.root, context, listed).row()
            context.states[row.id] = row.state
            found.rows.append(row)
        found.jobs = {row.id: by_node.get(row.id, []) for row in found.rows}
        return found

    def _read_ledger(self) -> None:
        stat = self.root.ledger.stat()
        if (stat.st_size, stat.st_mtime_ns) != self.read_at:
            before = self.history.graph.get("at")
            self.read_at = (stat.st_size, stat.st_mtime_ns)
            self.history = Ledger(self.root).read()
            if self.history.graph.get("at") != before:  # a submit may ask for more of what was done
                self.done.clear()

    def _ask(self) -> None:
        """Ask Slurm about every job it was ever given: those that ended have cost something too."""
        jobs = [job for job in self.history.jobs.values() if job.scheduler == "slurm" and job.job_id]
        wanted = {job.main_id for job in jobs}
        due = time.monotonic() - self.asked_at >= self.ask_every_s
        if not wanted or not due:
            return
        self.asked_at, self.asked = time.monotonic(), wanted
        try:
            owner = str(self.root.ledger.stat().st_uid)  # a project group looks at each other's runs
            answer = ask(wanted, since=min(job.at for job in jobs) - 86400, user=owner)
        except SchedulerError as error:
            self.unanswered = [f"Slurm did not answer, so this is told from files alone: {error}"]
            self.queue_answered = False
            return
        self.queue_answered = answer.queue_answered
        self.slurm = {one.job_id: one for listed in answer.jobs.values() for one in listed}
        self.unanswered = [f"part of what Slurm knows is missing: {error}" for error in answer.unanswered]

    def why_unknown(self, job: Job) -> str:
        """Why Slurm may have a job and it is not seen here; "" where Slurm was asked and has it no longer."""
        if job.main_id not in self.asked:
            return "just submitted"
        return "" if self.queue_answered else "not known: Slurm did not answer"
