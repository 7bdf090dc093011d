"""Score one cell, a task in one language, with lm-eval; convert the output to the results and samples of a record."""

from __future__ import annotations

import hashlib
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import lm_eval.utils
import numpy as np
from lm_eval.api.metrics import mean, pooled_sample_stderr
from lm_eval.evaluator import evaluate

from hpc_ewc.errors import StageError
from hpc_ewc.evaluate.fluency import Document, standard_error, summarise
from hpc_ewc.evaluate.judge import Judge, judge_samples
from hpc_ewc.evaluate.rows import count_words
from hpc_ewc.evaluate.scoring import Scorer
from hpc_ewc.evaluate.task_loading import task_name
from hpc_ewc.schemas import Result, Sample
from hpc_ewc.suites import Cell

logging.getLogger("lm_eval").setLevel(logging.ERROR)


class NonFiniteError(StageError):
    """The model gave NaN or infinity; scoring the cell again would give the same."""


@dataclass(frozen=True)
class Scored:
    """The measurements of a cell."""

    results: list[Result]
    samples: list[Sample]
    """A row for each document and filter."""
    shots: int | None
    """Worked examples; None: the cell failed before lm-eval's default was known."""
    task_version: str


def score(
    cell: Cell,
    tasks: dict[str, Any],
    scorer: Scorer,
    *,
    limit: int | None,
    judge: Callable[[], Judge] | None = None,
) -> Scored:
    """Return the results and samples of a cell; every value is finite.

    Args:
        cell: the cell.
        tasks: from `load_tasks`.
        scorer: the checkpoint, wrapped for lm-eval.
        limit: number of documents to score, from the first on; None: all.
        judge: returns the model that judges the answers of a judged cell.

    Raises:
        NonFiniteError: a value is not finite: the model has diverged, or the task cannot be scored.
        StopRequested: by the scorer, between two batches.
    """
    with compiled_templates():
        out = evaluate(lm=scorer, task_dict=tasks, limit=limit, bootstrap_iters=0, log_samples=True)
    assert out is not None, "one process per checkpoint: rank 0"
    scored = [(task, sample) for task, each in out["samples"].items() for sample in each]
    samples = [_sample(cell, task, sample) for task, sample in scored]
    if cell.kind == "perplexity":
        documents = [_document(sample, scorer) for _, sample in scored]
        for row, document in zip(samples, documents, strict=True):
            document.write_to(row)
        results = summarise(documents)
    elif judge is not None:
        results = judge_samples(judge(), samples, [sample["arguments"][0][0] for _, sample in scored])
    else:
        results = _results(cell, tasks, out)
    _require_finite(cell, results, samples)
    _mark_primary(cell, results)
    shots = max(out["n-shot"][task] for task in tasks["tasks"])
    return Scored(results, samples, shots, str(out["versions"].get(task_name(cell))))


@contextmanager
def compiled_templates() -> Iterator[None]:
    """Make lm-eval's `apply_template` compile each prompt template once.

    lm-eval compiles it anew for each document, which takes half the time of evaluating a small model.
    """
    original, compiled = lm_eval.utils.apply_template, cache(lm_eval.utils.env.from_string)
    lm_eval.utils.apply_template = lambda template, doc: str(compiled(template).render(**doc))
    try:
        yield
    finally:
        lm_eval.utils.apply_template = original


# ---------------------------------------------------------------------------------------------- results


def _results(cell: Cell, tasks: dict[str, Any], out: Mapping[str, Any]) -> list[Result]:
    """Return a result for each task and group, metric and filter; the values are lm-eval's own."""
    stderrs, counts = _standard_errors(tasks, out)
    results = []
    for name, metrics in out["results"].items():
        higher_is_better = out["higher_is_better"].get(name) or {}
        for key, value in metrics.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float, np.number)):
                continue
            result = Result(
                metric=metric,
                filter=kind,
                subset=_subset(cell, name),
                value=float(value),
                stderr=stderrs.get((name, key)),
                n=counts[name],
                higher_is_better=bool(higher_is_better.get(metric, True)),
            )
            results.append(result)
    return results


def _standard_errors(
    tasks: dict[str, Any], out: Mapping[str, Any]
) -> tuple[dict[tuple[str, str], float], dict[str, int]]:
    """Return standard errors by (task or group, metric) and the number of documents by task or group.

    A mean has s/√n, a group weighted by size lm-eval's pooled standard error, any other aggregation none. lm-eval
    gives the same, but only together with a bootstrap of all other metrics.
    """
    stderrs: dict[tuple[str, str], float] = {}
    counts: dict[str, int] = {}
    for name, task in tasks["tasks"].items():
        values = defaultdict(list)
        for sample in out["samples"][name]:
            for metric in sample["metrics"]:
                values[f"{metric},{sample['filter']}"].append(sample[metric])
        counts[name] = out["n-samples"][name]["effective"]
        for key, each in values.items():
            is_mean = task.aggregation().get(key.partition(",")[0]) is mean
            if is_mean and (stderr := standard_error(each)) is not None:
                stderrs[name, key] = stderr
    for name, group in tasks.get("groups", {}).items():
        leaves = [task.task_name for task in group.get_all_tasks()]
        counts[name] = sum(counts[leaf] for leaf in leaves)
        for key in out["results"].get(name, {}):
            if "," in key and all((leaf, key) in stderrs for leaf in leaves):
                each = [stderrs[leaf, key] for leaf in leaves]
                stderrs[name, key] = float(pooled_sample_stderr(each, [counts[leaf] for leaf in leaves]))
    return stderrs, counts


def _subset(cell: Cell, name: str) -> str:
    """Return "" for the whole cell, `stem` or `anatomy` for a part of MMLU, a member's own name for other groups."""
    root = task_name(cell)
    return "" if name == root else name.removeprefix(f"{root}.")


def _require_finite(cell: Cell, results: Sequence[Result], samples: Sequence[Sample]) -> None:
    names = {result["metric"] for result in results if not math.isfinite(result["value"])}
    if names:
        listed = ", ".join(sorted(names))
        raise NonFiniteError(f"{cell.name}: {listed} not finite; the model has diverged, or the task cannot be scored")
    wrong = [row["doc_id"] for row in samples if not all(map(math.isfinite, row["loglikelihoods"]))]
    if wrong:  # argmax over NaN still selects an answer, and so gives an accuracy that looks right
        raise NonFiniteError(
            f"{cell.name}: log-likelihoods of {len(wrong)} of {len(samples)} rows not finite, first doc_id {wrong[0]}; "
            "the model has diverged"
        )
    if not results:
        raise StageError(f"{cell.name}: lm-eval gave no metric")


def _mark_primary(cell: Cell, results: Sequence[Result]) -> None:
    """Mark the one result that the table shows: the cell's own metric over all documents, else the first."""
    total = [result for result in results if result["subset"] == ""]
    named = [result for result in total if (result["metric"], result["filter"]) == (cell.metric, cell.filter)]
    chosen = (named or total or results)[0]
    for result in results:
        result["primary"] = result is chosen


# ---------------------------------------------------------------------------------------------- samples


def _sample(cell: Cell, task: str, sample: Mapping[str, Any]) -> Sample:
    """Return what later comparisons need of a document: its identity, its metrics, the log-likelihood per answer."""
    responses = [response[0] for response in sample["resps"]]
    metrics = {name: sample[name] for name in sample["metrics"]}
    row = Sample(
        doc_id=sample["doc_id"],
        doc_hash=sample["doc_hash"],
        subset=_subset(cell, task),
        filter=sample["filter"],
        metrics={name: float(x) for name, x in metrics.items() if isinstance(x, (int, float, np.number))},
        loglikelihoods=[float(response[0]) for response in responses if isinstance(response, tuple)],
        tokens=None,
        words=None,
        bytes=None,
    )
    texts = [response for response in responses if isinstance(response, str)]
    if texts:
        row["response"] = texts[0]
    if "flores_passage" in sample["doc"]:  # two questions on one passage are not independent
        row["cluster"] = hashlib.sha256(sample["doc"]["flores_passage"].encode()).hexdigest()[:12]
    return row


def _document(sample: Mapping[str, Any], scorer: Scorer) -> Document:
    text = str(sample["target"])
    nats = -float(sample["resps"][0][0])
    return Document(nats, len(scorer.tok_encode(text)), count_words(text), len(text.encode()))
