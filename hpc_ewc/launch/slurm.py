"""A graph given to Slurm: every stage that is missing, each behind what it reads; then the command returns.

What is queued or running is not given again. A submission is written into the ledger before sbatch is called and after,
its token is the job's comment: whoever dies in between, the next submit finds the job in the queue. A refusal half-way
leaves whole runs, each behind its own inputs; the next submit adds the rest.
"""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpc_ewc.errors import SubmitError
from hpc_ewc.launch import reconcile, scheduler
from hpc_ewc.launch.artefacts import Found, make_ready
from hpc_ewc.launch.graph import REPORT, Element, Graph, Node, elements
from hpc_ewc.launch.ledger import Ledger
from hpc_ewc.launch.profile import Profile, slots
from hpc_ewc.launch.slurm_job import SlurmTask
from hpc_ewc.launch.slurm_refusal import explain_refusal
from hpc_ewc.launch.slurm_script import Script, build_script, clean_environment
from hpc_ewc.launch.torchrun import uses_torchrun, worker_environment

SBATCH_LIMIT_S = 120.0
NO_LIMIT = 10**9
FOUND_AGAIN_S = (1.0, 3.0, 10.0)
"""When to look for a job whose sbatch gave no answer."""


@dataclass(frozen=True)
class Bundle:
    """The elements of one array index: one, or where whole nodes are billed as many as it has GPUs."""

    elements: tuple[Element, ...]

    @property
    def name(self) -> str:
        return "+".join(element.name for element in self.elements)

    @property
    def covers(self) -> list[str]:
        return [name for element in self.elements for name in covers(element)]


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
        live: what is queued or running of this experiment, by node (reconcile.py).
        queued: jobs of this user in the queue, of all experiments; by partition too.
        say: for progress.
    """

    def __init__(
        self,
        graph: Graph,
        found: dict[str, Found],
        profile: Profile,
        ledger: Ledger,
        code: Path,
        out: Path,
        live: reconcile.Live,
        say: Callable[[str], None],
    ) -> None:
        self.graph, self.found, self.profile, self.ledger = graph, found, profile, ledger
        self.code, self.out, self.live, self.say = code, out, live, say
        self.room = Room(profile, live)
        self.ids: dict[str, list[str]] = {}
        """By node, the main ids that a dependant waits for."""
        self.lost: set[str] = set()
        self.tally = Tally()
        self.count = 0
        self.stamp = time.strftime("%Y%m%d-%H%M%S")

    def run(self) -> Tally:
        """Submit, run by run, so that a part is whole runs; the report last.

        Raises:
            SubmitError: sbatch refused; what was submitted before stays.
        """
        for name in depth_first(self.graph):
            node = self.graph.nodes[name]
            if self.found[name].done:
                continue
            if any(above in self.lost for above in node.depends) and node.stage != REPORT:
                self._leave(name)
                continue
            self._submit(node)
        return self.tally

    def _leave(self, name: str) -> None:
        self.lost.add(name)
        self.tally.left.append(name)

    def _submit(self, node: Node) -> None:
        """What is missing of a node and not under way."""
        alive = self.live.of(node.id)
        self.tally.kept += len(alive)
        last = {job.covers: job for job in sorted(alive, key=lambda job: job.link)}  # of each chain
        self.ids[node.id] = list(dict.fromkeys(job.main_id for job in last.values()))
        if node.stage == REPORT:
            self._submit_report(node)
            return
        covered = {name for job in alive for name in job.covers}
        wanted = self._missing(node, covered)
        if not wanted:
            return
        make_ready(node)
        waiting = bundles(node, wanted, self.profile)
        while waiting:
            size = min(self.profile.slurm.max_array_size, self.room.free(node) // self._links(node))
            if size < 1:
                self._leave(node.id)
                return
            self._submit_chain(node, waiting[:size])
            waiting = waiting[size:]

    def _missing(self, node: Node, covered: set[str]) -> list[Element]:
        if node.stage == "evaluate":
            missing = [name for name in self.found[node.id].missing or node.expected if name not in covered]
            return elements(node, missing) if missing else []
        return [element for element in elements(node) if not set(covers(element)) <= covered]

    def _submit_report(self, node: Node) -> None:
        """A report waits for all evaluations, however they end; one that waits for too few is taken back."""
        if self.tally.submitted == 0 and self.ids[node.id]:
            return
        if self.tally.left:  # the submit that adds the rest adds the report
            self.tally.left.append(node.id)
            return
        for job in self.live.of(node.id):
            scheduler.cancel([job.job_id])
            self.ledger.elements_ended([(job, "stopped")])
        if self.room.free(node) < 1:
            self._leave(node.id)
            return
        self._submit_chain(node, [Bundle((Element("0"),))])

    # ------------------------------------------------------------------------------------------ arrays and chains

    def _links(self, node: Node) -> int:
        slurm = self.profile.slurm
        return 1 + slurm.successors if slurm.continuation == "chain" and node.stage != REPORT else 1

    def _submit_chain(self, node: Node, chunk: Sequence[Bundle]) -> None:
        """One submission; where requeue is forbidden, its successors too, the last of which dependants wait for."""
        waits = dependency(node, self.graph, self.found, self.ids)
        first, main = "", ""
        for link in range(self._links(node)):
            behind = ",".join(filter(None, [waits, f"afterany:{main}" if main else ""]))
            token = self._token()
            first = first or token
            script = self._script(node, token, chunk, behind)
            script.write(build_task(self.graph, node, chunk, self.profile, self.code, self.out, first, link))
            named = [{"name": bundle.name, "covers": bundle.covers} for bundle in chunk]
            self.ledger.slurm_intent(token, node.stage, node.run, named, link)
            main = self._sbatch(script, node)
            self.ledger.slurm_submitted(token, main, behind)
            self.room.take(node, len(chunk))
            self.tally.submitted += len(chunk)
            self.tally.batches += 1
        self.ids[node.id].append(main)

    def _script(self, node: Node, token: str, chunk: Sequence[Bundle], behind: str) -> Script:
        return build_script(
            root=self.graph.root,
            stage=node.stage,
            run=node.run,
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
                said = scheduler.call(["sbatch", "--parsable", str(path)], SBATCH_LIMIT_S, {"LC_ALL": "C.UTF-8"})
        except scheduler.SchedulerError as error:
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
                for job in scheduler.queue(ended=True):
                    if job.comment == token:
                        return job.main_id
                return ""
            except scheduler.SchedulerError:
                continue
        return ""


class Room:
    """How many more jobs the site lets this user submit."""

    def __init__(self, profile: Profile, live: reconcile.Live) -> None:
        self.profile = profile
        self.taken = live.queued
        self.taken_in = dict(live.queued_in)

    def free(self, node: Node) -> int:
        """How many more jobs of this node fit, a place for the report kept."""
        slurm, partition = self.profile.slurm, self._partition(node)
        free = NO_LIMIT
        if slurm.max_submitted is not None:
            free = slurm.max_submitted - self.taken - (node.stage != REPORT)
        if partition in slurm.max_submitted_in:
            free = min(free, slurm.max_submitted_in[partition] - self.taken_in.get(partition, 0))
        return free

    def take(self, node: Node, jobs: int) -> None:
        partition = self._partition(node)
        self.taken += jobs
        self.taken_in[partition] = self.taken_in.get(partition, 0) + jobs

    def _partition(self, node: Node) -> str:
        return self.profile.slurm.of(node.stage).partition


# ---------------------------------------------------------------------------------------------- pure


def covers(element: Element) -> tuple[str, ...]:
    """What an element makes, by names that another deal of the same cells keeps."""
    return element.expected or (element.arguments[-1] if element.arguments else element.name,)


def depth_first(graph: Graph) -> list[str]:
    """Each node right before what reads it, so that what comes first is whole runs; the report last."""
    order: list[str] = []

    def visit(name: str) -> None:
        if name not in order_set:
            for above in graph.nodes[name].depends:
                visit(above)
            order_set.add(name)
            order.append(name)

    order_set: set[str] = set()
    for node in [*graph.of("evaluate"), *graph.nodes.values()]:
        visit(node.id)
    return [name for name in order if name != REPORT] + [name for name in order if name == REPORT]


def dependency(node: Node, graph: Graph, found: dict[str, Found], ids: dict[str, list[str]]) -> str:
    """Of sbatch: all that it reads ended well; for the report, all that it tells of ended."""
    waited = [main for name in node.depends if not found[name].done for main in ids.get(name, [])]
    unique = list(dict.fromkeys(waited))
    kind = "afterany" if node.stage == REPORT else "afterok"
    return f"{kind}:{':'.join(unique)}" if unique else ""


def bundles(node: Node, wanted: Sequence[Element], profile: Profile) -> list[Bundle]:
    """What one job each does."""
    side = slots(node.stage, node.resources, profile)
    return [Bundle(tuple(wanted[i : i + side])) for i in range(0, len(wanted), side)]


def build_task(
    graph: Graph, node: Node, chunk: Iterable[Bundle], profile: Profile, code: Path, out: Path, token: str, link: int
) -> SlurmTask:
    """What the jobs of one submission run."""
    resources, slurm = node.resources, profile.slurm
    side = slots(node.stage, node.resources, profile)
    ranks = resources.nproc_per_node if uses_torchrun(node.stage) else side
    environment = worker_environment(
        code, profile.env, max(1, resources.cpus_per_task // ranks), one_node=resources.nodes == 1
    )
    return SlurmTask(
        name="/".join(filter(None, (graph.root.name, node.stage, node.run))),
        stage=node.stage,
        folder=str(graph.root.root if node.stage == REPORT else node.folder.path),
        jobs=str(graph.root.jobs),
        token=token,
        elements=tuple(bundle.elements for bundle in chunk),
        python=profile.interpreter,
        environment=environment,
        nodes=resources.nodes,
        nproc_per_node=resources.nproc_per_node,
        slots=side,
        gpus_per_node=resources.gpus_per_node,
        cpus_per_task=resources.cpus_per_task,
        out=str(out),
        runs=tuple(other.run for other in graph.of("evaluate")) if node.stage == REPORT else (),
        host_suffix=slurm.host_suffix,
        requeue=slurm.continuation == "requeue",
        link=link,
        grace_time_s=slurm.grace_time_s,
        scratch=slurm.scratch,
        container=dataclasses.replace(profile.container),
    )
