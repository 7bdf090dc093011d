"""What each cell costs as an experiment asks it, and which job gets which.

A job loads the model once, whatever its cells are: only their sum counts, and none need stay together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from hpc_ewc.config import EvaluateConfig
from hpc_ewc.errors import ConfigError
from hpc_ewc.suites.cells import Cell
from hpc_ewc.suites.tasks import JUDGED, TASKS, Task

SUBJECTS = 57
"""Of MMLU; `limit` is of each."""
TOKEN_BYTES = 4
"""Of English text a token."""
WHOLE_TEXT = 2.0
"""A token of a text that is scored whole against one of a question, of which the head computes the answer's logits
alone: 1.3 on Gemma 2 2B, 2.7 on Gemma 3 270M by their shapes."""
WRITTEN = 0.74
"""Share of GSM8K's cost that is its answers: 2,560 of 3,460 a row."""
ANSWER_TOKENS = 256
"""Of such an answer at most, by lm-eval's default."""
JUDGED_TOKENS = 128
"""Of a judged answer, of which the catalogue's cost is."""


def costed(
    cells: Sequence[Cell],
    config: EvaluateConfig,
    *,
    questions: Path | None,
    heldout: Mapping[str, Path],
    documents: int = TASKS["ppl_heldout"].rows,
) -> list[Cell]:
    """The cells with the cost of what is asked here, in millions of English tokens read.

    Rows of local files are counted, and what `evaluate.limit` leaves of them; worked examples lengthen every request.
    A task of lm-eval that is not ours costs what the others do on average: nobody has counted its rows.

    Args:
        cells: of `expand_suites`.
        config: its limit, shots and lengths of answers.
        questions: folder of local questions; None: the hub's data sets, whole.
        heldout: files of held-out text, by `Cell.text`; a text that is not there yet is the corpus' own.
        documents: of the corpus' own.
    """
    known = [
        cell
        if cell.task not in TASKS
        else dataclasses.replace(cell, cost=cell.cost * _share(cell, config, questions, heldout, documents))
        for cell in cells
    ]
    ours = [cell.cost for cell in known if cell.task in TASKS]
    if not ours:
        return known
    mean = sum(ours) / len(ours)
    return [cell if cell.task in TASKS else dataclasses.replace(cell, cost=mean) for cell in known]


def _share(
    cell: Cell, config: EvaluateConfig, questions: Path | None, heldout: Mapping[str, Path], documents: int
) -> float:
    """What a cell of ours costs here, of what its whole test set costs by the catalogue."""
    task, text = TASKS[cell.task], heldout.get(cell.text)
    if cell.task == "ppl_heldout":
        if text is None or not text.is_file():
            return _limited([documents], config.limit) / task.rows
        whole = _count_rows(text)
        read = _limited([whole], config.limit) / whole if whole else 0.0
        return WHOLE_TEXT * read * text.stat().st_size / TOKEN_BYTES / 1e6 / task.cost
    there = _rows(cell, task, config, questions) or [task.rows]
    rows = _limited(there, config.limit) / task.rows
    if task.kind == "judged":
        return rows * config.judge_tokens / JUDGED_TOKENS
    examples = (1 + (cell.shots or 0)) / (1 + task.shots)
    if task.kind != "generation":
        return rows * examples
    return rows * ((1 - WRITTEN) * examples + WRITTEN * (config.max_gen_toks or ANSWER_TOKENS) / ANSWER_TOKENS)


def _rows(cell: Cell, task: Task, config: EvaluateConfig, questions: Path | None) -> list[float]:
    """How many rows each of the files has that are scored: one a task, of MMLU one a subject. Empty: none is there."""
    asked = config.judge_questions.get(cell.language) if cell.task == JUDGED else None
    if asked is not None:
        files = [Path(asked)]
    elif questions is None:
        parts = SUBJECTS if cell.task == "mmlu" else 1
        return [task.rows / parts] * parts
    else:
        scored = questions / cell.language / task.folder / task.splits[-1]
        files = sorted(scored.glob("*.jsonl")) if cell.task == "mmlu" else [scored.with_name(f"{scored.name}.jsonl")]
    return [_count_rows(path) for path in files if path.is_file()]


def _limited(rows: Sequence[float], limit: int | None) -> float:
    return sum(rows) if limit is None else sum(min(limit, each) for each in rows)


def _count_rows(path: Path) -> int:
    """Lines of a file of rows; read in pieces, since a held-out text may be large."""
    with path.open("rb") as file:
        return sum(piece.count(b"\n") for piece in iter(lambda: file.read(1 << 20), b""))


def deal(cells: Sequence[Cell], n: int) -> list[list[Cell]]:
    """The cells in at most `n` bundles of about equal cost, for `n` array elements.

    The dearest first, each to the cheapest bundle so far: at most 4/3 − 1/(3n) of the best there is (Graham 1969),
    and never less than the dearest cell, which is not cut. No bundle is empty; the same cells give the
    same bundles.
    """
    if n < 1:
        raise ConfigError(f"resources.evaluate.elements = {n}: must be at least 1")
    bundles: list[list[Cell]] = [[] for _ in range(min(n, len(cells)))]
    for cell in sorted(cells, key=lambda cell: (-cell.cost, cell.name)):
        min(bundles, key=lambda bundle: (sum(other.cost for other in bundle), len(bundle))).append(cell)
    order = {cell.name: place for place, cell in enumerate(cells)}
    return [sorted(bundle, key=lambda cell: order[cell.name]) for bundle in bundles]
