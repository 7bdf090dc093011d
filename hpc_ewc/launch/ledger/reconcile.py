"""The ledger held against what Slurm says: what lives, what ended and how, and which intents became jobs after all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hpc_ewc import rundir
from hpc_ewc.artefacts.artefact import REPORT, worker_name
from hpc_ewc.artefacts.failure import is_of_attempt, read_failure, write_failure
from hpc_ewc.artefacts.job_logs import last_lines
from hpc_ewc.artefacts.outcome import read_exit, read_outcome
from hpc_ewc.errors import SubmitError
from hpc_ewc.launch.ledger.job_history import History, Job, Ledger
from hpc_ewc.launch.slurm import client
from hpc_ewc.launch.slurm.output import SlurmJob
from hpc_ewc.rundir import RunDir
from hpc_ewc.schemas import Failure

NEVER = ("DependencyNeverSatisfied",)
"""Why a job waits that will not run: --kill-on-invalid-dep ends it in a moment."""
WELL = ("COMPLETED",)
INTERRUPTED = ("CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "REVOKED", "")
"""Ends that say nothing against the work: the next submit goes on with it."""


@dataclass(frozen=True)
class ActiveJobs:
    """What waits or runs."""

    jobs: tuple[Job, ...] = ()
    waiting: frozenset[str] = frozenset()
    """Ids of those that have not started."""
    queued: int = 0
    """All jobs of this user, array elements counted."""
    queued_in: dict[str, int] = field(default_factory=dict)
    """By partition."""

    def of(self, node: str) -> list[Job]:
        return [job for job in self.jobs if job.node == node]


def reconcile(root: RunDir) -> ActiveJobs:
    """Ask Slurm about every open job of the ledger, and write down what ended.

    Raises:
        SchedulerError: Slurm did not answer: nothing may be submitted, since it might be there already.
    """
    ledger = Ledger(root)
    history = ledger.read()
    queue = client.queue()
    _adopt(ledger, history, queue)
    live = {job.job_id: job for job in queue if job.reason not in NEVER}
    waiting = [job for job in history.open() if job.job_id]
    gone = [job for job in waiting if not _is(job, live.get(job.job_id))]
    known = client.look_up({job.main_id for job in gone}, since=min((job.at for job in gone), default=0.0) - 86400)
    told = {job.job_id: job for jobs in known.values() for job in jobs}
    settled = []
    for job in gone:
        entry = told.get(job.job_id)
        settled.append((job, final_outcome(root, job, entry if _is(job, entry) else None)))
    ledger.elements_ended(settled)
    for job, outcome in settled:
        if job.stage == REPORT and outcome == "finished":
            _note_report(root, ledger, job)
    partitions: dict[str, int] = {}
    for entry in queue:
        partitions[entry.partition] = partitions.get(entry.partition, 0) + 1
    alive = tuple(job for job in waiting if job not in gone)
    pending = frozenset(name for name, entry in live.items() if entry.waits)
    return ActiveJobs(alive, pending, len(queue), partitions)


def _is(job: Job, entry: SlurmJob | None) -> bool:
    """Whether Slurm speaks of this job: a cluster that was made anew gives ids again. Not all keep comments."""
    return entry is not None and entry.comment in ("", job.token)


def _adopt(ledger: Ledger, history: History, queue: Sequence[SlurmJob]) -> None:
    """Intents without an id: the submitter died around sbatch. The queue, or accounting, knows their tokens."""
    orphans = {job.token: job for job in history.open() if not job.job_id}
    if not orphans:
        return
    found = {job.comment: job.main_id for job in queue if job.comment in orphans}
    missing = orphans.keys() - found.keys()
    if missing:
        lost = [orphans[token] for token in missing]  # an array of several runs has the stage's name alone
        names = {f"{ledger.path.parent.name}/{name}" for job in lost for name in (job.node, job.stage)}
        ended = client.queue(ended=True)
        try:
            ended += client.accounted(names=names, since=min(orphans[token].at for token in missing) - 3600)
        except client.SchedulerError as error:
            if error.kind == "silent":
                raise
        found |= {job.comment: job.main_id for job in ended if job.comment in missing}
    for token in orphans:
        jobs = history.submission(token)
        if token in found:
            ledger.slurm_submitted(token, found[token], "")
            for job in jobs:
                job.job_id = found[token] if job.index is None else f"{found[token]}_{job.index}"
        else:
            ledger.elements_ended((job, "lost") for job in jobs)
            for job in jobs:
                job.outcome = "lost"


def _note_report(root: RunDir, ledger: Ledger, job: Job) -> None:
    """What the report that a job made was of: the next submit need not make it again."""
    facts = read_exit(rundir.exit_file(root.job(job.job_id), _last_restart(root, job)))
    if "reported" in facts and "out" in facts:
        ledger.reported(job.job_id, facts["reported"], facts["out"])


def final_outcome(root: RunDir, job: Job, told: SlurmJob | None) -> str:
    """How a job that Slurm no longer has ended; one that failed before its launcher could say so is explained."""
    folder = root.job(job.job_id)
    restart = told.restarts if told is not None else _last_restart(root, job)
    wrote = read_outcome(rundir.exit_file(folder, restart))
    if told is not None and told.state in WELL:
        return "finished"
    if wrote in ("finished", "failed"):
        return wrote
    # one that has not ended waits for something that failed: it never began
    if told is None or not told.ended or told.state in INTERRUPTED or wrote == "stopped":
        return "stopped"
    _record_failure(root, job, told, restart)
    return "failed"


def _last_restart(root: RunDir, job: Job) -> int:
    names = [path.suffix[1:] for path in root.job(job.job_id).glob("exit.*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def _record_failure(root: RunDir, job: Job, told: SlurmJob, restart: int) -> None:
    """Write failed.json for a job whose launcher could not: it never started, or was killed."""
    if job.stage == REPORT:
        return
    folder = root.stage(job.stage, job.run)
    if is_of_attempt(read_failure(folder), job.job_id, restart):
        return
    printed = batch_log(root, job)
    fix = f"; raise resources.{job.stage}.mem_gb" if told.state == "OUT_OF_MEMORY" else ""
    last = next((line for line in reversed(printed.splitlines()) if line.strip()), "")
    error = f"Slurm ended job {job.job_id}: {told.state} ({told.exit_code}){fix}"
    error += f"; last line of its log: {last[:200]}" if last else ""
    worker = worker_name(job.element, job.covers if job.stage == "evaluate" else ())
    failed: Failure = {"error": error, "traceback": printed, "element": worker, "node": told.nodes}
    write_failure(folder, failed | {"job_id": job.job_id, "restart": restart})


def batch_log(root: RunDir, job: Job) -> str:
    """What the batch script printed, and the launcher, if it came so far."""
    name = job.job_id if job.index is not None else job.main_id
    files = [root.job(job.token) / f"{name}_batch.out", *sorted(root.job(job.job_id).glob("*_log.err"))]
    return "\n".join(filter(None, (last_lines(path, 30) for path in files)))


def check_other_executor(root: RunDir, executor: str) -> None:
    """A run folder belongs to one scheduler while its jobs live.

    Raises:
        SubmitError: local jobs live and a submit to Slurm is asked for, or the other way round, or Slurm cannot be
            asked whether its jobs do.
    """
    history = Ledger(root).read()
    if executor == "slurm" and history.live():
        raise SubmitError(
            f"{len(history.live())} local jobs of {root.root} still run; wait for them, or end them by hpc-ewc cancel"
        )
    if executor == "local" and history.open():
        alive = reconcile(root).jobs
        if alive:
            raise SubmitError(
                f"{len(alive)} jobs of {root.root} wait or run on Slurm; submit with the Slurm profile, or end them by "
                "hpc-ewc cancel"
            )
