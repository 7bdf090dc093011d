"""Submit to Slurm: every missing stage, each with dependencies on what it reads; then the command returns.

A job that is queued or running is not submitted again. A submission is written into the ledger before and after the
call of sbatch, and its token is the job's comment: if the submit dies in between, the next one finds the job in the
queue. A refusal half-way leaves complete runs with their own inputs; the next submit adds the rest.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpc_ewc.artefacts.artefact import REPORT, Element
from hpc_ewc.artefacts.completeness import write_stage_files
from hpc_ewc.errors import SubmitError
from hpc_ewc.launch.ledger.job_history import Job, Ledger
from hpc_ewc.launch.ledger.reconcile import ActiveJobs
from hpc_ewc.launch.plan.graph import Node, elements
from hpc_ewc.launch.plan.plan import Plan
from hpc_ewc.launch.slurm import client
from hpc_ewc.launch.slurm.script import Script, clean_environment
from hpc_ewc.launch.submit.refusal import explain_refusal
from hpc_ewc.launch.submit.slurm_plan import ArrayTask, QueueQuota, Submission, array_tasks, covers, submission_groups
from hpc_ewc.node.slurm_command import SchedulerError, call
from hpc_ewc.rundir import script_file
from hpc_ewc.schemas import ArrayElement

SBATCH_LIMIT_S = 120.0
SAY_EVERY = 100
LOOKUP_DELAYS_S = (1.0, 3.0, 10.0)
"""Pauses before each search for a job whose sbatch gave no answer."""


@dataclass
class SubmitSummary:
    """The counts that a submit prints at its end."""

    submitted: int = 0
    """Jobs, including array elements and successors."""
    batches: int = 0
    """Calls of sbatch."""
    kept: int = 0
    """Jobs that were queued or running already."""
    postponed: list[str] = field(default_factory=list)
    """Ids of nodes that exceed the limit on submitted jobs, or depend on one that does."""


class SlurmSubmit:
    """Submits what is missing of a plan.

    Args:
        plan: the graph and what of it is complete.
        ledger: records every submission.
        code: folder of the package for the jobs.
        live: jobs of this experiment that are queued or running, and the number of the user's jobs.
        say: prints progress of a long submit.
    """

    def __init__(self, plan: Plan, ledger: Ledger, code: Path, live: ActiveJobs, say: Callable[[str], None]) -> None:
        self.plan, self.ledger, self.code, self.live, self.say = plan, ledger, code, live, say
        self.quota = QueueQuota(plan.profile, live)
        self.summary = SubmitSummary()
        self.ids: dict[str, list[str]] = {}
        """Main job ids that dependants wait for, by node id."""
        self.resubmitted: set[str] = set()
        """Ids of nodes that got jobs from this submit."""
        self.stamp = time.strftime("%Y%m%d-%H%M%S")

    def run(self) -> SubmitSummary:
        """Submit run after run, so that an interrupted submit leaves complete runs; the report last.

        Raises:
            SubmitError: sbatch refused; earlier submissions stay.
        """
        for group in submission_groups(self.plan.graph):
            missing = [node for node in group if not self.plan.found[node.id].done]
            if group[0].stage == REPORT:
                for node in missing:
                    self._submit_report(node)
            elif any(name in self.summary.postponed for node in missing for name in node.depends):
                self._postpone(missing)
            else:
                self._submit_group(missing)
        return self.summary

    def _postpone(self, nodes: Iterable[Node]) -> None:
        self.summary.postponed += dict.fromkeys(node.id for node in nodes)

    def _submit_group(self, nodes: Sequence[Node]) -> None:
        """Submit the jobs of these nodes that are neither done nor in the queue."""
        tasks = [task for node in nodes for task in self._missing_tasks(node)]
        while tasks:
            node = tasks[0].node
            size = min(self.plan.profile.slurm.max_array_size, self.quota.free(node) // self._chain_length(node))
            if size < 1:
                self._postpone(task.node for task in tasks)
                return
            self._submit_chain(tasks[:size])
            tasks = tasks[size:]

    def _missing_tasks(self, node: Node) -> list[ArrayTask]:
        """Return the jobs of one node to submit, after writing its stage files."""
        covered = {name for job in self._keep(node) for name in job.covers}
        if node.stage == "evaluate":
            cells = [name for name in self.plan.found[node.id].missing or node.expected if name not in covered]
            missing = elements(node, cells) if cells else []
        else:
            missing = [element for element in elements(node) if not set(covers(element)) <= covered]
        if missing:
            write_stage_files(node)
        return array_tasks(node, missing, self.plan.profile)

    def _keep(self, node: Node) -> list[Job]:
        """Return the live jobs of a node that stay in the queue, for which its dependants wait."""
        alive = self.live.of(node.id)
        if node.stage != REPORT and self.resubmitted & set(node.depends):
            # They wait for a job that failed and was submitted anew. Slurm will end them (--kill-on-invalid-dep) when
            # it next checks the queue; until then they look alive.
            stale = [job for job in alive if job.job_id in self.live.waiting]
            self._withdraw(node, stale)
            alive = [job for job in alive if job not in stale]
        self.summary.kept += len(alive)
        last = {job.covers: job for job in sorted(alive, key=lambda job: job.link)}  # of each chain
        self.ids[node.id] = list(dict.fromkeys(job.main_id for job in last.values()))
        return alive

    def _withdraw(self, node: Node, jobs: Sequence[Job]) -> None:
        """Cancel jobs that new ones replace."""
        if jobs:
            client.cancel([job.job_id for job in jobs])
            self.ledger.elements_ended((job, "stopped") for job in jobs)
            self.quota.add(node, -len(jobs))

    def _submit_report(self, node: Node) -> None:
        """Submit the report, which waits for all evaluations to end, in place of one that waits for too few."""
        self._keep(node)
        if self.summary.submitted == 0 and self.ids[node.id]:
            return
        if self.summary.postponed:  # the submit that adds the rest adds the report
            self._postpone([node])
            return
        self._withdraw(node, self.live.of(node.id))
        if self.quota.free(node) < 1:
            self._postpone([node])
            return
        self._submit_chain([ArrayTask(node, (Element("0"),))])

    # ------------------------------------------------------------------------------------------ arrays and chains

    def _chain_length(self, node: Node) -> int:
        slurm = self.plan.profile.slurm
        return 1 + slurm.successors if slurm.continuation == "chain" and node.stage != REPORT else 1

    def _submit_chain(self, tasks: Sequence[ArrayTask]) -> None:
        """Submit one array and, where requeue is forbidden, its successors; dependants wait for the last of them."""
        submission = Submission(self.plan, tasks, self.code)
        node, run = submission.node, submission.run
        inputs = submission.dependency(self.ids)
        first, main_id = "", ""
        entries: list[ArrayElement] = [{"name": task.name, "covers": task.covers} for task in tasks]
        if run != node.run:
            entries = [{**entry, "run": task.node.run} for entry, task in zip(entries, tasks, strict=True)]
        for link in range(self._chain_length(node)):
            waits = ",".join(filter(None, [inputs, f"afterany:{main_id}" if main_id else ""]))
            token = f"{self.stamp}-{self.summary.batches + 1:04d}-{secrets.token_hex(3)}"  # no other experiment has it
            first = first or token
            script = submission.script(token, waits)
            script.write(submission.task(first, link))
            self.ledger.slurm_intent(token, node.stage, run, entries, link)
            main_id = self._sbatch(script, node)
            self.ledger.slurm_submitted(token, main_id, waits)
            self.quota.add(node, len(tasks))
            self.summary.submitted += len(tasks)
            self.summary.batches += 1
            if self.summary.batches % SAY_EVERY == 0:
                self.say(f"{self.summary.batches} submissions, {self.summary.submitted} jobs")
        for name in {task.node.id for task in tasks}:
            self.resubmitted.add(name)
            self.ids[name].append(main_id)

    def _sbatch(self, script: Script, node: Node) -> str:
        """Call sbatch and return the main job id.

        Raises:
            SubmitError: sbatch refused; the message says what to change.
        """
        path = script_file(script.folder)
        try:
            with clean_environment():
                answer = call(["sbatch", "--parsable", str(path)], SBATCH_LIMIT_S, {"LC_ALL": "C.UTF-8"}).strip()
        except SchedulerError as error:
            if error.kind == "silent" and (main_id := _find_submission(script.token)):
                return main_id  # Slurm took the job, and its answer was lost
            if error.kind != "silent":
                self.ledger.elements_ended((job, "lost") for job in self.ledger.read().submission(script.token))
            raise explain_refusal(error, script.name, path, node, self.plan.profile) from None
        main_id = answer.partition(";")[0]
        if not main_id.isdigit():
            raise SubmitError(f"sbatch answered {answer[:80]!r} to {path}, which is not a job id")
        return main_id


def _find_submission(token: str) -> str:
    """Return the main id of the job whose comment is the token; "" if the queue has none or does not answer."""
    for pause in LOOKUP_DELAYS_S:
        time.sleep(pause)
        try:
            return next((job.main_id for job in client.queue(ended=True) if job.comment == token), "")
        except SchedulerError:
            continue
    return ""
