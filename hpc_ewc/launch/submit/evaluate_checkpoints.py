"""The request of `hpc-ewc evaluate CHECKPOINT…`: any checkpoints on the suites, in a run folder of their own.

A checkpoint that this project exported describes itself in its `hpc_ewc.json`: run, step, λ, base. Any other is a run
of its own, named by its folder and a key of its path. Each is an array of evaluation jobs; none waits for another.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from hpc_ewc import records, suites
from hpc_ewc.config import DataConfig, EvaluateConfig, Experiment, ModelConfig, build_section, render_toml
from hpc_ewc.errors import ConfigError
from hpc_ewc.launch.inputs.absolute_paths import with_absolute_evaluate_paths
from hpc_ewc.launch.inputs.checkpoints import CheckpointArg, find_checkpoints
from hpc_ewc.launch.inputs.resolver import Inputs, Resolver
from hpc_ewc.launch.plan.build_graph import EvaluationRequest, build_evaluation
from hpc_ewc.launch.plan.graph import Graph
from hpc_ewc.launch.plan.request import Request
from hpc_ewc.launch.profile.keys import Profile
from hpc_ewc.rundir import RunDir
from hpc_ewc.sweep import BASE_RUN

WHERE = "hpc-ewc evaluate"
MARK = "# Written by `hpc-ewc evaluate`: what its checkpoints are asked.\n"
"""First line of experiment.toml; a run folder whose file begins otherwise belongs to an experiment."""
NO_CORPUS = "none"


def build_request(
    checkpoints: Sequence[str], base: str | None, keys: Mapping[str, Any], dtype: str, root: RunDir
) -> Request:
    """Return the request that evaluates checkpoints.

    Args:
        checkpoints: folders, globs or hub ids.
        base: the model that they were trained from, which is evaluated too.
        keys: of [evaluate].
        dtype: data type of the models.
        root: the run folder.

    Raises:
        ConfigError: a key is wrong, or the run folder belongs to an experiment.
        InputError: a checkpoint is missing or damaged.
    """
    if root.experiment_toml.is_file() and not root.experiment_toml.read_text(encoding="utf-8").startswith(MARK):
        raise ConfigError(f"--name {root.name}: {root.root} is the run folder of an experiment; give another name")
    given = find_checkpoints(checkpoints)
    base_model = find_checkpoints([base])[0] if base else None
    given = [checkpoint for checkpoint in given if base_model is None or checkpoint.name != base_model.name]
    everything = [*given, *([base_model] if base_model else [])]
    experiment = _experiment(everything, keys, dtype)

    def build(resolver: Resolver, root: RunDir, profile: Profile) -> Graph:
        resolver.where = WHERE  # there is no file that errors could name
        requests = _evaluation_requests(given, base_model, experiment, resolver)
        return build_evaluation(root, requests, experiment, profile, WHERE)

    return Request(
        label=str(root.experiment_toml),
        text=MARK + render_toml(experiment),
        experiment=experiment,
        build=build,
        resume_command=shlex.join(["hpc-ewc", *sys.argv[1:]]),
    )


def _experiment(everything: Sequence[CheckpointArg], keys: Mapping[str, Any], dtype: str) -> Experiment:
    """Return an experiment without a corpus whose suites are the cells that every checkpoint gets.

    Raises:
        ConfigError: a key is wrong, or a cell of held-out text has no text.
    """
    config = with_absolute_evaluate_paths(build_section(EvaluateConfig, keys, "evaluate", WHERE), WHERE)
    texts = list(config.heldout)
    cells = suites.expand_suites(config, texts[0].partition(".")[0] if texts else suites.UNDETERMINED, heldout=texts)
    for cell in cells:
        if cell.task == "ppl_heldout" and cell.text not in texts and cell.task in "".join(config.suites):
            raise ConfigError(f"--suites {cell.task}: no text; name a file: --heldout {cell.text}=FILE.jsonl")
    cells = [cell for cell in cells if cell.task != "ppl_heldout" or cell.text in texts]
    languages = [cell.language for cell in cells if cell.language not in ("en", suites.UNDETERMINED)]
    model = build_section(ModelConfig, {"path": everything[-1].model.path, "dtype": dtype}, "model", WHERE)
    return Experiment(
        model=model,
        data=DataConfig(source=NO_CORPUS, language=(languages or ["en"])[0], heldout_documents=0),
        evaluate=dataclasses.replace(config, suites=tuple(cell.name for cell in cells)),
    )


def _evaluation_requests(
    given: Sequence[CheckpointArg], base: CheckpointArg | None, experiment: Experiment, resolver: Resolver
) -> list[EvaluationRequest]:
    """Return one request per run: exports of one training are one run, with a fraction each."""
    shared = resolver.resolve_base(base.model if base else None, experiment)
    requests = []
    if base is not None:
        requests.append(_whole_model(BASE_RUN, base, shared, experiment, None))
    exported: dict[str, list[CheckpointArg]] = {}
    for checkpoint in given:
        if checkpoint.facts is not None:
            exported.setdefault(str(checkpoint.facts["run"]), []).append(checkpoint)
            continue
        inputs = dataclasses.replace(shared, **resolver.resolve_model(checkpoint.model))
        requests.append(_whole_model(checkpoint.run, checkpoint, inputs, experiment, shared.model if base else None))
    return requests + [_exports(run, exports, shared, experiment) for run, exports in exported.items()]


def _whole_model(
    run: str, checkpoint: CheckpointArg, inputs: Inputs, experiment: Experiment, base: str | None
) -> EvaluationRequest:
    """A model that this project did not train, or the base of others."""
    return EvaluationRequest(
        run=run,
        key=records.key_of({"model": inputs.identities.model}),
        inputs=inputs,
        read={"model": inputs.model} | ({"base": base} if base else {}),
        fractions=(0.0,),
        experiment=_named_model(experiment, checkpoint),
    )


def _exports(run: str, exports: Sequence[CheckpointArg], inputs: Inputs, experiment: Experiment) -> EvaluationRequest:
    """Exports of one training, in whatever folders.

    Two trainings of the same name would mix two values of λ; their keys, which are in the names, rule that out.
    """
    folders = {repr(float(export.facts["fraction"])): export.name for export in exports if export.facts}
    facts = exports[0].facts
    assert facts is not None, "only exports come here"
    return EvaluationRequest(
        run=run,
        key=facts["train_key"],
        inputs=inputs,
        read={"exports": folders},
        fractions=tuple(sorted(map(float, folders))),
        experiment=_named_model(experiment, exports[0]),
        coordinates=dict(facts["coordinates"]),
    )


def _named_model(experiment: Experiment, checkpoint: CheckpointArg) -> Experiment:
    """The experiment with the checkpoint as its model, which the records name."""
    path, revision = checkpoint.model.path, checkpoint.model.revision
    return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, path=path, revision=revision))
