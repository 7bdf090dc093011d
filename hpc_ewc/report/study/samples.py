"""Scores of single documents."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_ewc import records
from hpc_ewc.errors import ArtefactError
from hpc_ewc.report.study.columns import Column, primary
from hpc_ewc.report.study.runs import Run
from hpc_ewc.report.study.study import Study

Array = NDArray[np.float64]
Key = tuple[str, int | str, str]
"""subset, doc_id and doc_hash of a document."""


@dataclass(frozen=True, eq=False)
class Documents:
    """The documents of a cell; one object for all runs that answered the same ones."""

    keys: tuple[Key, ...]
    clusters: NDArray[np.int64] | None
    """[n] codes of the passage, if several documents share one; None: each document is independent."""
    half: NDArray[np.bool_]
    """[n] True on the half on which a λ may be chosen; the other half is for reporting. Questions on one passage stay
    together; in tasks without passages so do a document and its translation of the same number."""
    guess: float | None
    """Expected score of guessing among several answers: mean of one over their number. None: nothing to choose from."""


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of one run on each document, by its primary filter."""

    documents: Documents
    values: Array
    """[n] fp64: the primary metric, or −log p of a text."""
    tokens: Array | None = None
    bytes: Array | None = None

    @property
    def is_binary(self) -> bool:
        """Every score is 0 or 1, so McNemar's test applies."""
        return bool(((self.values == 0.0) | (self.values == 1.0)).all())


class SampleReader:
    """Reads the samples of a study, keeping one `Documents` for equal ones."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.known: dict[Column, list[Documents]] = {}

    def scores(self, run: Run, column: Column) -> Scores | None:
        """The scores of one cell; None if it has no samples, or a metric without single documents (a macro f1).

        Raises:
            ArtefactError: the file cannot be read, or gives another value than the record.
        """
        record = self.study.records.get((run, column))
        if record is None or record["samples_path"] is None:
            return None
        path = Path(record["samples_path"])
        rows = [row for row in records.read_samples(path) if row.get("filter", "none") == column.filter]
        try:
            if column.kind != "perplexity" and rows and not any(column.metric in row["metrics"] for row in rows):
                return None
            scores = self._parse(column, rows)
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            what = f"{type(error).__name__}: {error}"
            raise ArtefactError(
                f"{path}: a row lacks what samples must have ({what}); remove it and its record"
            ) from None
        with np.errstate(over="ignore"):
            _check(path, scores, column, record)
        return scores

    def _parse(self, column: Column, rows: Sequence[Mapping[str, Any]]) -> Scores:
        keys = tuple(map(itemgetter("subset", "doc_id", "doc_hash"), rows))
        documents = next((d for d in self.known.get(column, ()) if d.keys == keys), None)
        if documents is None:
            documents = _documents(column, keys, rows)
            self.known.setdefault(column, []).append(documents)
        if column.kind != "perplexity":
            return Scores(documents, _floats([row["metrics"][column.metric] for row in rows]))
        nats = -_floats([row["loglikelihoods"][0] for row in rows])
        tokens, size = (_floats([row[unit] for row in rows]) for unit in ("tokens", "bytes"))
        if not ((tokens > 0) & (size > 0)).all():
            raise ValueError("a text of no tokens or bytes")
        return Scores(documents, nats, tokens, size)


def _floats(values: list[Any]) -> Array:
    """[n] fp64; numpy would take digits in a string for a number, and an integer beyond every float for an object."""
    array = np.array(values)
    if array.ndim != 1 or array.dtype.kind not in "fiub":
        raise ValueError("a value that is not a number")
    return array.astype(np.float64)


def _documents(column: Column, keys: tuple[Key, ...], rows: Sequence[Mapping[str, Any]]) -> Documents:
    if len(set(keys)) < len(keys):
        raise ValueError("a document appears twice")
    names = [row.get("cluster") or key for row, key in zip(rows, keys, strict=True)]
    codes = {name: code for code, name in enumerate(dict.fromkeys(names))}
    clusters = np.array([codes[name] for name in names], dtype=np.int64) if len(codes) < len(names) else None
    ids = [row.get("cluster") or f"{row['subset']}:{row['doc_id']}" for row in rows]
    half = np.array([hashlib.sha256(f"{column.task}:{i}".encode()).digest()[0] & 1 == 1 for i in ids], dtype=bool)
    answers = [len(row.get("loglikelihoods") or ()) for row in rows]
    guess = sum(1 / count for count in answers) / len(rows) if rows and min(answers) > 1 else None
    return Documents(keys, clusters, half, guess)


def _check(path: Path, scores: Scores, column: Column, record: Mapping[str, Any]) -> None:
    """Raise unless the samples give the value of their record."""
    result = primary(record)
    assert result is not None
    if len(scores.values) != result["n"]:
        raise ArtefactError(f"{path}: {len(scores.values)} documents, its record says {result['n']}")
    if not np.isfinite(scores.values).all():
        raise ArtefactError(f"{path}: a score that is not a finite number")
    value = _value(scores, column)
    if value is not None and not math.isclose(value, result["value"], rel_tol=1e-5, abs_tol=1e-7):
        raise ArtefactError(f"{path}: its {column.metric} is {value:.6g}, its record says {result['value']:.6g}")


def _value(scores: Scores, column: Column) -> float | None:
    if column.kind != "perplexity":
        return float(scores.values.mean())
    assert scores.tokens is not None and scores.bytes is not None
    if column.metric == "bits_per_byte":
        return float(scores.values.sum() / scores.bytes.sum() / math.log(2))
    if column.metric == "perplexity":
        return math.exp(min(700.0, float(scores.values.sum() / scores.tokens.sum())))
    return None
