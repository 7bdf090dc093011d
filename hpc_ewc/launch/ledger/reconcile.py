"""Compares the ledger with Slurm: which jobs are active, which ended and how, and which intents became jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from hpc_ewc import rundir
from hpc_ewc.artefacts.artefact import REPORT, worker_name
from hpc_ewc.artefacts.failure import is_of_attempt, read_failure, write_failure
from hpc_ewc.artefacts.job_logs import last_lines, launcher_logs
from hpc_ewc.artefacts.outcome import read_exit, read_outcome
from hpc_ewc.errors import SubmitError
from hpc_ewc.launch.ledger.job_history import Job, Ledger
from hpc_ewc.launch.slurm import client
from hpc_ewc.launch.slurm.output import SlurmJob
from hpc_ewc.node.slurm_command import SchedulerError
from hpc_ewc.rundir import RunDir
from hpc_ewc.schemas import Failure

NEVER_STARTS = ("DependencyNeverSatisfied",)
"""Reasons of a pending job that will not run; --kill-on-invalid-dep soon ends it."""
INTERRUPTED = ("CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "REVOKED", "")
"""States of ended jobs that did not fail by themselves: resubmit to resume."""


@dataclass(frozen=True)
class ActiveJobs:
    """Jobs on Slurm that wait or run."""

    jobs: tuple[Job, ...] = ()
    """Jobs of this run folder."""
    waiting: frozenset[str] = frozenset()
    """Ids of jobs that have not started."""
    queued: int = 0
    """All jobs of this user, array elements counted."""
    queued_in: dict[str, int] = field(default_factory=dict)
    """The same by partition."""

    def of(self, node: str) -> list[Job]:
        return [job for job in self.jobs if job.node == node]


def reconcile(root: RunDir) -> ActiveJobs:
    """Ask Slurm about every open job of the ledger, and record the outcome of those that ended.

    Raises:
        SchedulerError: Slurm did not answer; nothing may be submitted, since Slurm may have it already.
    """
    ledger = Ledger(root)
    queue = client.queue()
    _recover_ids(ledger, queue)
    queued = {job.job_id: job for job in queue if job.reason not in NEVER_STARTS}
    submitted = [job for job in ledger.read().open() if job.job_id]
    gone = [job for job in submitted if not _is_same(job, queued.get(job.job_id))]
    active = tuple(job for job in submitted if _is_same(job, queued.get(job.job_id)))
    answer = client.look_up({job.main_id for job in gone}, since=min((job.at for job in gone), default=0.0) - 86400)
    known = {slurm_job.job_id: slurm_job for jobs in answer.values() for slurm_job in jobs}
    outcomes = []
    for job in gone:
        slurm_job = known.get(job.job_id)
        outcomes.append((job, final_outcome(root, job, slurm_job if _is_same(job, slurm_job) else None)))
    ledger.elements_ended(outcomes)
    for job, outcome in outcomes:
        if job.stage == REPORT and outcome == "finished":
            _record_report(root, ledger, job)
    waiting = frozenset(job_id for job_id, slurm_job in queued.items() if slurm_job.waits)
    return ActiveJobs(active, waiting, len(queue), Counter(slurm_job.partition for slurm_job in queue))


def _is_same(job: Job, slurm_job: SlurmJob | None) -> bool:
    """Whether they are the same job: a reinstalled cluster gives ids again. Not every cluster keeps comments."""
    return slurm_job is not None and slurm_job.comment in ("", job.token)


def _recover_ids(ledger: Ledger, queue: Sequence[SlurmJob]) -> None:
    """Find the ids of intents whose submit died around sbatch: queue and accounting show the token as the comment."""
    history = ledger.read()
    orphans = {job.token: job for job in history.open() if not job.job_id}
    ids = {job.comment: job.main_id for job in queue if job.comment in orphans}
    missing = [job for token, job in orphans.items() if token not in ids]
    if missing:
        # an array of several runs has only the stage in its name
        names = {f"{ledger.path.parent.name}/{name}" for job in missing for name in (job.node, job.stage)}
        ended = client.queue(ended=True)
        try:
            ended += client.accounted(names=names, since=min(job.at for job in missing) - 3600)
        except SchedulerError as error:
            if error.kind == "silent":
                raise
        ids |= {job.comment: job.main_id for job in ended if job.comment in orphans.keys() - ids.keys()}
    for token in orphans:
        if token in ids:
            ledger.slurm_submitted(token, ids[token], "")
        else:
            ledger.elements_ended((job, "lost") for job in history.submission(token))


def _record_report(root: RunDir, ledger: Ledger, job: Job) -> None:
    """Record which evaluations a finished report read, so that the next submit does not repeat it."""
    facts = read_exit(rundir.exit_file(root.job(job.job_id), last_restart(root, job)))
    if "reported" in facts and "out" in facts:
        ledger.reported(job.job_id, facts["reported"], facts["out"])


def final_outcome(root: RunDir, job: Job, slurm_job: SlurmJob | None) -> str:
    """The outcome of a job that left the queue; if it failed before its launcher could say so, failed.json is written.

    Args:
        root: the run folder.
        job: on Slurm.
        slurm_job: Slurm's entry for it; None if Slurm has forgotten it.
    """
    restart = slurm_job.restarts if slurm_job else last_restart(root, job)
    outcome = read_outcome(rundir.exit_file(root.job(job.job_id), restart))
    if slurm_job and slurm_job.state == "COMPLETED":
        return "finished"
    if outcome in ("finished", "failed"):
        return outcome
    # one that has not ended depends on a failed job, and never started
    if not slurm_job or not slurm_job.ended or slurm_job.state in INTERRUPTED or outcome == "stopped":
        return "stopped"
    _record_failure(root, job, slurm_job, restart)
    return "failed"


def last_restart(root: RunDir, job: Job) -> int:
    """The number of a job's last attempt that has ended; 0 if none has."""
    names = [path.suffix[1:] for path in root.job(job.job_id).glob("exit.*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def _record_failure(root: RunDir, job: Job, slurm_job: SlurmJob, restart: int) -> None:
    """Write failed.json for a job whose launcher could not: it never started, or was killed."""
    if job.stage == REPORT:
        return
    folder = root.stage(job.stage, job.run)
    if is_of_attempt(read_failure(folder), job.job_id, restart):
        return
    printed = batch_log(root, job)
    fix = f"; raise resources.{job.stage}.mem_gb" if slurm_job.state == "OUT_OF_MEMORY" else ""
    last = next((line for line in reversed(printed.splitlines()) if line.strip()), "")
    error = f"Slurm ended job {job.job_id}: {slurm_job.state} ({slurm_job.exit_code}){fix}"
    error += f"; last line of its log: {last[:200]}" if last else ""
    worker = worker_name(job.element, job.covers if job.stage == "evaluate" else ())
    failed: Failure = {"error": error, "traceback": printed, "element": worker, "node": slurm_job.nodes}
    write_failure(folder, failed | {"job_id": job.job_id, "restart": restart})


def batch_log(root: RunDir, job: Job) -> str:
    """The last lines of the batch script and, if it started, of the launcher."""
    name = job.job_id if job.index is not None else job.main_id
    files = [root.job(job.token) / f"{name}_batch.out", *launcher_logs(root.job(job.job_id))]
    return "\n".join(filter(None, (last_lines(path, 30) for path in files)))


def check_other_executor(root: RunDir, executor: str) -> None:
    """Refuse to mix executors: a run folder belongs to one of them while its jobs are active.

    Raises:
        SubmitError: jobs of the other executor are active, or Slurm cannot be asked whether its jobs are.
    """
    history = Ledger(root).read()
    if executor == "slurm" and history.live():
        raise SubmitError(
            f"{len(history.live())} local jobs of {root.root} still run; wait for them, or end them by hpc-ewc cancel"
        )
    if executor == "local" and history.open() and (active := reconcile(root).jobs):
        raise SubmitError(
            f"{len(active)} jobs of {root.root} wait or run on Slurm; submit with the Slurm profile, or end them by "
            "hpc-ewc cancel"
        )
