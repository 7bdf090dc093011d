"""One array element: one checkpoint, loaded once, and a bundle of cells, each with its record."""

from __future__ import annotations

import logging
import math
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import hpc_ewc
from hpc_ewc import records, suites
from hpc_ewc.config import ModelConfig
from hpc_ewc.errors import ArtefactError, InputError, StageError
from hpc_ewc.evaluate.cell import NonFiniteError, load_tasks, score
from hpc_ewc.evaluate.checkpoint import Checkpoint, load_model, load_tokenizer
from hpc_ewc.evaluate.judge import Judge
from hpc_ewc.evaluate.scoring import Scorer, StopRequested
from hpc_ewc.evaluate.task_files import LocalQuestions, write_task_files
from hpc_ewc.stage import Stage
from hpc_ewc.suites import Cell

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """Where the rows of the cells are."""

    questions: LocalQuestions | None
    """None: the data sets of the hub, in this machine's cache."""
    heldout: dict[str, Path]
    """Files of held-out text, by `Cell.text`."""
    include: tuple[str, ...] = ()
    """The user's folders of task files."""
    judge: dict[str, Any] | None = None
    """Who judges answers, as stage.json says it."""
    max_gen_toks: int | None = None
    """Length of a generated answer; None: lm-eval's."""

    def data_hash(self, cell: Cell) -> str:
        folder = self.questions.folder if self.questions else None
        heldout = self.heldout.get(cell.text)
        return suites.data_hash(cell, questions=folder, heldout=heldout, include=self.include, judge=self.judge)


class Element:
    """Runs cells on a checkpoint and writes their records; cells whose record is current are not run.

    Args:
        stage: of the evaluated run.
        checkpoint: what is scored.
        inputs: where the rows are.
        cells: the bundle.
    """

    def __init__(self, stage: Stage, checkpoint: Checkpoint, inputs: Inputs, cells: Sequence[Cell]) -> None:
        self.stage = stage
        self.checkpoint = checkpoint
        self.inputs = inputs
        self.cells = list(cells)
        self.config = stage.config.evaluate
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model: Any = None
        self.tokenizer: Any = None
        self.scorers: dict[bool, Scorer] = {}
        self.judge: Judge | None = None
        self.done_cost = 0.0
        self.requests = 0
        self.started = time.monotonic()

    def run(self) -> list[str]:
        """Compute what is missing, cell by cell; returns the cells that failed and may succeed another time.

        Raises:
            StopRequested: the job was asked to stop; the cell it was in is dropped, those before it are kept.
            InputError: the checkpoint cannot be scored at all.
        """
        failed = []
        todo = [cell for cell in self.cells if not self.is_current(cell)]
        self._progress(None)
        for cell in todo:
            self._stop_if_asked()
            if not self._run_cell(cell):
                failed.append(cell.name)
            self.done_cost += cell.cost
            self._progress(None)
        return failed

    def is_current(self, cell: Cell) -> bool:
        """Whether a record of these settings and weights is there, whole; a damaged one is computed again."""
        path = self.stage.dir.cell(self.checkpoint.step, cell.name)
        try:
            record = records.read_checked(path, "record")
        except (FileNotFoundError, ArtefactError):
            return False
        samples = self.stage.dir.samples(self.checkpoint.step, cell.name).is_file() or record["status"] != "ok"
        same = (record["cell_key"], record["model_hash"]) == (self.cell_key(cell), self.checkpoint.model_hash)
        return samples and same and not record.get("retry", False)

    def cell_key(self, cell: Cell) -> str:
        return suites.cell_key(
            cell,
            checkpoint=self.checkpoint.identity,
            fraction=self.checkpoint.fraction,
            data=self.inputs.data_hash(cell),
            config=self.config,
            dtype=self.model_config.dtype,
        )

    @property
    def model_config(self) -> ModelConfig:
        return self.stage.config.model

    # ------------------------------------------------------------------------------------------ one cell

    def _run_cell(self, cell: Cell) -> bool:
        """Score a cell and write its record, of a failure too; False if another attempt may end otherwise."""
        scorer = self._scorer(whole_texts=cell.kind == "perplexity")
        scorer.begin()
        started = time.monotonic()
        self.cell, self.requests = cell, 0
        facts: dict[str, Any] = {"status": "ok", "error": None, "retry": False, "results": []}
        samples: list[dict[str, Any]] = []
        try:
            with tempfile.TemporaryDirectory(prefix="hpc_ewc-tasks-") as folder:
                if cell.kind != "lm-eval":
                    self._write_task_files(Path(folder), cell)
                torch.manual_seed(self.config.seed)
                tasks = load_tasks(cell, Path(folder), self.config.include, self.config.seed)
                judge_of = self._judge if cell.kind == "judged" else None
                scored = score(cell, tasks, scorer, limit=self.config.limit, judge=judge_of)
        except StopRequested:
            raise
        except Exception as error:  # one cell costs only itself: its record says why
            logger.error("%s failed: %s: %s", cell.name, type(error).__name__, error)
            final = isinstance(error, NonFiniteError)
            facts |= {"status": "failed", "error": f"{type(error).__name__}: {error}", "retry": not final}
            facts |= {"shots": cell.shots, "task_version": ""}
        else:
            facts |= {"results": scored.results, "shots": scored.shots, "task_version": scored.task_version}
            samples = scored.samples
        seconds = time.monotonic() - started
        record = self._record(cell, scorer, seconds) | facts
        if samples:  # before the record, which says that they are there
            records.write_samples(self.stage.dir.samples(self.checkpoint.step, cell.name), samples)
        records.write_json(self.stage.dir.cell(self.checkpoint.step, cell.name), record)
        return not record["retry"]

    def _write_task_files(self, folder: Path, cell: Cell) -> None:
        inputs = self.inputs
        write_task_files(
            folder,
            cell,
            questions=inputs.questions,
            heldout=inputs.heldout.get(cell.text),
            judge=inputs.judge,
            max_gen_toks=inputs.max_gen_toks,
        )

    def _record(self, cell: Cell, scorer: Any, seconds: float) -> dict[str, Any]:
        checkpoint, config = self.checkpoint, self.config
        questions = self.inputs.questions
        return {
            "schema": records.SCHEMA,
            "status": "",
            "error": None,
            "cell_key": self.cell_key(cell),
            "experiment": self.stage.dir.path.parent.parent.name,
            "run": self.stage.run,
            "step": checkpoint.step,
            "fraction": checkpoint.fraction,
            "coordinates": self.stage.coordinates,
            "model": self.model_config.path,
            "model_hash": checkpoint.model_hash,
            "base_hash": checkpoint.base_hash,
            "task": cell.task,
            "language": cell.language,
            "variant": cell.variant,
            "suite": cell.suite,
            "chance": cell.chance,
            "cloze": questions is not None and questions.cloze and cell.task in ("belebele", "mmlu"),
            "shots": cell.shots,
            "limit": config.limit,
            "seed": config.seed,
            "backend": config.backend,
            "backend_args": config.backend_args,
            "dtype": self.model_config.dtype,
            "attention": scorer.attention,
            "batch_size": scorer.smallest_batch_size,
            "max_length": scorer.max_length,
            "max_gen_toks": config.max_gen_toks if cell.kind in ("generation", "judged") else None,
            "truncated": scorer.truncated,
            "task_version": "",
            "data_hash": self.inputs.data_hash(cell),
            "results": [],
            "batch_invariance": _finite(scorer.batch_invariance),
            "seconds": round(seconds, 3),
            "job_id": self.stage.job_id,
            "gpu_hours": seconds / 3600 if self.device.type == "cuda" else 0.0,
            "versions": versions(),
        }

    # ------------------------------------------------------------------------------------------ model

    def _scorer(self, *, whole_texts: bool) -> Any:
        """The scorer of questions or of documents, around the one model."""
        if self.tokenizer is None:
            self.tokenizer = load_tokenizer(self.checkpoint.folder)
        if self.config.backend == "vllm":
            return self._engine().asked(whole_texts=whole_texts)
        if self.model is None:
            self.model = load_model(
                self.checkpoint.folder,
                dtype=self.model_config.dtype,
                attention=self.model_config.attention,
                device=self.device,
                tokenizer=self.tokenizer,
            )
        if whole_texts not in self.scorers:
            self.scorers[whole_texts] = Scorer(
                self.model,
                self.tokenizer,
                batch_size=self.config.batch_size,
                max_length=self.config.max_length,
                whole_texts=whole_texts,
                on_batch=self._on_batch,
            )
        return self.scorers[whole_texts]

    def _judge(self) -> Judge:
        """The model that reads answers, loaded once, beside the one that gave them."""
        assert self.inputs.judge is not None, "without one there is no such cell"
        if self.judge is None:
            self.judge = Judge(
                Path(self.inputs.judge["folder"]),
                dtype=self.model_config.dtype,
                device=self.device,
                batch_size=self.config.batch_size,
                max_length=self.config.max_length,
                on_batch=self._on_batch,
            )
        return self.judge

    def _engine(self) -> Any:
        """The checkpoint in vLLM, made once."""
        if self.model is None:
            if find_spec("vllm") is None:
                raise InputError(
                    "evaluate.backend = 'vllm': vllm is not installed here; pip install 'hpc-ewc[vllm]', or take 'hf'"
                )
            from lm_eval.utils import simple_parse_args_string

            from hpc_ewc.evaluate.vllm import VllmScorer

            self.model = VllmScorer(
                self.checkpoint.folder,
                dtype=self.model_config.dtype,
                tokenizer=self.tokenizer,
                batch_size=self.config.batch_size,
                max_length=self.config.max_length,
                seed=self.config.seed,
                arguments=simple_parse_args_string(self.config.backend_args),
            )
        return self.model

    # ------------------------------------------------------------------------------------------ progress

    def _on_batch(self, requests: int) -> None:
        self.requests += requests
        self._stop_if_asked()
        self._progress(self.cell)

    def _stop_if_asked(self) -> None:
        if self.stage.stop_requested():
            raise StopRequested

    def _progress(self, cell: Cell | None) -> None:
        """Cells of this element; the time left is guessed from the costs of those that were computed."""
        todo = [other for other in self.cells if not self.stage.dir.cell(self.checkpoint.step, other.name).is_file()]
        fields: dict[str, Any] = {}
        if cell is not None:
            fields = {"cell": cell.name, "requests": self.requests}
        left = sum(other.cost for other in todo)
        share = self._share_of(cell)
        done = self.done_cost + (share * cell.cost if cell is not None else 0.0)
        if done:
            left -= share * cell.cost if cell is not None and cell in todo else 0.0
            fields["eta_s"] = (time.monotonic() - self.started) / done * left
        self.stage.progress(len(self.cells) - len(todo), len(self.cells), "cell", **fields)

    def _share_of(self, cell: Cell | None) -> float:
        """How much of the cell at work is done, by its requests."""
        scorer = None if cell is None else self.scorers.get(cell.kind == "perplexity")
        expected = getattr(scorer, "expected", 0)
        return min(1.0, self.requests / expected) if expected else 0.0


def check_bundle(names: Sequence[str], cells: Sequence[Cell]) -> list[Cell]:
    """The cells of a bundle by name.

    Raises:
        StageError: a name that this experiment does not ask for.
    """
    known = {cell.name: cell for cell in cells}
    for name in names:
        if name not in known:
            raise StageError(f"--cells: '{name}' is no cell of this experiment; known: {', '.join(known)}")
    return [known[name] for name in names]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def versions() -> dict[str, str]:
    """Of what decides a score."""
    packages = ["torch", "transformers", "tokenizers", "lm_eval", "datasets"]
    packages += ["vllm"] if find_spec("vllm") is not None else []
    return {
        "hpc_ewc": hpc_ewc.__version__,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
