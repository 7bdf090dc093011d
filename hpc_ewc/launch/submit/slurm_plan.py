"""The submissions of a graph: their order, dependencies and scripts, and how many fit. Nothing is submitted here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_ewc.artefacts.artefact import REPORT, Element
from hpc_ewc.launch.ledger.reconcile import ActiveJobs
from hpc_ewc.launch.plan.graph import Graph, Node
from hpc_ewc.launch.plan.plan import Plan
from hpc_ewc.launch.profile.keys import Profile
from hpc_ewc.launch.profile.resources import slots
from hpc_ewc.launch.slurm.script import Script, build_script
from hpc_ewc.node.commands import uses_torchrun
from hpc_ewc.node.environment import worker_environment
from hpc_ewc.node.slurm_attempt import StageTask

NO_LIMIT = 10**9


@dataclass(frozen=True)
class ArrayTask:
    """One job: a single element of a node, or one per GPU where the site bills whole nodes."""

    node: Node
    """A job makes, fails and is cancelled as part of one artefact."""
    elements: tuple[Element, ...]

    @property
    def name(self) -> str:
        return "+".join(element.name for element in self.elements)

    @property
    def covers(self) -> list[str]:
        return [name for element in self.elements for name in covers(element)]


def covers(element: Element) -> tuple[str, ...]:
    """Return the parts of an artefact that an element makes, by names that do not depend on the number of elements."""
    return element.expected or (element.arguments[-1] if element.arguments else element.name,)


def array_tasks(node: Node, elements: Sequence[Element], profile: Profile) -> list[ArrayTask]:
    """Return the jobs that make these elements of a node."""
    per_job = slots(node.stage, node.resources, profile)
    return [ArrayTask(node, tuple(elements[i : i + per_job])) for i in range(0, len(elements), per_job)]


def depth_first(graph: Graph) -> list[str]:
    """Return ids so that each node follows what it reads and every prefix is whole runs; the report is last."""
    order: dict[str, None] = {}

    def visit(name: str) -> None:
        if name not in order:
            for dependency in graph.nodes[name].depends:
                visit(dependency)
            order[name] = None

    for node in [*graph.of("evaluate"), *graph.nodes.values()]:
        visit(node.id)
    return sorted(order, key=lambda name: name == REPORT)


def submission_groups(graph: Graph) -> list[list[Node]]:
    """Return the nodes in the order of `depth_first`, grouped by submission.

    A node that waits for others has a submission of its own. Evaluations without dependencies, which are of
    checkpoints that existed before, share one: there is one id to follow, and `max_running` limits all its elements.
    """
    free = [node for node in graph.of("evaluate") if not node.depends]
    order = [graph.nodes[name] for name in depth_first(graph)]
    return [free if node in free else [node] for node in order if node not in free[1:]]


@dataclass(frozen=True)
class Submission:
    """One call of sbatch: a single job, or the elements of one array."""

    plan: Plan
    tasks: Sequence[ArrayTask]
    code: Path
    """Folder of the package for the jobs."""

    @property
    def node(self) -> Node:
        return self.tasks[0].node

    @property
    def run(self) -> str:
        """The run that all tasks belong to; "" if they belong to several."""
        return self.node.run if len({task.node.run for task in self.tasks}) == 1 else ""

    @property
    def name(self) -> str:
        return "/".join(filter(None, (self.node.stage, self.run)))

    def dependency(self, ids: dict[str, list[str]]) -> str:
        """Return the value of sbatch's `--dependency`, or "": inputs must succeed, a report only waits for an end.

        Args:
            ids: main job ids, by id of the node that they make.
        """
        found = self.plan.found
        waiting = [job_id for name in self.node.depends if not found[name].done for job_id in ids.get(name, [])]
        kind = "afterany" if self.node.stage == REPORT else "afterok"
        return f"{kind}:{':'.join(dict.fromkeys(waiting))}" if waiting else ""

    def script(self, token: str, dependency: str) -> Script:
        """Return the batch script; `token` is the submission's name in the ledger."""
        return build_script(
            root=self.plan.graph.root,
            stage=self.node.stage,
            run=self.run,
            token=token,
            resources=self.node.resources,
            profile=self.plan.profile,
            code=self.code,
            array=len(self.tasks) if len(self.tasks) > 1 else None,
            dependency=dependency,
        )

    def task(self, token: str, link: int) -> StageTask:
        """Return the task of the jobs.

        Args:
            token: name in the ledger of the submission, or of the first one of its chain.
            link: place in the chain of successors, from 0.
        """
        graph, profile, node = self.plan.graph, self.plan.profile, self.node
        resources, slurm = node.resources, profile.slurm
        per_job = slots(node.stage, resources, profile)
        ranks = resources.nproc_per_node if uses_torchrun(node.stage) else per_job
        threads = max(1, resources.cpus_per_task // ranks)
        return StageTask(
            name=f"{graph.root.name}/{self.name}",
            stage=node.stage,
            folder=str(graph.root.root if node.stage == REPORT else node.folder.path),
            folders=() if self.run == node.run else tuple(str(task.node.folder.path) for task in self.tasks),
            jobs=str(graph.root.jobs),
            token=token,
            elements=tuple(task.elements for task in self.tasks),
            python=profile.interpreter,
            environment=worker_environment(self.code, profile.env, threads, one_node=resources.nodes == 1),
            nodes=resources.nodes,
            nproc_per_node=resources.nproc_per_node,
            slots=per_job,
            gpus_per_node=resources.gpus_per_node,
            cpus_per_task=resources.cpus_per_task,
            out=str(self.plan.out),
            runs=tuple(other.run for other in graph.of("evaluate")) if node.stage == REPORT else (),
            host_suffix=slurm.host_suffix,
            requeue=slurm.continuation == "requeue",
            link=link,
            grace_time_s=slurm.grace_time_s,
            scratch=slurm.scratch,
            container=profile.container,
        )


class QueueQuota:
    """Counts how many more jobs the site lets this user submit."""

    def __init__(self, profile: Profile, live: ActiveJobs) -> None:
        self.profile = profile
        self.used = live.queued
        self.used_in = dict(live.queued_in)

    def free(self, node: Node) -> int:
        """Return how many more jobs of this node fit; one place is kept for the report."""
        slurm, partition = self.profile.slurm, self._partition(node)
        free = NO_LIMIT
        if slurm.max_submitted is not None:
            free = slurm.max_submitted - self.used - (node.stage != REPORT)
        if partition in slurm.max_submitted_in:
            free = min(free, slurm.max_submitted_in[partition] - self.used_in.get(partition, 0))
        return free

    def add(self, node: Node, jobs: int) -> None:
        """Count jobs of a node that were submitted, or, if negative, that left the queue."""
        partition = self._partition(node)
        self.used += jobs
        self.used_in[partition] = self.used_in.get(partition, 0) + jobs

    def _partition(self, node: Node) -> str:
        return self.profile.slurm.of(node.stage).partition
