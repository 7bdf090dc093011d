"""The stages that make an experiment: what each is, what waits for what, and the jobs that make it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from hpc_ewc import suites
from hpc_ewc.artefacts.artefact import Artefact, Element
from hpc_ewc.launch.profile.resources import JobResources
from hpc_ewc.rundir import RunDir


@dataclass(frozen=True)
class Node(Artefact):
    """An artefact in the graph: what it waits for, and what a job that makes it gets."""

    resources: JobResources = field(kw_only=True)
    depends: tuple[str, ...] = ()
    """`id`s of the nodes it reads."""


@dataclass(frozen=True)
class Graph:
    """All stages of one experiment, each after those it depends on."""

    root: RunDir
    nodes: dict[str, Node]

    def users(self) -> dict[str, list[str]]:
        """By id, the nodes that directly wait for it."""
        waiting: dict[str, list[str]] = {name: [] for name in self.nodes}
        for node in self.nodes.values():
            for name in node.depends:
                waiting[name].append(node.id)
        return waiting

    def of(self, stage: str) -> list[Node]:
        return [node for node in self.nodes.values() if node.stage == stage]


def elements(node: Node, missing: Sequence[str] | None = None) -> list[Element]:
    """The jobs that make an artefact.

    Args:
        node: the artefact.
        missing: of an evaluation, the `<fraction>:<cell>` still to be computed; None: all.
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
        for bundle in suites.deal(cells, node.resources.elements) if cells else []:
            names = ",".join(cell.name for cell in bundle)
            arguments = ("--checkpoint", repr(float(fraction)), "--cells", names)
            found.append(Element(str(len(found)), arguments, tuple(cell.at(fraction) for cell in bundle)))
    return found


def priorities(graph: Graph, wanted: Iterable[str]) -> dict[str, int]:
    """By id, how many of the wanted nodes wait for it, directly or not: whatever unblocks most runs first."""
    chosen = set(wanted)
    behind: dict[str, set[str]] = {name: set() for name in graph.nodes}
    users = graph.users()
    for name in reversed(list(graph.nodes)):  # users come after what they read
        for user in users[name]:
            behind[name] |= behind[user] | ({user} & chosen)
    return {name: len(found) for name, found in behind.items()}


def gpu_hours(graph: Graph, jobs: dict[str, int]) -> float:
    """The most that so many elements of each node can use."""
    return sum(graph.nodes[name].resources.gpu_hours * n for name, n in jobs.items())
