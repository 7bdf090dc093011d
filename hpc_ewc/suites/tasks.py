"""The table of tasks: data, metric, chance level and cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class HubSource:
    """A data set of the Hugging Face hub."""

    path: str
    subset: str
    """Configuration name; "" for none. Each MMLU subject is a configuration."""
    gated: bool = False
    """Downloading needs a token whose user has accepted the conditions."""
    fewshot_split: str = ""
    """Split of the worked examples, if not the core task's."""


@dataclass(frozen=True)
class Task:
    """A task, in any language.

    Attributes:
        core: lm-eval's own task file, under its `tasks/`; `{code}` stands for the FLORES code of the language.
        folder: folder of its rows under `questions/<language>/`, if questions are local files.
        splits: files of that folder, the scored one last.
        metric: primary metric, with its filter, since lm-eval reports several.
        chance: value of guessing; None if it depends on the rows (mc2) or has no meaning.
        cost: cost of the whole test set in English, in millions of tokens read; a token written counts ten times.
        rows: rows of that test set.
        shots: worked examples in each prompt that `cost` assumes.
        worded: the prompt has words around the question, so that its language can be chosen.
    """

    name: str
    core: str
    folder: str
    splits: tuple[str, ...]
    sources: Mapping[str, HubSource]
    metric: str = "acc"
    filter: str = "none"
    chance: float | None = None
    higher_is_better: bool = True
    cost: float = 1.0
    rows: int = 0
    shots: int = 0
    worded: bool = True
    kind: Literal["choice", "generation", "perplexity", "judged", "lm-eval"] = "choice"


FLORES_CODES = {"en": "eng_Latn", "lt": "lit_Latn"}
_TRUTHFULQA = {
    "en": HubSource("truthfulqa/truthful_qa", "multiple_choice"),
    "lt": HubSource("neurotechnology/lt_thruthful_qa", "multiple_choice"),  # spelt so
}

BENCHMARKS = (
    Task(
        name="arc_easy",
        core="arc/arc_easy.yaml",
        folder="arc_easy",
        splits=("train", "validation", "test"),
        sources={
            "en": HubSource("allenai/ai2_arc", "ARC-Easy"),
            "lt": HubSource("neurotechnology/lt_arc", "ARC-Easy", gated=True, fewshot_split="validation"),
        },
        chance=0.25,
        cost=0.5,
        rows=2376,
    ),
    Task(
        name="belebele",
        core="belebele/belebele_{code}.yaml",
        folder="belebele",
        splits=("test",),
        sources={
            "en": HubSource("facebook/belebele", "eng_Latn"),
            "lt": HubSource("facebook/belebele", "lit_Latn"),
        },
        chance=0.25,
        cost=0.3,
        rows=900,
    ),
    Task(
        name="gsm8k",
        core="gsm8k/gsm8k.yaml",
        folder="gsm8k",
        splits=("train", "test"),
        sources={
            "en": HubSource("openai/gsm8k", "main"),
            "lt": HubSource("neurotechnology/lt_gsm8k", "main"),
        },
        metric="exact_match",
        filter="strict-match",
        chance=0.0,
        cost=5.0,
        rows=1319,
        shots=5,
        kind="generation",
    ),
    Task(
        name="hellaswag",
        core="hellaswag/hellaswag.yaml",
        folder="hellaswag",
        splits=("train", "validation"),
        sources={
            "en": HubSource("Rowan/hellaswag", ""),
            "lt": HubSource("neurotechnology/lt_hellaswag", "", fewshot_split="validation"),
        },
        chance=0.25,
        cost=4.0,
        rows=10042,
        worded=False,
    ),
    Task(
        name="mmlu",
        core="mmlu/default",
        folder="mmlu",
        splits=("dev", "test"),
        sources={
            "en": HubSource("cais/mmlu", ""),
            "lt": HubSource("neurotechnology/lt_mmlu", "", gated=True, fewshot_split="validation"),
        },
        chance=0.25,
        cost=10.0,
        rows=14042,
        shots=5,
    ),
    Task(
        name="truthfulqa_mc2",
        core="truthfulqa/truthfulqa_mc2.yaml",
        folder="truthfulqa",
        splits=("validation",),
        sources=_TRUTHFULQA,
        cost=1.4,
        rows=817,
    ),
    Task(
        name="winogrande",
        core="winogrande/default.yaml",
        folder="winogrande",
        splits=("train", "validation"),
        sources={
            "en": HubSource("allenai/winogrande", "winogrande_xl"),
            "lt": HubSource("neurotechnology/lt_winogrande", "winogrande_xl"),
        },
        chance=0.5,
        cost=0.1,
        rows=1267,
        worded=False,
    ),
)
FLUENCY = (
    Task(
        name="ppl_truthfulqa",
        core="",
        folder="truthfulqa",
        splits=("validation",),
        sources=_TRUTHFULQA,
        metric="perplexity",
        higher_is_better=False,
        cost=0.05,
        rows=817,
        worded=False,
        kind="perplexity",
    ),
    Task(
        name="ppl_heldout",
        core="",
        folder="",
        splits=("test",),
        sources={},
        metric="bits_per_byte",
        higher_is_better=False,
        cost=1.0,
        rows=1000,
        worded=False,
        kind="perplexity",
    ),
    Task(
        name="judged_answers",
        core="",
        folder="truthfulqa",
        splits=("validation",),
        sources=_TRUTHFULQA,
        metric="nats_per_token",
        higher_is_better=False,
        cost=2.0,
        rows=817,
        worded=False,
        kind="judged",
    ),
)
JUDGED = "judged_answers"
"""Needs `evaluate.judge`."""
TASKS = {task.name: task for task in (*BENCHMARKS, *FLUENCY)}
LANGUAGES = ("en", "lt")
"""Languages of the benchmarks; each is the name of a suite."""
SUITES = (*LANGUAGES, "fluency")
