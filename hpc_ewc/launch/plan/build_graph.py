"""From the points of a grid to the stages that make an experiment, each once however many runs share it. Pure.

tokens, fisher → one train a run → one evaluate a run, and one for the base model → report. A training whose λ is 0
does not wait for the Fisher; a failed training costs its own evaluation alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_ewc import records, suites
from hpc_ewc.artefacts.artefact import REPORT
from hpc_ewc.config import EvaluateConfig, Experiment
from hpc_ewc.errors import ConfigError
from hpc_ewc.launch.inputs.miniature import MINIATURE
from hpc_ewc.launch.inputs.resolver import Inputs
from hpc_ewc.launch.inputs.source_files import local_path
from hpc_ewc.launch.plan.graph import Graph, Node
from hpc_ewc.launch.profile.keys import Profile
from hpc_ewc.launch.profile.resources import JobResources, job_resources
from hpc_ewc.rundir import RunDir, StageDir
from hpc_ewc.suites import Cell
from hpc_ewc.sweep import BASE_RUN, Point, fisher_key, run_name, tokens_key, train_key

BASE_FRACTION = 0.0
"""Of a model that is evaluated as it is, in `<fraction>:<cell>`."""


def build_graph(
    root: RunDir, points: Sequence[tuple[Point, Inputs]], experiment: Experiment, profile: Profile, where: str
) -> Graph:
    """The graph of an experiment.

    Args:
        root: the run folder.
        points: of the grid, each with its inputs.
        experiment: as it stands in the file; its resources, suites and `base` are those of every point.
        profile: its resources come before the experiment's.
        where: the file that errors name.

    Raises:
        ConfigError: two points of the grid are one run; a suite is unknown; a cell has no text; ranks that do not fit.
    """
    resources = {stage: job_resources(stage, experiment, profile) for stage in ("tokens", "fisher", "train")}
    resources |= {stage: job_resources(stage, experiment, profile) for stage in ("evaluate", REPORT)}
    _check_ranks(resources, experiment, where)
    builder = _Builder(root, resources, where)
    for point, inputs in points:
        experiment_there = with_absolute_paths(point.experiment, where)
        builder.add_run(dataclasses.replace(point, experiment=experiment_there), inputs)
    if experiment.evaluate.base:
        builder.add_bases()
    return Graph(root, builder.finish(experiment))


@dataclass(frozen=True)
class EvaluationRequest:
    """Checkpoints of one run that are evaluated though this experiment did not train them."""

    run: str
    key: str
    inputs: Inputs
    read: dict[str, Any]
    """`inputs` of its stage.json, questions and held-out text aside."""
    fractions: tuple[float, ...]
    experiment: Experiment
    coordinates: dict[str, Any]


def build_evaluation(
    root: RunDir, asked: Sequence[EvaluationRequest], experiment: Experiment, profile: Profile, where: str
) -> Graph:
    """The graph that evaluates given checkpoints: no stage waits for another, but the report.

    Args:
        root: the run folder.
        asked: the checkpoints, by run.
        experiment: whose suites and resources are those of all.
        profile: its resources come before the experiment's.
        where: what errors name.
    """
    resources = {stage: job_resources(stage, experiment, profile) for stage in ("evaluate", REPORT)}
    builder = _Builder(root, resources, where)
    for entry in asked:
        builder.add_evaluate(
            entry.run,
            entry.key,
            entry.inputs,
            dict(entry.read),
            (),
            entry.fractions,
            entry.experiment,
            entry.coordinates,
        )
    return Graph(root, builder.finish(experiment))


class _Builder:
    def __init__(self, root: RunDir, resources: dict[str, JobResources], where: str) -> None:
        self.root, self.resources, self.where = root, resources, where
        self.nodes: dict[str, Node] = {}
        self.bases: dict[tuple[str, str], tuple[Experiment, Inputs, str]] = {}
        self.settings: dict[tuple[Any, ...], str] = {}
        self.cells: dict[tuple[Any, ...], tuple[Cell, ...]] = {}

    def add(self, node: Node) -> str:
        self.nodes.setdefault(node.id, node)
        return node.id

    def add_run(self, point: Point, inputs: Inputs) -> None:
        """One point of the grid: its training and evaluation, and what these read, unless it is there."""
        experiment = point.experiment
        tokens = self.add_tokens(experiment, inputs)
        key = train_key(experiment, inputs.identities)
        run = run_name(point.coordinates, key)
        read = {"model": inputs.model, "tokens": str(self.nodes[tokens].folder.path)}
        depends = [tokens]
        if experiment.ewc.strength > 0:
            fisher = self.add_fisher(experiment, inputs)
            read["fisher"] = str(self.nodes[fisher].folder.path)
            depends.append(fisher)
        if f"train/{run}" in self.nodes:
            raise ConfigError(f"{self.where}: the grid gives run {run} twice: {point.coordinates}; take one out")
        folder = self.root.train(run)
        common: dict[str, Any] = {"experiment": experiment, "coordinates": point.coordinates}
        train = self.add(
            Node(
                "train",
                run,
                key,
                folder,
                resources=self.resources["train"],
                inputs=read,
                depends=tuple(depends),
                **common,
            )
        )
        fractions = chosen_exports(experiment)
        read = {"train": str(folder.path), "tokens": read["tokens"]}
        self.add_evaluate(run, key, inputs, read, (train,), fractions, **common)
        self.bases.setdefault((inputs.model, tokens), (experiment, inputs, tokens))

    def add_tokens(self, experiment: Experiment, inputs: Inputs) -> str:
        key = tokens_key(experiment, inputs.identities)
        read = {"model": inputs.model, "files": list(inputs.corpus)}
        folder = self.root.tokens(key)
        return self.add(Node("tokens", key, key, folder, experiment, read, resources=self.resources["tokens"]))

    def add_fisher(self, experiment: Experiment, inputs: Inputs) -> str:
        key = fisher_key(experiment, inputs.identities)
        read = {"model": inputs.model, "questions": list(inputs.fisher)}
        folder = self.root.fisher(key)
        return self.add(Node("fisher", key, key, folder, experiment, read, resources=self.resources["fisher"]))

    def add_bases(self) -> None:
        """The untrained model as a run of its own; several where the grid has several models or held-out texts."""
        for (_, tokens), (experiment, inputs, _) in self.bases.items():
            model = inputs.identities.model
            name = BASE_RUN if len(self.bases) == 1 else f"{BASE_RUN}-{records.key_of([model, tokens])}"
            read = {"model": inputs.model, "tokens": str(self.nodes[tokens].folder.path)}
            own_text = experiment.data.language not in inputs.heldout
            depends = (tokens,) if own_text else ()
            key = records.key_of({"model": model})
            self.add_evaluate(name, key, inputs, read, depends, (BASE_FRACTION,), experiment=experiment, coordinates={})

    def add_evaluate(
        self,
        run: str,
        key: str,
        inputs: Inputs,
        read: dict[str, Any],
        depends: tuple[str, ...],
        fractions: Sequence[float],
        experiment: Experiment,
        coordinates: dict[str, Any],
    ) -> None:
        cells = self.cells_of(experiment, inputs)
        if inputs.questions is not None:
            read["questions"] = inputs.questions
        if inputs.heldout:
            read["heldout"] = inputs.heldout
        if inputs.judge is not None:
            read["judge"] = inputs.judge
        node = Node(
            stage="evaluate",
            run=run,
            key=key,
            folder=self.root.evaluate(run),
            experiment=experiment,
            resources=self.resources["evaluate"],
            inputs=read,
            coordinates=coordinates,
            depends=depends,
            cells=cells,
            fractions=tuple(fractions),
            settings=self.settings_of(experiment, inputs, read.get("tokens", ""), cells, tuple(fractions)),
        )
        self.add(node)

    def cells_of(self, experiment: Experiment, inputs: Inputs) -> tuple[Cell, ...]:
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
        textless = experiment.data.heldout_documents == 0 and language not in inputs.heldout
        if textless and any(cell.name == f"ppl_heldout.{language}" for cell in self.cells[known]):
            raise ConfigError(
                f"{self.where}: ppl_heldout.{language} has no text: data.heldout_documents = 0; raise it, or name a "
                f"file in evaluate.heldout.{language}"
            )
        if experiment.evaluate.questions is not None:
            self._check_rows(Path(experiment.evaluate.questions), self.cells[known])
        return self.cells[known]

    def _check_rows(self, folder: Path, cells: Sequence[Cell]) -> None:
        """Every benchmark that is asked has rows in the user's folder.

        Raises:
            ConfigError: one that has none.
        """
        for cell in cells:
            rows = folder / cell.language / suites.TASKS[cell.task].folder if cell.task in suites.TASKS else None
            if rows is not None and cell.task != "ppl_heldout" and not any(rows.rglob("*.jsonl")):
                raise ConfigError(
                    f"{self.where}: {cell.name}: no rows in {rows}; put them there, or name the cells that have "
                    "some in evaluate.suites"
                )

    def settings_of(
        self, experiment: Experiment, inputs: Inputs, tokens: str, cells: Sequence[Cell], fractions: tuple[float, ...]
    ) -> str:
        known = (inputs.model, tokens, experiment.model.dtype, fractions)
        if known not in self.settings:
            config, dtype = experiment.evaluate, experiment.model.dtype
            texts = {experiment.data.language: tokens} | inputs.heldout_ids
            asked = []
            for cell in cells:
                if cell.task == "ppl_heldout":
                    data = texts[cell.text]
                elif inputs.questions is not None and cell.task in suites.TASKS:
                    data = inputs.question_id + (repr(inputs.judge) if cell.task == suites.JUDGED else "")
                else:
                    data = suites.data_hash(
                        cell, questions=None, heldout=None, include=config.include, judge=inputs.judge
                    )
                asked += [
                    suites.cell_key(cell, checkpoint="", fraction=fraction, data=data, config=config, dtype=dtype)
                    for fraction in fractions
                ]
            self.settings[known] = records.key_of(asked)
        return self.settings[known]

    def finish(self, experiment: Experiment) -> dict[str, Node]:
        """All nodes in the order of stages, the report last."""
        evaluated = tuple(name for name, node in self.nodes.items() if node.stage == "evaluate")
        nothing = StageDir(self.root.root)
        self.add(Node(REPORT, "", "", nothing, experiment, resources=self.resources[REPORT], depends=evaluated))
        order = ("tokens", "fisher", "train", "evaluate", REPORT)
        base_first = sorted(self.nodes.values(), key=lambda node: not node.run.startswith(BASE_RUN))
        return {node.id: node for node in sorted(base_first, key=lambda node: order.index(node.stage))}


def chosen_exports(experiment: Experiment) -> tuple[float, ...]:
    """The fractions of a training that are evaluated; the last one always."""
    exports, asked = experiment.train.export_at, experiment.evaluate.checkpoints
    if asked in ("final", "all"):
        return exports if asked == "all" else exports[-1:]
    k = int(asked.removeprefix("every "))
    return tuple(dict.fromkeys([*exports[k - 1 :: k], exports[-1]]))


def _check_ranks(resources: Mapping[str, JobResources], experiment: Experiment, where: str) -> None:
    """What a job of many GPUs would find out only after it had waited for them.

    Raises:
        ConfigError: two ranks on one GPU; replicas that do not divide the ranks.
    """
    for stage in ("fisher", "train"):
        asked = resources[stage]
        if asked.nproc_per_node > asked.gpus_per_node > 0:
            raise ConfigError(
                f"{where}: resources.{stage}, with the profile's: nproc_per_node = {asked.nproc_per_node}, "
                f"gpus_per_node = {asked.gpus_per_node}: a GPU takes one rank; leave nproc_per_node out"
            )
    ranks, replicas = resources["train"].nodes * resources["train"].nproc_per_node, experiment.train.dp_replicate
    if ranks % replicas:
        raise ConfigError(
            f"{where}: train.dp_replicate = {replicas}: does not divide the {ranks} ranks of a training "
            "(resources.train: nodes × nproc_per_node)"
        )


def check_include(config: EvaluateConfig, where: str) -> None:
    """Raise ConfigError unless every folder of further task files is there."""
    for folder in config.include:
        if not local_path(folder).is_dir():
            raise ConfigError(f"{where}: evaluate.include = {folder!r}: no such folder")


def with_absolute_paths(experiment: Experiment, where: str) -> Experiment:
    """The experiment as jobs read it: they never depend on their working folder.

    Args:
        experiment: as it stands in the file.
        where: the file that errors name.

    Raises:
        ConfigError: a folder of `evaluate.include` that is not there.
    """
    model, data, fisher, evaluate = experiment.model, experiment.data, experiment.fisher, experiment.evaluate
    check_include(evaluate, where)
    if model.path != MINIATURE and local_path(model.path).is_dir():
        model = dataclasses.replace(model, path=str(local_path(model.path)))
    return dataclasses.replace(
        experiment,
        model=model,
        data=dataclasses.replace(data, files=_absolute(data.files)),
        fisher=dataclasses.replace(fisher, files=_absolute(fisher.files)),
        evaluate=dataclasses.replace(
            evaluate,
            include=_absolute(evaluate.include),
            heldout={language: str(local_path(path)) for language, path in evaluate.heldout.items()},
            questions=evaluate.questions and str(local_path(evaluate.questions)),
            judge_questions={name: str(local_path(path)) for name, path in evaluate.judge_questions.items()},
        ),
    )


def _absolute(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(str(local_path(name)) for name in names)
