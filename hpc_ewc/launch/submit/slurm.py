"""A graph given to Slurm: every stage that is missing, each behind what it reads; then the command returns.

What is queued or running is not given again. A submission is written into the ledger before sbatch is called and after,
its token is the job's comment: whoever dies in between, the next submit finds the job in the queue. A refusal half-way
leaves whole runs, each behind its own inputs; the next submit adds the rest.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpc_ewc.artefacts.artefact import REPORT, Element
from hpc_ewc.artefacts.completeness import Completeness, write_stage_files
from hpc_ewc.errors import SubmitError
from hpc_ewc.launch.ledger import reconcile
from hpc_ewc.launch.ledger.job_history import Job, Ledger
from hpc_ewc.launch.plan.graph import Graph, Node, elements
from hpc_ewc.launch.profile.keys import Profile
from hpc_ewc.launch.slurm import client
from hpc_ewc.launch.slurm.script import Script, build_script, clean_environment
from hpc_ewc.launch.submit.refusal import explain_refusal
from hpc_ewc.launch.submit.slurm_plan import Bundle, Room, arrays, build_task, bundles, covers, dependency, shared_run
from hpc_ewc.schemas import ArrayElement

SBATCH_LIMIT_S = 120.0
SAY_EVERY = 100
FOUND_AGAIN_S = (1.0, 3.0, 10.0)
"""When to look for a job whose sbatch gave no answer."""


@dataclass
class Tally:
    """What a submit did."""

    submitted: int = 0
    """Jobs, array elements and successors counted."""
    batches: int = 0
    kept: int = 0
    """Jobs that were queued or running already."""
    left: list[str] = field(default_factory=list)
    """Ids of nodes that found no room, or stand behind such."""


class SlurmSubmit:
    """Gives Slurm what is missing of a graph.

    Args:
        graph: of the experiment.
        found: by id, what is there of each node.
        profile: the cluster.
        ledger: where every submission is written down.
        code: folder of the package for the jobs.
        out: folder of the tables.
        live: what is queued or running, of this experiment and of the user (reconcile.py).
        say: for progress, where there is much to submit.
    """

    def __init__(
        self,
        graph: Graph,
        found: dict[str, Completeness],
        profile: Profile,
        ledger: Ledger,
        code: Path,
        out: Path,
        live: reconcile.ActiveJobs,
        say: Callable[[str], None],
    ) -> None:
        self.graph, self.found, self.profile, self.ledger = graph, found, profile, ledger
        self.code, self.out, self.live, self.say = code, out, live, say
        self.room = Room(profile, live)
        self.ids: dict[str, list[str]] = {}
        """By node, the main ids that a dependant waits for."""
        self.lost: set[str] = set()
        self.fresh: set[str] = set()
        """Nodes that this submit gave jobs."""
        self.tally = Tally()
        self.count = 0
        self.stamp = time.strftime("%Y%m%d-%H%M%S")

    def run(self) -> Tally:
        """Submit, run by run, so that a part is whole runs; the report last.

        Raises:
            SubmitError: sbatch refused; what was submitted before stays.
        """
        for nodes in arrays(self.graph):
            wanted = [node for node in nodes if not self.found[node.id].done]
            if nodes[0].stage == REPORT:
                for node in wanted:
                    self._submit_report(node)
            elif any(above in self.lost for node in wanted for above in node.depends):
                self._leave(*wanted)
            else:
                self._submit(wanted)
        return self.tally

    def _leave(self, *nodes: Node) -> None:
        names = dict.fromkeys(node.id for node in nodes)
        self.lost.update(names)
        self.tally.left += names

    def _submit(self, nodes: Sequence[Node]) -> None:
        """What is missing of the nodes of an array and not under way."""
        waiting = [bundle for node in nodes for bundle in self._waiting(node)]
        while waiting:
            node = waiting[0].node
            size = min(self.profile.slurm.max_array_size, self.room.free(node) // self._links(node))
            if size < 1:
                self._leave(*(bundle.node for bundle in waiting))
                return
            self._submit_chain(waiting[:size])
            waiting = waiting[size:]

    def _waiting(self, node: Node) -> list[Bundle]:
        """The jobs to be given of one node, its folder ready for them."""
        covered = {name for job in self._keep(node) for name in job.covers}
        wanted = self._missing(node, covered)
        if wanted:
            write_stage_files(node)
        return bundles(node, wanted, self.profile)

    def _keep(self, node: Node) -> list[Job]:
        """Its jobs that live and are still good; whoever reads it waits for them."""
        alive = self._still_good(node)
        self.tally.kept += len(alive)
        last = {job.covers: job for job in sorted(alive, key=lambda job: job.link)}  # of each chain
        self.ids[node.id] = list(dict.fromkeys(job.main_id for job in last.values()))
        return alive

    def _still_good(self, node: Node) -> list[Job]:
        """Its live jobs; those that wait behind a job that failed, whose place a new one takes, are taken back.

        Slurm itself ends them (--kill-on-invalid-dep), at its next look at the queue; until then they look alive.
        """
        alive = self.live.of(node.id)
        stale = [job for job in alive if job.job_id in self.live.waiting and self.fresh & set(node.depends)]
        if node.stage == REPORT or not stale:
            return alive
        client.cancel([job.job_id for job in stale])
        self.ledger.elements_ended((job, "stopped") for job in stale)
        self.room.give_back(node, len(stale))
        return [job for job in alive if job not in stale]

    def _missing(self, node: Node, covered: set[str]) -> list[Element]:
        if node.stage == "evaluate":
            missing = [name for name in self.found[node.id].missing or node.expected if name not in covered]
            return elements(node, missing) if missing else []
        return [element for element in elements(node) if not set(covers(element)) <= covered]

    def _submit_report(self, node: Node) -> None:
        """A report waits for all evaluations, however they end; one that waits for too few is taken back."""
        self._keep(node)
        if self.tally.submitted == 0 and self.ids[node.id]:
            return
        if self.tally.left:  # the submit that adds the rest adds the report
            self.tally.left.append(node.id)
            return
        for job in self.live.of(node.id):
            client.cancel([job.job_id])
            self.ledger.elements_ended([(job, "stopped")])
        if self.room.free(node) < 1:
            self._leave(node)
            return
        self._submit_chain([Bundle(node, (Element("0"),))])

    # ------------------------------------------------------------------------------------------ arrays and chains

    def _links(self, node: Node) -> int:
        slurm = self.profile.slurm
        return 1 + slurm.successors if slurm.continuation == "chain" and node.stage != REPORT else 1

    def _submit_chain(self, chunk: Sequence[Bundle]) -> None:
        """One submission; where requeue is forbidden, its successors too, the last of which dependants wait for."""
        node, run = chunk[0].node, shared_run(chunk)  # those that share an array wait for nothing
        waits = dependency(node, self.graph, self.found, self.ids)
        first, main = "", ""
        for link in range(self._links(node)):
            behind = ",".join(filter(None, [waits, f"afterany:{main}" if main else ""]))
            token = self._token()
            first = first or token
            script = self._script(token, chunk, behind)
            script.write(build_task(self.graph, chunk, self.profile, self.code, self.out, first, link))
            named: list[ArrayElement] = [{"name": bundle.name, "covers": bundle.covers} for bundle in chunk]
            if run != node.run:
                named = [{**element, "run": bundle.node.run} for element, bundle in zip(named, chunk, strict=True)]
            self.ledger.slurm_intent(token, node.stage, run, named, link)
            main = self._sbatch(script, node)
            self.ledger.slurm_submitted(token, main, behind)
            self.room.take(node, len(chunk))
            self.tally.submitted += len(chunk)
            self.tally.batches += 1
            if self.tally.batches % SAY_EVERY == 0:
                self.say(f"{self.tally.batches} submissions, {self.tally.submitted} jobs")
        for name in {bundle.node.id for bundle in chunk}:
            self.fresh.add(name)
            self.ids[name].append(main)

    def _script(self, token: str, chunk: Sequence[Bundle], behind: str) -> Script:
        node = chunk[0].node
        return build_script(
            root=self.graph.root,
            stage=node.stage,
            run=shared_run(chunk),
            token=token,
            resources=node.resources,
            profile=self.profile,
            code=self.code,
            array=len(chunk) if len(chunk) > 1 else None,
            dependency=behind,
        )

    def _token(self) -> str:
        """A name that no other submission has, of whatever experiment: jobs are found again by it."""
        self.count += 1
        return f"{self.stamp}-{self.count:04d}-{secrets.token_hex(3)}"

    def _sbatch(self, script: Script, node: Node) -> str:
        """Slurm's id of the submission.

        Raises:
            SubmitError: refused; it says by what, and what to change.
        """
        path = script.folder / "submission.sh"
        try:
            with clean_environment():
                said = client.call(["sbatch", "--parsable", str(path)], SBATCH_LIMIT_S, {"LC_ALL": "C.UTF-8"})
        except client.SchedulerError as error:
            if error.kind == "silent" and (main := self._find_again(script.token)):
                return main  # it took the job, and its answer was lost
            if error.kind != "silent":
                self._forget(script)
            raise explain_refusal(error, script.name, path, node, self.profile) from None
        main = said.strip().partition(";")[0]
        if not main.isdigit():
            raise SubmitError(f"sbatch answered {said.strip()[:80]!r} to {path}, which is no job id")
        return main

    def _forget(self, script: Script) -> None:
        """A submission that Slurm refused has no jobs."""
        self.ledger.elements_ended((job, "lost") for job in self.ledger.read().submission(script.token))

    def _find_again(self, token: str) -> str:
        for pause in FOUND_AGAIN_S:
            time.sleep(pause)
            try:
                for job in client.queue(ended=True):
                    if job.comment == token:
                        return job.main_id
                return ""
            except client.SchedulerError:
                continue
        return ""
