"""The graph of an experiment's stages, and the jobs that make each of them. No input or output."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from hpc_ewc import suites
from hpc_ewc.artefacts.artefact import Artefact, Element
from hpc_ewc.launch.profile.resources import JobResources
from hpc_ewc.rundir import RunDir


@dataclass(frozen=True)
class Node(Artefact):
    """An artefact in the graph, with its dependencies and the resources of its jobs."""

    resources: JobResources = field(kw_only=True)
    depends: tuple[str, ...] = ()
    """Ids of the nodes that it reads."""


@dataclass(frozen=True)
class Graph:
    """All stages of one experiment, each after its dependencies."""

    root: RunDir
    nodes: dict[str, Node]

    def users(self) -> dict[str, list[str]]:
        """Return the ids of direct dependants, by node id."""
        waiting: dict[str, list[str]] = {name: [] for name in self.nodes}
        for node in self.nodes.values():
            for name in node.depends:
                waiting[name].append(node.id)
        return waiting

    def of(self, stage: str) -> list[Node]:
        return [node for node in self.nodes.values() if node.stage == stage]


def elements(node: Node, missing: Sequence[str] | None = None) -> list[Element]:
    """Return the elements of an artefact: the parts that are made separately.

    Args:
        node: the artefact.
        missing: `<fraction>:<cell>`s of an evaluation that are still missing; None: all.
    """
    if node.stage == "tokens" and node.resources.elements > 1:
        n = node.resources.elements
        return [Element(str(i), ("--part", f"{i}/{n}")) for i in range(n)]
    if node.stage != "evaluate":
        return [Element("0")]
    wanted = set(node.expected if missing is None else missing)
    found: list[Element] = []
    for fraction in node.fractions:
        cells = [cell for cell in node.cells if cell.at(fraction) in wanted]
        for bundle in suites.assign(cells, node.resources.elements) if cells else []:
            names = ",".join(cell.name for cell in bundle)
            arguments = ("--checkpoint", repr(float(fraction)), "--cells", names)
            found.append(Element(str(len(found)), arguments, tuple(cell.at(fraction) for cell in bundle)))
    return found


def priorities(graph: Graph, wanted: Iterable[str]) -> dict[str, int]:
    """Return how many of the wanted nodes depend on each node, by id; the highest should run first."""
    chosen = set(wanted)
    behind: dict[str, set[str]] = {name: set() for name in graph.nodes}
    users = graph.users()
    for name in reversed(list(graph.nodes)):  # dependants come after their inputs
        for user in users[name]:
            behind[name] |= behind[user] | ({user} & chosen)
    return {name: len(found) for name, found in behind.items()}


def gpu_hours(graph: Graph, jobs: dict[str, int]) -> float:
    """Return the most GPU-hours that so many elements of each node can use."""
    return sum(graph.nodes[name].resources.gpu_hours * n for name, n in jobs.items())
