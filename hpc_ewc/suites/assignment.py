"""Estimate the cost of each cell, and assign cells to jobs.

A job loads the model once, whatever its cells are: only the sum of their costs matters, and no cells need to stay
together.
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
"""Subjects of MMLU; `limit` applies to each."""
TOKEN_BYTES = 4
"""Bytes of English text per token."""
WHOLE_TEXT = 2.0
"""Cost of a token of a text, whose logits are all computed, relative to a token of a question, where only the answer's
logits are: 1.3 on Gemma 2 2B, 2.7 on Gemma 3 270M, by their shapes."""
WRITTEN = 0.74
"""Share of the answers in GSM8K's cost: 2,560 of 3,460 per row."""
ANSWER_TOKENS = 256
"""Most tokens of a GSM8K answer, by lm-eval's default."""
JUDGED_TOKENS = 128
"""Tokens of a judged answer that the cost in the task table assumes."""


def costed(
    cells: Sequence[Cell],
    config: EvaluateConfig,
    *,
    questions: Path | None,
    heldout: Mapping[str, Path],
    documents: int = TASKS["ppl_heldout"].rows,
) -> list[Cell]:
    """Return the cells with their cost in this experiment, in millions of English tokens read.

    Rows of local files are counted, up to `evaluate.limit`; worked examples lengthen every request. An lm-eval task
    that is not in the task table gets the average cost of the others, since its number of rows is unknown.

    Args:
        cells: from `expand_suites`.
        config: gives limit, shots and answer lengths.
        questions: folder of local questions; None: the complete data sets of the hub.
        heldout: files of held-out text, by `Cell.text`; a missing file is the held-out text of the corpus.
        documents: number of held-out documents of the corpus.
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
    """Return the cost of a cell here, as a share of the cost of its whole test set in the task table."""
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
    """Return the number of rows of each scored file: one per task, for MMLU one per subject. Empty: no such file."""
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
    """Return the number of lines of a file; read in pieces, since a held-out text may be large."""
    with path.open("rb") as file:
        return sum(piece.count(b"\n") for piece in iter(lambda: file.read(1 << 20), b""))


def assign(cells: Sequence[Cell], n: int) -> list[list[Cell]]:
    """Return the cells in at most `n` bundles of about equal cost, one for each array element.

    Longest processing time first: the most expensive cell goes to the cheapest bundle so far, which is at most
    4/3 − 1/(3n) of the optimum (Graham 1969); a cell is never split. No bundle is empty; equal cells give equal
    bundles.
    """
    if n < 1:
        raise ConfigError(f"resources.evaluate.elements = {n}: must be at least 1")
    bundles: list[list[Cell]] = [[] for _ in range(min(n, len(cells)))]
    for cell in sorted(cells, key=lambda cell: (-cell.cost, cell.name)):
        min(bundles, key=lambda bundle: (sum(other.cost for other in bundle), len(bundle))).append(cell)
    order = {cell.name: place for place, cell in enumerate(cells)}
    return [sorted(bundle, key=lambda cell: order[cell.name]) for bundle in bundles]
