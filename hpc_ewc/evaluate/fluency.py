"""Perplexities from summed log-likelihoods, per document and over all documents, with standard errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpc_ewc.schemas import Result, Sample


@dataclass(frozen=True)
class Document:
    """The score of a document. Its first token is predicted from BOS, which is not scored itself."""

    nats: float
    """−log p(text)."""
    tokens: int
    words: int
    bytes: int

    @property
    def perplexity(self) -> float:
        """Return exp(nats / tokens), or infinity if that exceeds the largest float."""
        return _exp(self.nats / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        return self.nats / self.bytes / math.log(2)

    def write_to(self, row: Sample) -> None:
        """Write log-likelihood, sizes, perplexity and bits per byte into a document's sample row."""
        row["loglikelihoods"] = [-self.nats]
        row["tokens"], row["words"], row["bytes"] = self.tokens, self.words, self.bytes
        row["metrics"] |= {"perplexity": self.perplexity, "bits_per_byte": self.bits_per_byte}


def summarise(documents: Sequence[Document]) -> list[Result]:
    """Return the metrics over all documents.

    perplexity         exp(ΣNLL / Σtokens)
    perplexity_mean    mean over documents of exp(NLL / tokens): the paper's; heavy-tailed, dominated by few documents
    perplexity_median  median of the same
    word_perplexity, byte_perplexity   exp(ΣNLL / Σwords), exp(ΣNLL / Σbytes): independent of the tokenizer
    bits_per_byte      ΣNLL / Σbytes / ln 2
    nats               ΣNLL: on parallel text, comparable across languages

    Standard errors assume that documents are drawn at random: by linearisation for a ratio, by the delta method for
    its exponential; the median has none.
    """
    nats = np.array([document.nats for document in documents])
    tokens, words, sizes = (
        np.array([getattr(document, unit) for document in documents], dtype=float)
        for unit in ("tokens", "words", "bytes")
    )
    each = np.array([document.perplexity for document in documents])
    bits, bits_stderr = _ratio(nats, sizes)
    metrics = {
        "perplexity": _exponential(*_ratio(nats, tokens)),
        "perplexity_mean": (float(each.mean()), standard_error(each)),
        "perplexity_median": (float(np.median(each)), None),
        "word_perplexity": _exponential(*_ratio(nats, words)),
        "byte_perplexity": _exponential(bits, bits_stderr),
        "bits_per_byte": (bits / math.log(2), None if bits_stderr is None else bits_stderr / math.log(2)),
        "nats": (float(nats.sum()), None if len(nats) < 2 else float(nats.std(ddof=1) * math.sqrt(len(nats)))),
    }
    return [total_result(name, value, stderr, len(documents)) for name, (value, stderr) in metrics.items()]


def total_result(metric: str, value: float, stderr: float | None, n: int, *, higher_is_better: bool = False) -> Result:
    """Return a result over all documents of a cell."""
    return {
        "metric": metric,
        "filter": "none",
        "subset": "",
        "value": value,
        "stderr": stderr,
        "n": n,
        "higher_is_better": higher_is_better,
    }


def standard_error(values: Sequence[float] | np.ndarray) -> float | None:
    """Return s/√n, the standard error of a mean; None for fewer than two values."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> tuple[float, float | None]:
    """Return R = Σa / Σb and its standard error √(n/(n−1) Σ(a − R b)²) / Σb."""
    n, total = len(numerator), float(denominator.sum())
    ratio = float(numerator.sum()) / total
    if n < 2:
        return ratio, None
    residuals = numerator - ratio * denominator
    return ratio, math.sqrt(n / (n - 1) * float((residuals**2).sum())) / total


def _exponential(log: float, stderr: float | None) -> tuple[float, float | None]:
    value = _exp(log)
    return value, None if stderr is None else value * stderr


def _exp(log: float) -> float:
    try:
        return math.exp(log)
    except OverflowError:
        return math.inf
