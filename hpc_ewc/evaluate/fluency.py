"""Perplexities from summed log-likelihoods: of each document, of all, and what they are uncertain by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Document:
    """A scored document. BOS is what its first token is predicted from; it is not scored."""

    nats: float
    """−log p(text)."""
    tokens: int
    words: int
    bytes: int

    @property
    def perplexity(self) -> float:
        """exp(nats / tokens); infinite where that is beyond a float."""
        return _exp(self.nats / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        return self.nats / self.bytes / math.log(2)


def summarise(documents: Sequence[Document]) -> list[dict[str, Any]]:
    """Metrics over documents, as a record lists them, without `primary`.

    perplexity         exp(ΣNLL / Σtokens)
    perplexity_mean    mean over documents of exp(NLL / tokens): the paper's; heavy-tailed, a few documents decide it
    perplexity_median  of the same
    word_perplexity, byte_perplexity   exp(ΣNLL / Σwords), exp(ΣNLL / Σbytes): free of the tokenizer
    bits_per_byte      ΣNLL / Σbytes / ln 2
    nats               ΣNLL: on parallel text, comparable across languages

    Standard errors take documents as drawn at random; of a ratio by linearisation, of its exponential by the delta
    method; the median has none here.
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
        "perplexity_mean": (float(each.mean()), _mean_stderr(each)),
        "perplexity_median": (float(np.median(each)), None),
        "word_perplexity": _exponential(*_ratio(nats, words)),
        "byte_perplexity": _exponential(bits, bits_stderr),
        "bits_per_byte": (bits / math.log(2), None if bits_stderr is None else bits_stderr / math.log(2)),
        "nats": (float(nats.sum()), None if len(nats) < 2 else float(nats.std(ddof=1) * math.sqrt(len(nats)))),
    }
    return [
        {"metric": name, "filter": "none", "subset": "", "value": value, "stderr": stderr, "n": len(documents)}
        | {"higher_is_better": False}
        for name, (value, stderr) in metrics.items()
    ]


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> tuple[float, float | None]:
    """Σa / Σb and its standard error: √(n/(n−1) Σ(a − R b)²) / Σb."""
    n, total = len(numerator), float(denominator.sum())
    ratio = float(numerator.sum()) / total
    if n < 2:
        return ratio, None
    residuals = numerator - ratio * denominator
    return ratio, math.sqrt(n / (n - 1) * float((residuals**2).sum())) / total


def _exponential(log: float, stderr: float | None) -> tuple[float, float | None]:
    value = _exp(log)
    return value, None if stderr is None else value * stderr


def _mean_stderr(values: np.ndarray) -> float | None:
    return None if len(values) < 2 else float(values.std(ddof=1) / math.sqrt(len(values)))


def _exp(log: float) -> float:
    try:
        return math.exp(log)
    except OverflowError:
        return math.inf
