"""One array element: score a bundle of cells on one checkpoint, and write a record of each cell."""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hpc_ewc import records, suites
from hpc_ewc.errors import ArtefactError, StageError
from hpc_ewc.evaluate.cell import NonFiniteError, Scored, score
from hpc_ewc.evaluate.checkpoint import Checkpoint
from hpc_ewc.evaluate.environment import versions
from hpc_ewc.evaluate.models import Models
from hpc_ewc.evaluate.scoring import StopRequested
from hpc_ewc.evaluate.task_files import LocalQuestions, write_task_files
from hpc_ewc.evaluate.task_loading import load_tasks
from hpc_ewc.schemas import Record
from hpc_ewc.stage import Stage
from hpc_ewc.suites import Cell

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """Where the rows of the cells come from."""

    questions: LocalQuestions | None
    """None: the hub's data sets, in this machine's cache."""
    heldout: dict[str, Path]
    """Files of held-out text, by `Cell.text`."""
    judge: dict[str, Any] | None = None
    """The model that judges answers, as in stage.json."""


class Element:
    """Scores cells on a checkpoint and writes their records; cells with a current record are skipped.

    Args:
        stage: the evaluated run.
        checkpoint: the model to score.
        inputs: where the rows come from.
        cells: the bundle.
    """

    def __init__(self, stage: Stage, checkpoint: Checkpoint, inputs: Inputs, cells: Sequence[Cell]) -> None:
        self.stage = stage
        self.checkpoint = checkpoint
        self.inputs = inputs
        self.cells = list(cells)
        self.config = stage.config.evaluate
        judge_folder = Path(inputs.judge["folder"]) if inputs.judge else None
        self.models = Models(checkpoint.folder, judge_folder, stage.config, self._on_batch)
        self.done_cost = 0.0
        self.started = time.monotonic()

    def run(self) -> list[str]:
        """Score the missing cells; return the names of those that failed and may succeed in another attempt.

        Raises:
            StopRequested: the job has to stop; the current cell is dropped, earlier ones are kept.
            InputError: the checkpoint cannot be scored at all.
        """
        failed = []
        todo = [cell for cell in self.cells if not self.is_current(cell)]
        self._progress()
        for cell in todo:
            self._check_stop()
            if not self._run_cell(cell):
                failed.append(cell.name)
            self.done_cost += cell.cost
            self._progress()
        return failed

    def is_current(self, cell: Cell) -> bool:
        """Return whether a cell has a complete record of these settings and weights; a damaged one does not count."""
        try:
            record = records.read_checked(self.stage.dir.cell(self.checkpoint.step, cell.name), "record")
        except (FileNotFoundError, ArtefactError):
            return False
        has_samples = self.stage.dir.samples(self.checkpoint.step, cell.name).is_file() or record["status"] != "ok"
        same = (record["cell_key"], record["model_hash"]) == (self.cell_key(cell), self.checkpoint.model_hash)
        return has_samples and same and not record.get("retry", False)

    def cell_key(self, cell: Cell) -> str:
        """Return the hash of all that decides a cell's numbers."""
        return suites.cell_key(
            cell,
            checkpoint=self.checkpoint.identity,
            fraction=self.checkpoint.fraction,
            data=self._data_hash(cell),
            config=self.config,
            dtype=self.stage.config.model.dtype,
        )

    def _data_hash(self, cell: Cell) -> str:
        return suites.data_hash(
            cell,
            questions=self.inputs.questions.folder if self.inputs.questions else None,
            heldout=self.inputs.heldout.get(cell.text),
            include=self.config.include,
            judge=self.inputs.judge,
        )

    # ------------------------------------------------------------------------------------------ one cell

    def _run_cell(self, cell: Cell) -> bool:
        """Score a cell and write its record, also if it fails; return False if another attempt may succeed."""
        self.scorer = self.models.scorer(whole_texts=cell.kind == "perplexity")
        self.cell, self.requests = cell, 0
        started = time.monotonic()
        scored, error, retry = Scored([], [], cell.shots, ""), None, False
        try:
            scored = self._score(cell)
        except StopRequested:
            raise
        except Exception as caught:  # one bad cell must not stop the others: its record gives the reason
            error, retry = f"{type(caught).__name__}: {caught}", not isinstance(caught, NonFiniteError)
            logger.error("%s failed: %s", cell.name, error)
        record = self._record(cell, scored, error, time.monotonic() - started)
        if scored.samples:  # written before the record, which promises them
            records.write_samples(self.stage.dir.samples(self.checkpoint.step, cell.name), scored.samples)
        records.write_json(self.stage.dir.cell(self.checkpoint.step, cell.name), {**record, "retry": retry})
        return not retry

    def _score(self, cell: Cell) -> Scored:
        with tempfile.TemporaryDirectory(prefix="hpc_ewc-tasks-") as name:
            folder = Path(name)
            if cell.kind != "lm-eval":
                write_task_files(
                    folder,
                    cell,
                    questions=self.inputs.questions,
                    heldout=self.inputs.heldout.get(cell.text),
                    judge=self.inputs.judge,
                    max_gen_toks=self.config.max_gen_toks,
                )
            torch.manual_seed(self.config.seed)
            tasks = load_tasks(cell, folder, self.config.include, self.config.seed)
            judge = self.models.judge if cell.kind == "judged" else None
            return score(cell, tasks, self.scorer, limit=self.config.limit, judge=judge)

    def _record(self, cell: Cell, scored: Scored, error: str | None, seconds: float) -> Record:
        checkpoint, config, model, scorer = self.checkpoint, self.config, self.stage.config.model, self.scorer
        questions, invariance = self.inputs.questions, scorer.batch_invariance
        return {
            "schema": records.SCHEMA,
            "status": "ok" if error is None else "failed",
            "error": error,
            "cell_key": self.cell_key(cell),
            "experiment": self.stage.dir.path.parent.parent.name,
            "run": self.stage.run,
            "step": checkpoint.step,
            "fraction": checkpoint.fraction,
            "coordinates": self.stage.coordinates,
            "model": model.path,
            "model_hash": checkpoint.model_hash,
            "base_hash": checkpoint.base_hash,
            "task": cell.task,
            "language": cell.language,
            "variant": cell.variant,
            "suite": cell.suite,
            "chance": cell.chance,
            "cloze": questions is not None and questions.cloze and cell.task in ("belebele", "mmlu"),
            "shots": scored.shots,
            "limit": config.limit,
            "seed": config.seed,
            "backend": config.backend,
            "backend_args": config.backend_args,
            "dtype": model.dtype,
            "attention": scorer.attention,
            "batch_size": scorer.smallest_batch_size,
            "max_length": scorer.max_length,
            "max_gen_toks": config.max_gen_toks if cell.kind in ("generation", "judged") else None,
            "truncated": scorer.truncated,
            "task_version": scored.task_version,
            "data_hash": self._data_hash(cell),
            "results": scored.results,
            "batch_invariance": invariance if invariance is not None and math.isfinite(invariance) else None,
            "seconds": round(seconds, 3),
            "job_id": self.stage.job_id,
            "gpu_hours": seconds / 3600 if self.models.device.type == "cuda" else 0.0,
            "versions": versions(),
        }

    # ------------------------------------------------------------------------------------------ progress

    def _on_batch(self, requests: int) -> None:
        self.requests += requests
        self._check_stop()
        self._progress(self.cell)

    def _check_stop(self) -> None:
        if self.stage.stop_requested():
            raise StopRequested

    def _progress(self, current: Cell | None = None) -> None:
        """Write how many cells have a record, and the time left, estimated from the costs of the cells scored here.

        Args:
            current: the cell that is being scored; its share of requests counts as done.
        """
        todo = [cell for cell in self.cells if not self.stage.dir.cell(self.checkpoint.step, cell.name).is_file()]
        left, partial_cost = sum(cell.cost for cell in todo), 0.0
        fields: dict[str, Any] = {}
        if current is not None:
            fields = {"cell": current.name, "requests": self.requests}
            expected = getattr(self.scorer, "expected", 0)
            partial_cost = min(1.0, self.requests / expected) * current.cost if expected else 0.0
            left -= partial_cost if current in todo else 0.0
        done = self.done_cost + partial_cost
        if done:
            fields["eta_s"] = (time.monotonic() - self.started) / done * left
        self.stage.progress(len(self.cells) - len(todo), len(self.cells), "cell", **fields)


def select_cells(names: Sequence[str], cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells with these names, in the order of the names.

    Raises:
        StageError: the experiment has no cell of that name.
    """
    known = {cell.name: cell for cell in cells}
    for name in names:
        if name not in known:
            raise StageError(f"--cells: this experiment has no cell '{name}'; known: {', '.join(known)}")
    return [known[name] for name in names]
