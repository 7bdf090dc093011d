"""Absolute paths in an experiment, so that jobs do not depend on their working folder."""

from __future__ import annotations

import dataclasses

from hpc_ewc.config import EvaluateConfig, Experiment
from hpc_ewc.errors import ConfigError
from hpc_ewc.launch.inputs.source_files import local_path


def with_absolute_paths(experiment: Experiment, where: str) -> Experiment:
    """Return the experiment with absolute paths.

    Args:
        experiment: the experiment as written in the file.
        where: the file that errors name.

    Raises:
        ConfigError: a folder of `evaluate.include` does not exist.
    """
    model, data, fisher = experiment.model, experiment.data, experiment.fisher
    if local_path(model.path).is_dir():
        model = dataclasses.replace(model, path=_absolute(model.path))
    return dataclasses.replace(
        experiment,
        model=model,
        data=dataclasses.replace(data, files=tuple(map(_absolute, data.files))),
        fisher=dataclasses.replace(fisher, files=tuple(map(_absolute, fisher.files))),
        evaluate=with_absolute_evaluate_paths(experiment.evaluate, where),
    )


def with_absolute_evaluate_paths(config: EvaluateConfig, where: str) -> EvaluateConfig:
    """Return [evaluate] with absolute paths.

    Raises:
        ConfigError: a folder of `include` does not exist.
    """
    for folder in config.include:
        if not local_path(folder).is_dir():
            raise ConfigError(f"{where}: evaluate.include = {folder!r}: no such folder")
    return dataclasses.replace(
        config,
        include=tuple(map(_absolute, config.include)),
        heldout={language: _absolute(path) for language, path in config.heldout.items()},
        questions=config.questions and _absolute(config.questions),
        judge_questions={language: _absolute(path) for language, path in config.judge_questions.items()},
    )


def _absolute(name: str) -> str:
    return str(local_path(name))
