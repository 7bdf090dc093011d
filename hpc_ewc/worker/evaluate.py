"""`python -m hpc_ewc.worker evaluate DIR --checkpoint FRACTION --cells A,B`: one array element of an evaluated run.

Cells whose record is current are skipped, so the command can be repeated by hand at any time. A stop between batches
drops the current cell and exits with 0; a cell that fails leaves a record with the reason, and the next one runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpc_ewc.errors import StageError
from hpc_ewc.evaluate import environment
from hpc_ewc.rundir import StageDir
from hpc_ewc.stage import Stage
from hpc_ewc.suites import costed, expand_suites


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one array element."""
    parser = argparse.ArgumentParser(prog="python -m hpc_ewc.worker evaluate", description=__doc__)
    parser.add_argument("folder", type=Path, help="runs/NAME/evaluate/RUN")
    parser.add_argument(
        "--checkpoint",
        type=float,
        required=True,
        help="fraction of the training, such as 1.0; 0.0 for a model that was not trained here",
    )
    parser.add_argument("--cells", required=True, help="names of cells, such as mmlu.en,mmlu.lt")
    arguments = parser.parse_args(argv)
    names = [name for name in arguments.cells.split(",") if name]
    if not names:
        parser.error("--cells names none; `expected` in stage.json lists the cells")
    stage = Stage(arguments.folder, element=f"{arguments.checkpoint!r}-{names[0]}", kind="evaluate")
    stage.listen()
    environment.prepare()
    with stage.attempt():
        run(stage, arguments.checkpoint, names)


def run(stage: Stage, fraction: float, names: Sequence[str]) -> None:
    """Evaluates the cells `names` of the checkpoint at `fraction`; writes done.json if they were the last."""
    from hpc_ewc.evaluate.completion import finish_if_complete, reopen_if_incomplete
    from hpc_ewc.evaluate.element import Element, select_cells
    from hpc_ewc.evaluate.scoring import StopRequested

    reopen_if_incomplete(stage)
    if stage.is_done():
        return
    inputs, config = find_inputs(stage), stage.config.evaluate
    cells = expand_suites(config, stage.config.data.language, heldout=stage.inputs.get("heldout") or {})
    questions = None if inputs.questions is None else inputs.questions.folder
    cells = costed(cells, config, questions=questions, heldout=inputs.heldout)
    element = Element(stage, find_checkpoint(stage, fraction), inputs, select_cells(names, cells))
    try:
        failed = element.run()
    except StopRequested:
        return
    finish_if_complete(stage)
    if failed:
        raise StageError(
            f"{', '.join(failed)} failed; the records in {stage.dir.cells(element.checkpoint.step)} give the reasons"
        )


def find_checkpoint(stage: Stage, fraction: float) -> Any:
    """Returns the checkpoint to evaluate: an export of this training, a given export, or a model."""
    from hpc_ewc.evaluate.checkpoint import find_export, find_model, open_export

    inputs = stage.inputs
    if "train" in inputs:
        return find_export(StageDir(Path(inputs["train"])), fraction)
    if "exports" in inputs:
        return open_export(Path(inputs["exports"][repr(fraction)]))
    base = Path(inputs["base"]) if inputs.get("base") else None
    return find_model(Path(inputs["model"]), stage.run, stage.key, base)


def find_inputs(stage: Stage) -> Any:
    """Returns the folders of questions and held-out text; the corpus' own held-out documents lie beside its tokens."""
    from hpc_ewc.evaluate.element import Inputs
    from hpc_ewc.evaluate.task_files import LocalQuestions

    inputs = stage.inputs
    heldout = {language: Path(path) for language, path in (inputs.get("heldout") or {}).items()}
    if inputs.get("tokens"):
        heldout.setdefault(stage.config.data.language, StageDir(Path(inputs["tokens"])).heldout)
    folder = inputs.get("questions")
    questions = LocalQuestions(Path(folder), bool(stage.config.evaluate.cloze)) if folder else None
    return Inputs(questions, heldout, inputs.get("judge"))
