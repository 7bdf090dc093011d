"""What is asked for, and what is there of it: read by a submit, a dry run and an evaluation of given checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from hpc_ewc import records
from hpc_ewc.artefacts.artefact import REPORT
from hpc_ewc.artefacts.completeness import Completeness, check_artefact, write_stage_files
from hpc_ewc.artefacts.outcome import report_fingerprint
from hpc_ewc.config import NAME_PATTERN, Experiment
from hpc_ewc.errors import ConfigError
from hpc_ewc.launch.inputs.resolver import Resolver
from hpc_ewc.launch.inputs.source_files import local_path
from hpc_ewc.launch.ledger.job_history import History, Ledger
from hpc_ewc.launch.plan.graph import Graph, elements
from hpc_ewc.launch.plan.missing_inputs import LenientResolver, absent_benchmarks
from hpc_ewc.launch.profile.keys import Profile
from hpc_ewc.launch.profile.resources import slots
from hpc_ewc.launch.show.display import Display
from hpc_ewc.rundir import RunDir
from hpc_ewc.schemas import GraphNode


@dataclass(frozen=True)
class Request:
    """What is to be run: an experiment file, or the checkpoints that `hpc-ewc evaluate` was given."""

    label: str
    """The file that errors name."""
    text: str
    """What `experiment.toml` of the run folder is to hold."""
    experiment: Experiment
    build: Callable[[Resolver, RunDir, Profile], Graph]
    again: str
    """The command that goes on with it."""
    may_lack_inputs: bool = False
    """A dry run shows it though inputs are not fetched yet."""
    model_config: Path | None = None
    """config.json of the model, for a dry run without the model."""


@dataclass(frozen=True)
class Plan:
    """A request, and what is there of it."""

    request: Request
    profile: Profile
    graph: Graph
    found: dict[str, Completeness]
    out: Path
    history: History
    absent: dict[str, str] = field(default_factory=dict)
    """What is not fetched yet, by hub id: of a dry run alone."""

    @cached_property
    def jobs(self) -> dict[str, int]:
        """By id, how many jobs are missing."""
        counted = {}
        for name, found in self.found.items():
            if not found.done:
                node = self.graph.nodes[name]
                side = slots(node.stage, node.resources, self.profile)
                counted[name] = -(-len(elements(node, found.missing or None)) // side)
        return counted


def run_folder(name: str, label: str, profile: Profile, runs: Path | None) -> RunDir:
    """`runs/NAME`, absolute; `label` is what errors name.

    Raises:
        ConfigError: this cannot be the name of an experiment.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise ConfigError(
            f"{label}: its name becomes the name of the run folder and of jobs: small letters, digits, '.', '_', '-', "
            "and a letter or digit first; rename it"
        )
    return RunDir(local_path(str(runs or profile.runs or "runs")) / name)


def make_plan(
    request: Request, profile: Profile, root: RunDir, out: Path, display: Display, *, dry_run: bool = False
) -> Plan:
    """Resolve the inputs, build the graph, and look what of it is there. Writes nothing but the cache of hashes."""
    lenient = dry_run and request.may_lack_inputs
    resolver = LenientResolver(request.label) if lenient else Resolver(request.label)
    resolver.hashes.announced = display.say
    graph = request.build(resolver, root, profile)
    history = Ledger(root).read()
    found = {name: check_artefact(node) for name, node in graph.nodes.items() if node.stage != REPORT}
    for node in graph.of("evaluate"):
        trained = all(found[name].done for name in node.depends if graph.nodes[name].stage == "train")
        if found[node.id].done and not trained:
            # its workers compute again what is of other weights than those that come out this time
            found[node.id] = Completeness(False, tuple(node.expected), note="its training is made again")
    found[REPORT] = Completeness(_is_reported(graph, found, history, out))
    absent = absent_benchmarks(graph) | resolver.absent if isinstance(resolver, LenientResolver) else {}
    return Plan(request, profile, graph, found, out, history, absent)


def check_places(runs: Path, out: Path) -> None:
    """Raise ConfigError where a file stands in the place of a folder that is to be made."""
    for what, folder in (("the run folder", runs), ("the folder of the tables", out)):
        there = next(place for place in (folder, *folder.parents) if place.exists())
        if not there.is_dir():
            flag = "--runs" if folder == runs else "--out"
            raise ConfigError(f"{flag}: {what} would be {folder}, and {there} is a file; name another folder")


def _is_reported(graph: Graph, found: dict[str, Completeness], history: History, out: Path) -> bool:
    """The last report was of exactly what is there now, and its folder still is."""
    if not all(entry.done for entry in found.values()) or not out.is_dir():
        return False
    reported = history.reported
    return (reported.get("of"), reported.get("out")) == (fingerprint(graph), str(out))


def fingerprint(graph: Graph) -> str:
    """Of everything that a report of this graph reads: which evaluations, finished when."""
    return report_fingerprint(graph.root, [node.run for node in graph.of("evaluate")])


def write_down(plan: Plan, *, ready: bool = True) -> Ledger:
    """The experiment, the graph for `status`, and, if `ready`, a folder made ready for each artefact to be made."""
    root = plan.graph.root
    records.write_text(root.experiment_toml, plan.request.text)
    root.jobs.mkdir(mode=0o700, exist_ok=True)
    root.jobs.chmod(0o700)
    ledger = Ledger(root)
    listed: list[GraphNode] = [
        {"stage": node.stage, "run": node.run, "depends": list(node.depends)} for node in plan.graph.nodes.values()
    ]
    sweep = str(Path(plan.request.label).absolute())
    ledger.graph(listed, sweep=sweep, out=str(plan.out), executor=plan.profile.executor)
    for name, found in plan.found.items():
        if ready and not found.done and name != REPORT:
            write_stage_files(plan.graph.nodes[name])
    return ledger
