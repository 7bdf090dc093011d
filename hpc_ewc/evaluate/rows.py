"""Functions that task files name (`!function hpc_ewc.evaluate.rows.<name>`), users' task files too: do not rename."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from hpc_ewc.errors import InputError


def local_rows(files: Mapping[str, str], **_: Any) -> datasets.DatasetDict:
    """Return the rows of JSON-lines files by split, in memory.

    `load_dataset("json")` writes an Arrow cache for each of MMLU's subjects, which takes longer than the questions
    themselves, and two array elements would write to the same one.

    Args:
        files: path by split.
    """
    rows = {split: read_rows(Path(path)) for split, path in files.items()}
    return datasets.DatasetDict({split: datasets.Dataset.from_list(each) for split, each in rows.items()})


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file. Only a line feed ends a line: a text may contain U+2028.

    Raises:
        InputError: the file does not exist, has no rows, or has a line that is not a JSON object.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: rows cannot be read: {error}") from None
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise InputError(f"{path}:{number}: not a JSON line: {line[:80]!r}") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}:{number}: not an object: {line[:80]!r}")
        rows.append(row)
    if not rows:
        raise InputError(f"{path}: contains no rows; a task needs at least one")
    return rows


# ---------------------------------------------------------------------------------------------- fluency


def heldout_rows(files: Mapping[str, str], **_: Any) -> datasets.DatasetDict:
    """Return the column `text` of JSON-lines files by split, without empty documents, which have no perplexity."""
    texts = {split: _texts(Path(path)) for split, path in files.items()}
    return datasets.DatasetDict({split: datasets.Dataset.from_list(each) for split, each in texts.items()})


def _texts(path: Path) -> list[dict[str, str]]:
    rows = read_rows(path)
    if any(not isinstance(row.get("text"), str) for row in rows):
        raise InputError(f"{path}: held-out text needs the column 'text' in every row; found {sorted(rows[0])}")
    texts = [{"text": row["text"]} for row in rows if row["text"].strip()]
    if not texts:
        raise InputError(f"{path}: every document is empty")
    return texts


def text_of(doc: Mapping[str, Any]) -> str:
    """Return the text of a held-out document."""
    return str(doc["text"])


def question_and_answer(doc: Mapping[str, Any]) -> str:
    """Return TruthfulQA's question, a newline, and its best answer (the true one of mc1)."""
    answers = doc["mc1_targets"]
    return f"{doc['question']}\n{answers['choices'][answers['labels'].index(1)]}"


def score_text(doc: Mapping[str, Any], results: Sequence[float]) -> dict[str, tuple[float, int]]:
    """Return the log-likelihood and its divisor by metric, for lm-eval's own weighted aggregations."""
    text = text_of(doc) if "text" in doc else question_and_answer(doc)
    (loglikelihood,) = results
    words, size = count_words(text), len(text.encode())
    return {
        "word_perplexity": (loglikelihood, words),
        "byte_perplexity": (loglikelihood, size),
        "bits_per_byte": (loglikelihood, size),
    }


def length_of_answer(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Return the number of words in an answer."""
    return {"length": float(len(results[0].split()))}


def count_words(text: str) -> int:
    """Return the number of words, separated by white space."""
    return len(re.split(r"\s+", text.strip()))


# ---------------------------------------------------------------------------------------------- TruthfulQA


def score_mc2(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Return the probability of the true answers among all: Σ_true exp(ℓ) / Σ exp(ℓ).

    lm-eval's own function exponentiates unshifted log-likelihoods; below about −745 nats, as from a diverged model,
    all become 0 and the score 0/0. Shifted by the largest, the value is the same whenever lm-eval's is a number.
    """
    loglikelihoods = np.array([loglikelihood for loglikelihood, _ in results], dtype=np.float64)
    weights = np.exp(loglikelihoods - loglikelihoods.max())
    labels = np.array(doc["mc2_targets"]["labels"])
    return {"acc": float(weights[labels == 1].sum() / weights.sum())}
