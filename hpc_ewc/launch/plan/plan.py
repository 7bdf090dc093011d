"""The plan of a request: its graph, which artefacts are complete, and which jobs are missing."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from math import ceil
from pathlib import Path

from hpc_ewc import records
from hpc_ewc.artefacts.artefact import REPORT
from hpc_ewc.artefacts.completeness import Completeness, check_artefact, write_stage_files
from hpc_ewc.artefacts.outcome import report_fingerprint
from hpc_ewc.launch.inputs.resolver import Resolver
from hpc_ewc.launch.ledger.job_history import History, Ledger
from hpc_ewc.launch.plan.graph import Graph, elements
from hpc_ewc.launch.plan.missing_inputs import LenientResolver, missing_benchmarks
from hpc_ewc.launch.plan.request import Request
from hpc_ewc.launch.profile.keys import Profile
from hpc_ewc.launch.profile.resources import slots
from hpc_ewc.launch.show.display import Display
from hpc_ewc.rundir import RunDir
from hpc_ewc.schemas import GraphNode


@dataclass(frozen=True)
class Plan:
    """A request, its graph, and which of its artefacts are complete."""

    request: Request
    profile: Profile
    graph: Graph
    found: dict[str, Completeness]
    out: Path
    history: History
    missing_inputs: dict[str, str] = field(default_factory=dict)
    """Kind of each input that is not downloaded yet, by hub id; filled by a dry run only."""

    @cached_property
    def jobs(self) -> dict[str, int]:
        """Number of missing jobs, by node id."""
        counted = {}
        for name, found in self.found.items():
            if not found.done:
                node = self.graph.nodes[name]
                per_job = slots(node.stage, node.resources, self.profile)
                counted[name] = ceil(len(elements(node, found.missing or None)) / per_job)
        return counted


def make_plan(
    request: Request, profile: Profile, root: RunDir, out: Path, display: Display, *, dry_run: bool = False
) -> Plan:
    """Resolve the inputs, build the graph and check its artefacts. Writes nothing but the cache of file hashes."""
    lenient = dry_run and request.allows_missing_inputs
    resolver = LenientResolver(request.label) if lenient else Resolver(request.label)
    resolver.hashes.announced = display.say
    graph = request.build(resolver, root, profile)
    history = Ledger(root).read()
    found = {name: check_artefact(node) for name, node in graph.nodes.items() if node.stage != REPORT}
    for node in graph.of("evaluate"):
        trained = all(found[name].done for name in node.depends if graph.nodes[name].stage == "train")
        if found[node.id].done and not trained:
            # its workers recompute the records whose weights differ from those of the repeated training
            found[node.id] = Completeness(False, tuple(node.expected), note="its training runs again")
    found[REPORT] = Completeness(_is_reported(graph, found, history, out))
    missing = missing_benchmarks(graph) | resolver.missing if isinstance(resolver, LenientResolver) else {}
    return Plan(request, profile, graph, found, out, history, missing)


def _is_reported(graph: Graph, found: dict[str, Completeness], history: History, out: Path) -> bool:
    """Return whether the last report covers exactly these evaluations, and its folder still exists."""
    if not all(entry.done for entry in found.values()) or not out.is_dir():
        return False
    reported = history.reported
    return (reported.get("of"), reported.get("out")) == (fingerprint(graph), str(out))


def fingerprint(graph: Graph) -> str:
    """Return a key of everything that a report of this graph reads: which evaluations, finished when."""
    return report_fingerprint(graph.root, [node.run for node in graph.of("evaluate")])


def record_plan(plan: Plan, *, prepare_folders: bool = True) -> Ledger:
    """Write the experiment and the graph into the run folder; return its ledger.

    Args:
        plan: what is about to run.
        prepare_folders: also write the stage files of each artefact that is not complete.
    """
    root = plan.graph.root
    records.write_text(root.experiment_toml, plan.request.text)
    root.jobs.mkdir(mode=0o700, exist_ok=True)
    root.jobs.chmod(0o700)
    ledger = Ledger(root)
    nodes: list[GraphNode] = [
        {"stage": node.stage, "run": node.run, "depends": list(node.depends)} for node in plan.graph.nodes.values()
    ]
    sweep = str(Path(plan.request.label).absolute())
    ledger.graph(nodes, sweep=sweep, out=str(plan.out), executor=plan.profile.executor)
    for name, found in plan.found.items():
        if prepare_folders and not found.done and name != REPORT:
            write_stage_files(plan.graph.nodes[name])
    return ledger
