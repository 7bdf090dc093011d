"""`hpc-ewc evaluate CHECKPOINT…`: any checkpoints, asked what an experiment's own are asked, in a run folder of theirs.

A checkpoint that this project exported explains itself by its `hpc_ewc.json`: run, step, λ, base. Any other is a run
of its own, named by its folder and a key of its path. Each is an array of bundles of cells, none waits for another;
what is there is not asked again.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc_ewc import records, suites
from hpc_ewc.config import DataConfig, EvaluateConfig, Experiment, ModelConfig, build_section, render_toml
from hpc_ewc.errors import ConfigError
from hpc_ewc.launch.inputs.checkpoints import CheckpointArg, find_checkpoints
from hpc_ewc.launch.inputs.miniature import MINIATURE
from hpc_ewc.launch.inputs.resolver import Inputs, Resolver
from hpc_ewc.launch.inputs.source_files import local_path
from hpc_ewc.launch.plan.build_graph import EvaluationRequest, build_evaluation, check_include
from hpc_ewc.launch.plan.graph import Graph
from hpc_ewc.launch.plan.plan import Request, run_folder
from hpc_ewc.launch.profile.keys import Profile
from hpc_ewc.launch.profile.reading import load_profile
from hpc_ewc.launch.submit.submit import execute
from hpc_ewc.rundir import RunDir
from hpc_ewc.sweep import BASE_RUN

WHERE = "hpc-ewc evaluate"
MARK = "# Written by `hpc-ewc evaluate`: what its checkpoints are asked.\n"
"""First line of experiment.toml, by which the folder is known to be no experiment's."""
NO_CORPUS = "none"


@dataclass(frozen=True)
class Options:
    """What the command line says beside the checkpoints."""

    base: str | None = None
    name: str = "checkpoints"
    dtype: str = "bfloat16"
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Keys of [evaluate]."""


def evaluate(
    checkpoints: Sequence[str],
    options: Options,
    profile: Path | None,
    runs: Path | None,
    out: Path | None,
    dry_run: bool,
    yes: bool,
) -> int:
    """Evaluate checkpoints; see `hpc-ewc evaluate --help`. The exit status of the command.

    Raises:
        HpcEwcError: refused before anything started.
    """
    loaded = load_profile(profile)
    root = run_folder(options.name, f"--name {options.name}", loaded, runs)
    _check_folder(root)
    given = find_checkpoints(checkpoints)
    base = find_checkpoints([options.base])[0] if options.base else None
    given = [checkpoint for checkpoint in given if base is None or checkpoint.name != base.name]
    request = _request(given, base, options, root)
    return execute(request, loaded, root, out, dry_run, yes)


def read_settings(
    suites: str,
    shots: str | None,
    prompts: str,
    heldout: str | None,
    include: str | None,
    limit: int | None,
    batch_size: int,
    max_length: int,
    backend: str,
    judge: str | None = None,
    judge_questions: str | None = None,
    questions: Path | None = None,
    backend_args: str = "",
) -> dict[str, Any]:
    """Keys of [evaluate] from the words of a command line.

    Raises:
        ConfigError: a word that is not `name=value` where that is asked.
    """
    settings: dict[str, Any] = {"suites": _words(suites), "prompts": _words(prompts), "include": _words(include)}
    settings |= {"batch_size": batch_size, "max_length": max_length, "backend": backend}
    settings |= {"backend_args": backend_args}
    settings |= {"heldout": _pairs(heldout, "--heldout", "en=news.en.jsonl")}
    if shots is not None:
        given = _pairs(shots, "--shots", "gsm8k=5")
        wrong = [f"{task}={n}" for task, n in given.items() if not re.fullmatch("[0-9]{1,6}", n)]
        if wrong:
            raise ConfigError(f"--shots {shots}: {wrong[0]!r}: not a whole number from 0 to 100")
        settings["shots"] = {task: int(n) for task, n in given.items()}
    settings |= {"judge_questions": _pairs(judge_questions, "--judge-questions", "lt=asked.jsonl")}
    settings |= {"judge": judge} if judge is not None else {}
    settings |= {"questions": str(local_path(str(questions)))} if questions is not None else {}
    return settings | ({"limit": limit} if limit is not None else {})


def _words(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _pairs(text: str | None, flag: str, example: str) -> dict[str, str]:
    pairs = [word.partition("=") for word in _words(text)]
    for key, equals, value in pairs:
        if not (key and equals and value):
            raise ConfigError(f"{flag} {text}: {key!r} is not name=value, such as {example}")
    return {key: value for key, _, value in pairs}


def _check_folder(root: RunDir) -> None:
    if root.experiment_toml.is_file() and not root.experiment_toml.read_text(encoding="utf-8").startswith(MARK):
        raise ConfigError(f"--name {root.name}: {root.root} is the run folder of an experiment; give another name")


# ---------------------------------------------------------------------------------------------- what


def _request(given: Sequence[CheckpointArg], base: CheckpointArg | None, options: Options, root: RunDir) -> Request:
    everything = [*given, *([base] if base else [])]
    small = {checkpoint.is_miniature for checkpoint in everything}
    if len(small) > 1:
        names = ", ".join(checkpoint.name for checkpoint in everything if checkpoint.is_miniature)
        raise ConfigError(f"{names}: of the miniature, which is asked its own questions; evaluate it apart")
    experiment = _experiment(everything, options, small=small == {True})

    def build(resolver: Resolver, root: RunDir, profile: Profile) -> Graph:
        resolver.where = WHERE  # there is no file that errors could name
        asked = _asked(given, base, experiment, resolver)
        return build_evaluation(root, asked, experiment, profile, WHERE)

    again = shlex.join(["hpc-ewc", *sys.argv[1:]])
    return Request(str(root.experiment_toml), MARK + render_toml(experiment), experiment, build, again)


def _experiment(everything: Sequence[CheckpointArg], options: Options, *, small: bool) -> Experiment:
    """What every checkpoint is asked, as an experiment without a corpus; suites as the cells that they are.

    Raises:
        ConfigError: a setting that cannot be; a cell of held-out text whose text is not given.
    """
    config: EvaluateConfig = build_section(EvaluateConfig, options.settings, "evaluate", WHERE)
    check_include(config, WHERE)
    texts = [*config.heldout, *(("en", "lt") if small else ())]
    cells = suites.expand_suites(config, texts[0].partition(".")[0] if texts else suites.UNDETERMINED, heldout=texts)
    for cell in cells:
        if cell.task == "ppl_heldout" and cell.text not in texts and cell.task in "".join(config.suites):
            raise ConfigError(f"--suites {cell.task}: no text; name a file: --heldout {cell.text}=FILE.jsonl")
    cells = [cell for cell in cells if cell.task != "ppl_heldout" or cell.text in texts]
    languages = [cell.language for cell in cells if cell.language not in ("en", suites.UNDETERMINED)]
    heldout = {language: str(local_path(path)) for language, path in config.heldout.items()}
    include = tuple(str(local_path(folder)) for folder in config.include)
    asked = {language: str(local_path(path)) for language, path in config.judge_questions.items()}
    named = tuple(cell.name for cell in cells)
    model = build_section(ModelConfig, {"path": everything[-1].model.path, "dtype": options.dtype}, "model", WHERE)
    return Experiment(
        model=dataclasses.replace(model, path=MINIATURE) if small else model,
        data=DataConfig(source=NO_CORPUS, language=(languages or ["en"])[0], heldout_documents=0),
        evaluate=dataclasses.replace(config, suites=named, heldout=heldout, include=include, judge_questions=asked),
    )


def _asked(
    given: Sequence[CheckpointArg], base: CheckpointArg | None, experiment: Experiment, resolver: Resolver
) -> list[EvaluationRequest]:
    """One entry a run: exports of one training are one run, with a fraction each."""
    shared = resolver.resolve_base(base.model if base else None, experiment)
    asked = []
    if base is not None:
        asked.append(_as_it_is(BASE_RUN, base, shared, experiment, None))
    exported: dict[str, list[CheckpointArg]] = {}
    for checkpoint in given:
        if checkpoint.facts is not None:
            exported.setdefault(str(checkpoint.facts["run"]), []).append(checkpoint)
            continue
        inputs = dataclasses.replace(shared, **resolver.resolve_model(checkpoint.model))
        asked.append(_as_it_is(checkpoint.run, checkpoint, inputs, experiment, shared.model if base else None))
    return asked + [_exports(run, found, shared, experiment) for run, found in exported.items()]


def _as_it_is(
    run: str, checkpoint: CheckpointArg, inputs: Inputs, experiment: Experiment, base: str | None
) -> EvaluationRequest:
    """A model that this project did not train, or that is the base of others."""
    read = {"model": inputs.model} | ({"base": base} if base else {})
    key = records.key_of({"model": inputs.identities.model})
    return EvaluationRequest(run, key, inputs, read, (0.0,), _of(checkpoint, experiment), {})


def _exports(run: str, found: Sequence[CheckpointArg], inputs: Inputs, experiment: Experiment) -> EvaluationRequest:
    """Exports of one training, wherever they lie."""
    places = {repr(float(checkpoint.facts["fraction"])): checkpoint.name for checkpoint in found if checkpoint.facts}
    facts = found[0].facts
    assert facts is not None, "only exports come here"
    fractions = tuple(sorted(map(float, places)))
    coordinates = dict(facts["coordinates"])
    # λ of the one is not λ of the other where two trainings share a name, which their keys forbid
    return EvaluationRequest(
        run, facts["train_key"], inputs, {"exports": places}, fractions, _of(found[0], experiment), coordinates
    )


def _of(checkpoint: CheckpointArg, experiment: Experiment) -> Experiment:
    """The experiment of one checkpoint: its records say which model it was."""
    if checkpoint.is_miniature:
        return experiment
    path, revision = checkpoint.model.path, checkpoint.model.revision
    return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, path=path, revision=revision))
