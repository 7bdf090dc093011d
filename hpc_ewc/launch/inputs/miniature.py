"""The package's own small world as an input: is it asked for, and is it there?"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from hpc_ewc import miniature
from hpc_ewc.config import Experiment
from hpc_ewc.errors import InputError
from hpc_ewc.process import die_with_parent

MINIATURE = "miniature"
"""What `model.path`, `data.source` and `fisher.source` call it."""
MINIATURE_LANGUAGES = ("en", "lt")


def miniature_id() -> str:
    """What it is: the version of its recipe."""
    return f"{MINIATURE}@{miniature.version()}"


def uses_miniature(experiment: Experiment) -> bool:
    """Whether model, corpus or questions are the package's own small world, at any point of the grid."""
    grid = experiment.grid
    values = [experiment.model.path, experiment.data.source, experiment.fisher.source]
    values += [value for key in ("model.path", "data.source", "fisher.source") for value in grid.get(key, ())]
    return MINIATURE in values


def prepare_miniature(python: str, say: Callable[[str], None]) -> None:
    """Write the miniature's files, and pretrain its base model, where they are missing. The latter imports torch.

    Raises:
        InputError: the pretraining failed; its output says why.
    """
    folder = miniature.default_folder()
    if not miniature.is_built(folder):
        say(f"miniature: writing texts and questions to {folder}")
        miniature.build(folder)
    if miniature.is_pretrained(folder):
        return
    say("miniature: pretraining its base model, once (about a minute)")
    # The package as it stands here, also where it is not installed.
    root = str(Path(miniature.__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    command = [python, "-m", "hpc_ewc.miniature", "pretrain", "--folder", str(folder)]
    done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False, preexec_fn=die_with_parent)
    if done.returncode != 0 or not miniature.is_pretrained(folder):
        raise InputError(
            f"the miniature's base model could not be made: `{' '.join(command)}` ended with {done.returncode}"
        )
