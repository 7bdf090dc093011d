"""One task in one language: what lm-eval makes of it, as results and samples of a record."""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval.utils
import numpy as np
from lm_eval.api.metrics import mean, pooled_sample_stderr
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from hpc_ewc.errors import InputError, StageError
from hpc_ewc.evaluate import rows
from hpc_ewc.evaluate.fluency import Document, summarise
from hpc_ewc.evaluate.judge import Judge, judge_samples
from hpc_ewc.evaluate.scoring import Scorer
from hpc_ewc.evaluate.task_files import core_tasks
from hpc_ewc.hub import PREFETCH
from hpc_ewc.suites import Cell

logging.getLogger("lm_eval").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Scored:
    """What a cell measured."""

    results: list[dict[str, Any]]
    """As `results` of a record: metric, filter, subset, value, stderr, n, higher_is_better, primary."""
    samples: list[dict[str, Any]]
    """A row for each document and filter."""
    shots: int
    task_version: str


def load_tasks(cell: Cell, folder: Path, include: Sequence[str], seed: int) -> dict[str, Any]:
    """The lm-eval tasks of a cell, with their shots and the seed that draws worked examples.

    Args:
        cell: the cell.
        folder: of its task files; for a task that is not ours, empty.
        include: the user's folders of task files.
        seed: lm-eval's `fewshot_random_seed`.

    Raises:
        InputError: the data set is not in this machine's cache, or the task is unknown.
    """
    ours = cell.kind != "lm-eval"
    folders = [folder] if ours else [*_defining(cell.task), *map(Path, include)]
    manager = TaskManager(include_path=[str(path) for path in folders], include_defaults=False)
    name = cell.name if ours else cell.task
    if name not in manager.all_tasks:
        raise InputError(f"{name}: no such task in lm-eval {lm_eval_version()} or in evaluate.include")
    try:
        loaded = manager.load([name])
    except (ConnectionError, OSError, ValueError) as error:
        if not _is_missing_data(error):
            raise
        raise InputError(_how_to_get(name, manager, str(error))) from error
    for task in loaded["tasks"].values():
        if cell.shots is not None:
            task.set_config(key="num_fewshot", value=cell.shots)
        task.set_fewshot_seed(seed=seed)
    return dict(loaded)


def score(
    cell: Cell,
    tasks: dict[str, Any],
    scorer: Scorer,
    *,
    limit: int | None,
    judge: Callable[[], Judge] | None = None,
) -> Scored:
    """Ask the model. Every value is finite.

    Args:
        cell: the cell.
        tasks: of `load_tasks`.
        scorer: of the checkpoint.
        limit: the first documents alone.
        judge: gives the model that reads the answers of a judged cell.

    Raises:
        StageError: a value is not: the model has diverged, or the task cannot be scored.
        StopRequested: from the scorer, between two batches.
    """
    with _compiled_templates():
        out = evaluate(lm=scorer, task_dict=tasks, limit=limit, bootstrap_iters=0, log_samples=True)
    assert out is not None, "one process a checkpoint: rank 0"
    samples = [row for task, each in out["samples"].items() for row in _samples(cell, task, each, scorer)]
    if cell.kind == "perplexity":
        documents = [Document(-row["loglikelihoods"][0], row["tokens"], row["words"], row["bytes"]) for row in samples]
        results = summarise(documents)
    elif judge is not None:
        (each,) = out["samples"].values()
        results = judge_samples(judge(), samples, [sample["arguments"][0][0] for sample in each])
    else:
        results = _results(cell, tasks, out)
    _require_finite(cell, results, samples)
    _mark_primary(cell, results)
    shots = {out["n-shot"][task] for task in tasks["tasks"]}
    root = cell.name if cell.kind != "lm-eval" else cell.task
    version = out["versions"].get(root)
    return Scored(results, samples, max(shots), str(version))


# ---------------------------------------------------------------------------------------------- results


def _results(cell: Cell, tasks: dict[str, Any], out: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A result for each task and group, metric and filter; values are lm-eval's own."""
    stderrs, counts = _standard_errors(tasks, out)
    results = []
    for name, metrics in out["results"].items():
        for key, value in metrics.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float, np.number)):
                continue
            results.append(
                {
                    "metric": metric,
                    "filter": kind,
                    "subset": _subset(cell, name),
                    "value": float(value),
                    "stderr": stderrs.get((name, key)),
                    "n": counts[name],
                    "higher_is_better": bool((out["higher_is_better"].get(name) or {}).get(metric, True)),
                }
            )
    return results


def _standard_errors(
    tasks: dict[str, Any], out: Mapping[str, Any]
) -> tuple[dict[tuple[str, str], float], dict[str, int]]:
    """Of means s/√n, of a group weighted by size lm-eval's pooled one, of others none; and the number of documents.

    lm-eval gives the same, but only together with a bootstrap of everything else.
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
            if task.aggregation().get(key.partition(",")[0]) is mean and len(each) > 1:
                stderrs[name, key] = float(np.std(each, ddof=1) / math.sqrt(len(each)))
    for name, group in tasks.get("groups", {}).items():
        leaves = [task.task_name for task in group.get_all_tasks()]
        counts[name] = sum(counts[leaf] for leaf in leaves)
        for key in out["results"].get(name, {}):
            if "," in key and all((leaf, key) in stderrs for leaf in leaves):
                each = [stderrs[leaf, key] for leaf in leaves]
                stderrs[name, key] = float(pooled_sample_stderr(each, [counts[leaf] for leaf in leaves]))
    return stderrs, counts


def _subset(cell: Cell, name: str) -> str:
    """Empty for the whole; MMLU's `stem` or `anatomy`; for a group that is not ours, the member's own name."""
    root = cell.name if cell.kind != "lm-eval" else cell.task
    return "" if name == root else name.removeprefix(f"{root}.")


def _require_finite(cell: Cell, results: list[dict[str, Any]], samples: list[dict[str, Any]]) -> None:
    bad = [result for result in results if not math.isfinite(result["value"])]
    if bad:
        names = ", ".join(sorted({result["metric"] for result in bad}))
        raise NonFiniteError(f"{cell.name}: {names} not finite; the model has diverged, or the task cannot be scored")
    wrong = [row["doc_id"] for row in samples if not all(map(math.isfinite, row["loglikelihoods"]))]
    if wrong:
        # argmax over NaN still picks an answer, and so gives an accuracy that looks right
        raise NonFiniteError(
            f"{cell.name}: log-likelihoods of {len(wrong)} of {len(samples)} rows not finite, first doc_id {wrong[0]}; "
            "the model has diverged"
        )
    if not results:
        raise StageError(f"{cell.name}: lm-eval gave no metric")


class NonFiniteError(StageError):
    """The model gave no number: measuring again would not give one either."""


def _mark_primary(cell: Cell, results: list[dict[str, Any]]) -> None:
    """Exactly one result is what the table shows: the cell's own metric over the whole, or the first there is."""
    whole = [result for result in results if result["subset"] == ""]
    named = [result for result in whole if (result["metric"], result["filter"]) == (cell.metric, cell.filter)]
    chosen = (named or whole or results)[0]
    for result in results:
        result["primary"] = result is chosen


# ---------------------------------------------------------------------------------------------- samples


def _samples(cell: Cell, task: str, samples: Sequence[Mapping[str, Any]], scorer: Scorer) -> list[dict[str, Any]]:
    """What a later comparison needs of each document: who it is, what it scored, how likely each answer was."""
    found = []
    for sample in samples:
        responses = [response[0] for response in sample["resps"]]
        row = {
            "doc_id": sample["doc_id"],
            "doc_hash": sample["doc_hash"],
            "subset": _subset(cell, task),
            "filter": sample["filter"],
            "metrics": {},
            "loglikelihoods": [],
            "tokens": None,
            "words": None,
            "bytes": None,
        }
        if cell.kind == "perplexity":
            text = str(sample["target"])
            loglikelihood = float(responses[0])
            row["loglikelihoods"] = [loglikelihood]
            row["tokens"] = len(scorer.tok_encode(text))
            row["words"], row["bytes"] = rows.count_words(text), len(text.encode())
            document = Document(-loglikelihood, row["tokens"], row["words"], row["bytes"])
            row["metrics"] = {"perplexity": document.perplexity, "bits_per_byte": document.bits_per_byte}
        else:
            numbers = {name: sample[name] for name in sample["metrics"]}
            row["metrics"] = {name: float(x) for name, x in numbers.items() if isinstance(x, (int, float, np.number))}
            row["loglikelihoods"] = [float(r[0]) for r in responses if isinstance(r, tuple)]
            texts = [r for r in responses if isinstance(r, str)]
            if texts:
                row["response"] = texts[0]
        if "flores_passage" in sample["doc"]:  # two questions on one passage are no two independent draws
            row["cluster"] = hashlib.sha256(sample["doc"]["flores_passage"].encode()).hexdigest()[:12]
        found.append(row)
    return found


# ---------------------------------------------------------------------------------------------- lm-eval


class _compiled_templates:  # noqa: N801 - reads as a function
    """lm-eval compiles each prompt's template anew for each document: half of a small model's evaluation.

    Within this context `apply_template` keeps the compiled ones.
    """

    def __enter__(self) -> None:
        self.original = lm_eval.utils.apply_template
        compiled: dict[str, Any] = {}

        def apply_template(template: str, doc: dict[str, Any]) -> str:
            if template not in compiled:
                compiled[template] = lm_eval.utils.env.from_string(template)
            return str(compiled[template].render(**doc))

        lm_eval.utils.apply_template = apply_template

    def __exit__(self, *_: object) -> None:
        lm_eval.utils.apply_template = self.original


def lm_eval_version() -> str:
    from importlib.metadata import version

    return version("lm_eval")


def _defining(task: str) -> list[Path]:
    """The folders of lm-eval's task files that define a name; indexing all 14,000 files takes 14 s.

    Folders that the name begins with are looked into first, and the first that has such a task or group is the one: on
    a cluster's file system a thousand small files take seconds. A tag may stand in several.
    """
    pattern = re.compile(
        rb"^[\"']?(task|group|tag)[\"']?:[ \t]*[\"']?" + re.escape(task.encode()) + rb"[\"']?\s*$", re.M
    )
    folders = [path for path in core_tasks().iterdir() if path.is_dir()]
    found = []
    for folder in sorted(folders, key=lambda path: (not task.startswith(path.name), -len(path.name), path.name)):
        kinds = {match[1] for path in folder.rglob("*.yaml") for match in pattern.finditer(path.read_bytes())}
        if kinds & {b"task", b"group"}:
            return [folder]
        found += [folder] if kinds else []
    return sorted(found)


def _is_missing_data(error: BaseException) -> bool:
    text = f"{type(error).__name__} {error}"
    return any(
        word in text for word in ("Offline", "offline", "DatasetNotFound", "Couldn't find", "Couldn't reach", "gated")
    )


def _how_to_get(name: str, manager: Any, error: str) -> str:
    config = manager.task_index[name].cfg or {}
    dataset = config.get("dataset_path", "its data set")
    return (
        f"{name}: {dataset} is not in this machine's cache, and jobs do not use the network ({error.splitlines()[0]}); "
        f"run `{PREFETCH}` on the login node. "
        f"Where it is gated, accept its conditions at "
        f"https://huggingface.co/datasets/{dataset} and log in with `hf auth login` first"
    )
