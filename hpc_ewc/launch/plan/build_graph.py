"""From the points of a grid to the graph of stages, in which runs share equal stages. No input or output.

tokens, fisher → one train per run → one evaluate per run, and one for the base model → report. A training whose λ is 0
does not wait for the Fisher; a failed training only costs its own evaluation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc_ewc import records, suites
from hpc_ewc.artefacts.artefact import REPORT
from hpc_ewc.config import Experiment
from hpc_ewc.errors import ConfigError
from hpc_ewc.launch.inputs.absolute_paths import with_absolute_paths
from hpc_ewc.launch.inputs.resolver import Inputs
from hpc_ewc.launch.plan.graph import Graph, Node
from hpc_ewc.launch.profile.keys import Profile
from hpc_ewc.launch.profile.resources import JobResources, job_resources
from hpc_ewc.rundir import RunDir, StageDir
from hpc_ewc.suites import Cell
from hpc_ewc.sweep import BASE_RUN, Point, fisher_key, run_name, tokens_key, train_key

BASE_FRACTION = 0.0
"""Fraction of a whole model in `<fraction>:<cell>`; the fractions of exports are above 0."""
STAGE_ORDER = ("tokens", "fisher", "train", "evaluate", REPORT)


@dataclass(frozen=True)
class EvaluationRequest:
    """The evaluation of one run: of exports of a training, or of a whole model."""

    run: str
    key: str
    inputs: Inputs
    read: dict[str, Any]
    """`inputs` of its stage.json, without questions, held-out text and judge."""
    fractions: tuple[float, ...]
    experiment: Experiment
    coordinates: dict[str, Any] = field(default_factory=dict)
    depends: tuple[str, ...] = ()


def build_graph(
    root: RunDir, points: Sequence[tuple[Point, Inputs]], experiment: Experiment, profile: Profile, where: str
) -> Graph:
    """Return the graph of an experiment.

    Args:
        root: the run folder.
        points: points of the grid with their inputs.
        experiment: the experiment as written in the file; its resources, suites and `base` hold for every point.
        profile: its resources override the experiment's.
        where: the file that errors name.

    Raises:
        ConfigError: two points of the grid are one run; a suite is unknown; a cell has no text; ranks that do not fit.
    """
    resources = {stage: job_resources(stage, experiment, profile) for stage in STAGE_ORDER}
    _check_ranks(resources, experiment, where)
    builder = GraphBuilder(root, resources, where)
    for point, inputs in points:
        absolute = with_absolute_paths(point.experiment, where)
        builder.add_run(dataclasses.replace(point, experiment=absolute), inputs)
    if experiment.evaluate.base:
        builder.add_bases()
    return builder.build(experiment)


def build_evaluation(
    root: RunDir, requests: Sequence[EvaluationRequest], experiment: Experiment, profile: Profile, where: str
) -> Graph:
    """Return the graph that evaluates given checkpoints: only the report waits for other stages.

    Args:
        root: the run folder.
        requests: the checkpoints, by run.
        experiment: its suites and resources hold for every checkpoint.
        profile: its resources override the experiment's.
        where: the source that errors name.
    """
    resources = {stage: job_resources(stage, experiment, profile) for stage in ("evaluate", REPORT)}
    builder = GraphBuilder(root, resources, where)
    for request in requests:
        builder.add_evaluate(request)
    return builder.build(experiment)


class GraphBuilder:
    """Collects the nodes of a graph; a node that several runs need is added once."""

    def __init__(self, root: RunDir, resources: dict[str, JobResources], where: str) -> None:
        self.root, self.resources, self.where = root, resources, where
        self.nodes: dict[str, Node] = {}
        self.bases: dict[tuple[str, str], tuple[Experiment, Inputs]] = {}
        self.settings_keys: dict[tuple[Any, ...], str] = {}
        self.cells: dict[tuple[Any, ...], tuple[Cell, ...]] = {}

    def build(self, experiment: Experiment) -> Graph:
        """Return the graph of all nodes in the order of stages, with the report last."""
        evaluations = tuple(name for name, node in self.nodes.items() if node.stage == "evaluate")
        folder = StageDir(self.root.root)
        self._add(Node(REPORT, "", "", folder, experiment, resources=self.resources[REPORT], depends=evaluations))
        ordered = sorted(
            self.nodes.values(), key=lambda node: (STAGE_ORDER.index(node.stage), not node.run.startswith(BASE_RUN))
        )
        return Graph(self.root, {node.id: node for node in ordered})

    def add_run(self, point: Point, inputs: Inputs) -> None:
        """Add the training and evaluation of one point of the grid, and the tokens and Fisher that they read."""
        experiment = point.experiment
        files = {"model": inputs.model, "files": list(inputs.corpus)}
        tokens = self._add_shared("tokens", tokens_key(experiment, inputs.identities), experiment, files)
        key = train_key(experiment, inputs.identities)
        run = run_name(point.coordinates, key)
        read = {"model": inputs.model, "tokens": str(tokens.folder.path)}
        depends = [tokens.id]
        if experiment.ewc.strength > 0:
            questions = {"model": inputs.model, "questions": list(inputs.fisher)}
            fisher = self._add_shared("fisher", fisher_key(experiment, inputs.identities), experiment, questions)
            read["fisher"] = str(fisher.folder.path)
            depends.append(fisher.id)
        if f"train/{run}" in self.nodes:
            raise ConfigError(f"{self.where}: the grid gives run {run} twice: {point.coordinates}; take one out")
        train = self._add(
            Node(
                stage="train",
                run=run,
                key=key,
                folder=self.root.train(run),
                experiment=experiment,
                resources=self.resources["train"],
                inputs=read,
                coordinates=point.coordinates,
                depends=tuple(depends),
            )
        )
        self.add_evaluate(
            EvaluationRequest(
                run=run,
                key=key,
                inputs=inputs,
                read={"train": str(train.folder.path), "tokens": read["tokens"]},
                fractions=chosen_exports(experiment),
                experiment=experiment,
                coordinates=point.coordinates,
                depends=(train.id,),
            )
        )
        self.bases.setdefault((inputs.model, tokens.id), (experiment, inputs))

    def add_bases(self) -> None:
        """Add the evaluation of the untrained model; several where the grid has several models or held-out texts."""
        for (_, tokens), (experiment, inputs) in self.bases.items():
            model = inputs.identities.model
            needs_heldout = experiment.data.language not in inputs.heldout
            self.add_evaluate(
                EvaluationRequest(
                    run=BASE_RUN if len(self.bases) == 1 else f"{BASE_RUN}-{records.key_of([model, tokens])}",
                    key=records.key_of({"model": model}),
                    inputs=inputs,
                    read={"model": inputs.model, "tokens": str(self.nodes[tokens].folder.path)},
                    fractions=(BASE_FRACTION,),
                    experiment=experiment,
                    depends=(tokens,) if needs_heldout else (),
                )
            )

    def add_evaluate(self, request: EvaluationRequest) -> None:
        """Add the evaluation of one run."""
        inputs, experiment = request.inputs, request.experiment
        further = {"questions": inputs.questions, "heldout": inputs.heldout or None, "judge": inputs.judge}
        cells = self._cells(experiment, inputs)
        self._add(
            Node(
                stage="evaluate",
                run=request.run,
                key=request.key,
                folder=self.root.evaluate(request.run),
                experiment=experiment,
                resources=self.resources["evaluate"],
                inputs=request.read | {name: value for name, value in further.items() if value is not None},
                coordinates=request.coordinates,
                depends=request.depends,
                cells=cells,
                fractions=request.fractions,
                settings=self._settings_key(request, cells),
            )
        )

    def _add(self, node: Node) -> Node:
        return self.nodes.setdefault(node.id, node)

    def _add_shared(self, stage: str, key: str, experiment: Experiment, read: dict[str, Any]) -> Node:
        """Add tokens or Fisher, which all runs with the same key share."""
        folder = self.root.stage(stage, key)
        return self._add(Node(stage, key, key, folder, experiment, read, resources=self.resources[stage]))

    def _cells(self, experiment: Experiment, inputs: Inputs) -> tuple[Cell, ...]:
        """Return the cells of an evaluation with their costs.

        Raises:
            ConfigError: a suite is unknown, or a cell has no text or no rows.
        """
        language, config = experiment.data.language, experiment.evaluate
        documents = experiment.data.heldout_documents
        known = (language, inputs.questions, *inputs.heldout.items(), documents)
        if known not in self.cells:
            try:
                cells = suites.expand_suites(config, language, heldout=inputs.heldout)
            except ConfigError as error:
                raise ConfigError(f"{self.where}: {error}") from None
            questions = None if inputs.questions is None else Path(inputs.questions)
            heldout = {text: Path(path) for text, path in inputs.heldout.items()}
            self.cells[known] = tuple(
                suites.costed(cells, config, questions=questions, heldout=heldout, documents=documents)
            )
        textless = documents == 0 and language not in inputs.heldout
        if textless and any(cell.name == f"ppl_heldout.{language}" for cell in self.cells[known]):
            raise ConfigError(
                f"{self.where}: ppl_heldout.{language} has no text: data.heldout_documents = 0; raise it, or name a "
                f"file in evaluate.heldout.{language}"
            )
        if config.questions is not None:
            self._check_rows(Path(config.questions), self.cells[known])
        return self.cells[known]

    def _check_rows(self, folder: Path, cells: Sequence[Cell]) -> None:
        """Raise ConfigError if the user's folder has no rows for one of the benchmarks."""
        for cell in cells:
            rows = folder / cell.language / suites.TASKS[cell.task].folder if cell.task in suites.TASKS else None
            if rows is not None and cell.task != "ppl_heldout" and not any(rows.rglob("*.jsonl")):
                raise ConfigError(
                    f"{self.where}: {cell.name}: no rows in {rows}; put them there, or name the cells that have "
                    "some in evaluate.suites"
                )

    def _settings_key(self, request: EvaluationRequest, cells: Sequence[Cell]) -> str:
        """Return a key of everything but the checkpoint that changes a score of these cells."""
        inputs, fractions, config = request.inputs, request.fractions, request.experiment.evaluate
        tokens, dtype = request.read.get("tokens", ""), request.experiment.model.dtype
        known = (inputs.model, tokens, dtype, fractions)
        if known not in self.settings_keys:
            texts = {request.experiment.data.language: tokens} | inputs.heldout_ids
            keys = []
            for cell in cells:
                if cell.task == "ppl_heldout":
                    data = texts[cell.text]
                elif inputs.questions is not None and cell.task in suites.TASKS:
                    data = inputs.question_id + (repr(inputs.judge) if cell.task == suites.JUDGED else "")
                else:
                    data = suites.data_hash(
                        cell, questions=None, heldout=None, include=config.include, judge=inputs.judge
                    )
                keys += [
                    suites.cell_key(cell, checkpoint="", fraction=fraction, data=data, config=config, dtype=dtype)
                    for fraction in fractions
                ]
            self.settings_keys[known] = records.key_of(keys)
        return self.settings_keys[known]


def chosen_exports(experiment: Experiment) -> tuple[float, ...]:
    """Return the fractions of a training that are evaluated; the last one always is."""
    exports, chosen = experiment.train.export_at, experiment.evaluate.checkpoints
    if chosen in ("final", "all"):
        return exports if chosen == "all" else exports[-1:]
    k = int(chosen.removeprefix("every "))
    return tuple(dict.fromkeys([*exports[k - 1 :: k], exports[-1]]))


def _check_ranks(resources: Mapping[str, JobResources], experiment: Experiment, where: str) -> None:
    """Refuse before the jobs wait for GPUs: two ranks on one GPU, or replicas that do not divide the ranks."""
    for stage in ("fisher", "train"):
        job = resources[stage]
        if job.nproc_per_node > job.gpus_per_node > 0:
            raise ConfigError(
                f"{where}: resources.{stage}, with the profile's: nproc_per_node = {job.nproc_per_node}, "
                f"gpus_per_node = {job.gpus_per_node}: a GPU takes one rank; leave nproc_per_node out"
            )
    ranks, replicas = resources["train"].nodes * resources["train"].nproc_per_node, experiment.train.dp_replicate
    if ranks % replicas:
        raise ConfigError(
            f"{where}: train.dp_replicate = {replicas}: does not divide the {ranks} ranks of a training "
            "(resources.train: nodes × nproc_per_node)"
        )
