"""What is given to Slurm, in which order, behind what, and how much of it fits. Pure: nothing is submitted here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_ewc.artefacts.artefact import REPORT, Element
from hpc_ewc.artefacts.completeness import Completeness
from hpc_ewc.launch.ledger.reconcile import ActiveJobs
from hpc_ewc.launch.plan.graph import Graph, Node
from hpc_ewc.launch.profile.keys import Profile
from hpc_ewc.launch.profile.resources import slots
from hpc_ewc.node.commands import uses_torchrun
from hpc_ewc.node.environment import worker_environment
from hpc_ewc.node.slurm_attempt import StageTask

NO_LIMIT = 10**9


@dataclass(frozen=True)
class Bundle:
    """The elements of one array index: one, or where whole nodes are billed as many as it has GPUs."""

    node: Node
    """Whose they are: a job makes one artefact, and fails, is cancelled and is told of as that."""
    elements: tuple[Element, ...]

    @property
    def name(self) -> str:
        return "+".join(element.name for element in self.elements)

    @property
    def covers(self) -> list[str]:
        return [name for element in self.elements for name in covers(element)]


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


def arrays(graph: Graph) -> list[list[Node]]:
    """The nodes, in the order of `depth_first`, by what one submission holds.

    A node has one of its own, which can wait for its inputs. Evaluations that wait for nothing, of checkpoints that
    were there before, share one: it is one id to follow, and `max_running` counts all its elements.
    """
    free = [node for node in graph.of("evaluate") if not node.depends]
    order = [graph.nodes[name] for name in depth_first(graph)]
    return [free if node in free else [node] for node in order if node not in free[1:]]


def dependency(node: Node, graph: Graph, found: dict[str, Completeness], ids: dict[str, list[str]]) -> str:
    """Of sbatch: all that it reads ended well; for the report, all that it tells of ended."""
    waited = [main for name in node.depends if not found[name].done for main in ids.get(name, [])]
    unique = list(dict.fromkeys(waited))
    kind = "afterany" if node.stage == REPORT else "afterok"
    return f"{kind}:{':'.join(unique)}" if unique else ""


def bundles(node: Node, wanted: Sequence[Element], profile: Profile) -> list[Bundle]:
    """What one job each does."""
    side = slots(node.stage, node.resources, profile)
    return [Bundle(node, tuple(wanted[i : i + side])) for i in range(0, len(wanted), side)]


def shared_run(chunk: Sequence[Bundle]) -> str:
    """The run that a submission is of; "" where it is of several."""
    runs = {bundle.node.run for bundle in chunk}
    return chunk[0].node.run if len(runs) == 1 else ""


def build_task(
    graph: Graph, chunk: Sequence[Bundle], profile: Profile, code: Path, out: Path, token: str, link: int
) -> StageTask:
    """What the jobs of one submission run."""
    node = chunk[0].node
    resources, slurm, run = node.resources, profile.slurm, shared_run(chunk)
    side = slots(node.stage, node.resources, profile)
    ranks = resources.nproc_per_node if uses_torchrun(node.stage) else side
    environment = worker_environment(
        code, profile.env, max(1, resources.cpus_per_task // ranks), one_node=resources.nodes == 1
    )
    return StageTask(
        name="/".join(filter(None, (graph.root.name, node.stage, run))),
        stage=node.stage,
        folder=str(graph.root.root if node.stage == REPORT else node.folder.path),
        folders=() if run == node.run else tuple(str(bundle.node.folder.path) for bundle in chunk),
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
        container=profile.container,
    )


class Room:
    """How many more jobs the site lets this user submit."""

    def __init__(self, profile: Profile, live: ActiveJobs) -> None:
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

    def give_back(self, node: Node, jobs: int) -> None:
        self.take(node, -jobs)

    def take(self, node: Node, jobs: int) -> None:
        partition = self._partition(node)
        self.taken += jobs
        self.taken_in[partition] = self.taken_in.get(partition, 0) + jobs

    def _partition(self, node: Node) -> str:
        return self.profile.slurm.of(node.stage).partition
