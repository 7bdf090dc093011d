"""Judge a checkpoint's answers by their perplexity under another model.

This is the paper's second measure of fluency (perplexity of answers under a larger model of the language). A model
that repeats one word is perfectly predictable, so a perplexity near 1 means repetition, not fluency: the share of
repeated 4-grams (Welleck et al. 2019, seq-rep-4) and the length are reported beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance

from hpc_ewc.errors import StageError
from hpc_ewc.evaluate.checkpoint import load_model, load_tokenizer
from hpc_ewc.evaluate.fluency import Document, summarise, total_result
from hpc_ewc.evaluate.rows import count_words
from hpc_ewc.evaluate.scoring import Scorer
from hpc_ewc.schemas import Result, Sample

NGRAM = 4


class Judge:
    """A model that scores answers, given their questions.

    Args:
        folder: the model's folder; its family may differ from that of the judged model.
        dtype: compute dtype.
        device: where the model runs, beside the judged one.
        settings: `batch_size`, `max_length` and `on_batch` of its Scorer.
    """

    def __init__(self, folder: Path, *, dtype: str, device: torch.device, **settings: Any) -> None:
        tokenizer = load_tokenizer(folder)
        model = load_model(folder, dtype=dtype, attention="auto", device=device, tokenizer=tokenizer)
        self.scorer = Scorer(model, tokenizer, whole_texts=False, **settings)

    def read(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Document]:
        """Return −log p(answer | BOS, question) of each answer, with its tokens to this model, words and bytes."""
        pairs = [(prompt, f" {answer.strip()}") for prompt, answer in zip(prompts, answers, strict=True)]
        requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
        scores = self.scorer.loglikelihood(requests)
        tokens = [len(self.scorer._encode_pair(*pair)[1]) for pair in pairs]
        return [
            Document(-score, n, count_words(text), len(text.encode()))
            for (score, _), n, (_, text) in zip(scores, tokens, pairs, strict=True)
        ]


def judge_samples(judge: Judge, samples: Sequence[Sample], prompts: Sequence[str]) -> list[Result]:
    """Return the results of a judged cell; write the judge's score of each answer into its sample.

    nats_per_token      mean over the answers of −log p / tokens; checkpoints are compared by it, question by question,
                        since their answers are different texts
    perplexity, …       over all answers as one text, and per answer (fluency.py)
    repetition, length  share of repeated 4-grams, and words, of every answer
    empty               share of answers without a word; they have no perplexity, and their rows the filter `empty`

    Raises:
        StageError: every answer is empty.
    """
    answered = [i for i, sample in enumerate(samples) if sample["response"].strip()]
    if not answered:
        raise StageError(f"all {len(samples)} answers are empty: there is nothing to judge")
    documents = judge.read([prompts[i] for i in answered], [samples[i]["response"] for i in answered])
    nats_per_token = [document.nats / document.tokens for document in documents]
    for i, document, nats in zip(answered, documents, nats_per_token, strict=True):
        document.write_to(samples[i])
        samples[i]["metrics"]["nats_per_token"] = nats
    for sample in samples:
        words = sample["response"].split()
        if not words:
            sample["filter"] = "empty"
        sample["metrics"] |= {"empty": float(not words), "repetition": repetition(words), "length": len(words)}
    others = [_mean(name, [float(sample["metrics"][name]) for sample in samples]) for name in OTHER_METRICS]
    return [_mean("nats_per_token", nats_per_token), *summarise(documents), *others]


OTHER_METRICS = ("repetition", "length", "empty")


def repetition(words: Sequence[str]) -> float:
    """Return the share of 4-grams in an answer that occurred before in it; 0 for an answer of fewer words."""
    grams = [tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _mean(name: str, values: Sequence[float]) -> Result:
    stderr = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
    return total_result(name, float(np.mean(values)), stderr, len(values), higher_is_better=name == "length")
