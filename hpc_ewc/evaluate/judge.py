"""Another model reads the answers that a checkpoint gives, and says how likely it finds them.

The paper's second measure of fluency (perplexity of answers under a larger model of the language). A model that says
one word for ever is perfectly predictable: a perplexity near 1 is repetition, not fluency, so the share of repeated
4-grams (Welleck et al. 2019, seq-rep-4) and the length stand beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance

from hpc_ewc.errors import StageError
from hpc_ewc.evaluate.checkpoint import load_model, load_tokenizer
from hpc_ewc.evaluate.fluency import Document, summarise
from hpc_ewc.evaluate.rows import count_words
from hpc_ewc.evaluate.scoring import Scorer

NGRAM = 4


class Judge:
    """A model that scores answers after their questions.

    Args:
        folder: of the model; it may be of another family than the one that is judged.
        dtype: of its compute.
        device: where it runs, beside the model that is judged.
        batch_size: answers at once.
        max_length: tokens of question and answer.
        on_batch: called before each batch; may raise StopRequested.
    """

    def __init__(
        self,
        folder: Path,
        *,
        dtype: str,
        device: torch.device,
        batch_size: int,
        max_length: int,
        on_batch: Callable[[int], None],
    ) -> None:
        tokenizer = load_tokenizer(folder)
        model = load_model(folder, dtype=dtype, attention="auto", device=device, tokenizer=tokenizer)
        self.scorer = Scorer(
            model, tokenizer, batch_size=batch_size, max_length=max_length, whole_texts=False, on_batch=on_batch
        )

    def read(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Document]:
        """−log p(answer | BOS, question) of each, with its tokens to this model, its words and bytes."""
        pairs = [(prompt, f" {answer.strip()}") for prompt, answer in zip(prompts, answers, strict=True)]
        requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
        scores = self.scorer.loglikelihood(requests)
        tokens = [len(self.scorer._encode_pair(*pair)[1]) for pair in pairs]
        return [
            Document(-score, n, count_words(text), len(text.encode()))
            for (score, _), n, (_, text) in zip(scores, tokens, pairs, strict=True)
        ]


def judge_samples(judge: Judge, samples: Sequence[dict[str, Any]], prompts: Sequence[str]) -> list[dict[str, Any]]:
    """Results of a cell from its answers; each sample gets what the judge says of it.

    nats_per_token      mean over the answers of −log p / tokens: what two checkpoints are compared by, question by
                        question, since their answers are different texts
    perplexity, …       of all answers as one text, and of each (fluency.py)
    repetition, length  share of repeated 4-grams, and words, of every answer
    empty               share of answers without a word; they have no perplexity, and their rows another filter

    Raises:
        StageError: every answer is empty.
    """
    said = [i for i, sample in enumerate(samples) if sample["response"].strip()]
    if not said:
        raise StageError(f"all {len(samples)} answers are empty: the model says nothing; there is nothing to judge")
    documents = judge.read([prompts[i] for i in said], [samples[i]["response"] for i in said])
    for i, document in zip(said, documents, strict=True):
        samples[i]["loglikelihoods"] = [-document.nats]
        samples[i] |= {"tokens": document.tokens, "words": document.words, "bytes": document.bytes}
        samples[i]["metrics"] |= {"perplexity": document.perplexity, "bits_per_byte": document.bits_per_byte}
        samples[i]["metrics"]["nats_per_token"] = document.nats / document.tokens
    for i, sample in enumerate(samples):
        sample["filter"] = sample["filter"] if i in set(said) else "empty"
        words = sample["response"].split()
        sample["metrics"] |= {"empty": float(i not in set(said)), "repetition": repetition(words), "length": len(words)}
    beside = [_mean(name, [float(sample["metrics"][name]) for sample in samples]) for name in BESIDE]
    each = _mean("nats_per_token", [document.nats / document.tokens for document in documents])
    return [each, *summarise(documents), *beside]


BESIDE = ("repetition", "length", "empty")


def repetition(words: Sequence[str]) -> float:
    """Share of the 4-grams of words that were there before, in one answer; 0 where it is shorter."""
    grams = [tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _mean(name: str, values: Sequence[float]) -> dict[str, Any]:
    stderr = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
    facts = {"metric": name, "filter": "none", "subset": "", "value": float(np.mean(values)), "stderr": stderr}
    return facts | {"n": len(values), "higher_is_better": name == "length"}
