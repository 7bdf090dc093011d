"""`python -m hpc_ewc.worker prefetch DIR --fetch CELLS | --prove INPUTS`: the part of `hpc-ewc prefetch` with torch.

DIR holds experiments, `<i>.toml`, one for each point of the grid. --fetch saves the rows of benchmarks from the hub;
--prove loads a sample of everything by the code of the jobs, without network. Each thing gives a JSON line on stdout:
what, ok, detail.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hpc_ewc import hub, suites
from hpc_ewc.config import Experiment, load_experiment
from hpc_ewc.evaluate import environment
from hpc_ewc.suites import Cell, expand_suites


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each thing; the exit status is 0 even if some failed."""
    parser = argparse.ArgumentParser(prog="python -m hpc_ewc.worker prefetch", description=__doc__)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--fetch", help="names of cells, such as mmlu.en,mmlu.lt")
    parser.add_argument("--prove", help="JSON: model, corpus, fisher, questions, heldout of each experiment")
    parser.add_argument("--update", action="store_true", help="look for newer commits")
    arguments = parser.parse_args(argv)
    for name, value in environment.QUIET.items():
        os.environ.setdefault(name, value)
    experiments = [load_experiment(arguments.dir / f"{i}.toml") for i in range(len(list(arguments.dir.glob("*.toml"))))]
    if arguments.fetch:
        fetch(experiments[0], arguments.fetch.split(","), update=arguments.update)
    if arguments.prove:
        prove(experiments, json.loads(arguments.prove))
    return 0


def attempt(what: str, work: Callable[[], str], dataset: str = "") -> None:
    """Print the result of `work`, or its error and what to do about it, as a JSON line for the parent process."""
    try:
        ok, detail = True, work()
    except Exception as error:  # datasets, huggingface_hub, transformers and what they call raise dozens of kinds
        ok, detail = False, " ".join(str(error).split())[:500]
        if dataset:
            detail = hub.explain(error, "dataset", dataset)
        elif not type(error).__module__.startswith("hpc_ewc"):
            detail = f"{type(error).__name__}: {detail}"
    sys.stdout.write(json.dumps({"what": what, "ok": ok, "detail": detail}, ensure_ascii=False) + "\n")
    sys.stdout.flush()


# ---------------------------------------------------------------------------------------------- fetch


def fetch(experiment: Experiment, names: Sequence[str], *, update: bool) -> None:
    """Save the rows of our benchmarks, one data set after the other; let lm-eval fetch those of other tasks."""
    from hpc_ewc.evaluate.sealed import seal
    from hpc_ewc.evaluate.task_files import hub_sources
    from hpc_ewc.evaluate.task_loading import load_tasks

    def load(cell: Cell) -> str:
        load_tasks(cell, Path(), experiment.evaluate.include, experiment.evaluate.seed)
        return "in the cache of datasets"

    cells = {cell.name: cell for cell in expand_suites(experiment.evaluate, experiment.data.language)}
    sources: dict[str, list[str]] = {}
    for cell in map(cells.__getitem__, names):
        if cell.task not in suites.TASKS:
            attempt(cell.name, partial(load, cell))
        for path, subset in hub_sources(cell) if cell.task in suites.TASKS else ():
            sources.setdefault(path, []).append(subset)
    for path, subsets in sources.items():
        attempt(path, partial(seal, path, dict.fromkeys(subsets), update=update), path)


# ---------------------------------------------------------------------------------------------- prove


def prove(experiments: Sequence[Experiment], inputs: Sequence[dict[str, Any]]) -> None:
    """Load a sample of everything; each distinct thing once."""
    checks: dict[str, Callable[[], str]] = {}
    for experiment, facts in zip(experiments, inputs, strict=True):
        for what, work in _checks(experiment, facts):
            checks.setdefault(what, work)
    for what, work in checks.items():
        attempt(what, work)


def _checks(experiment: Experiment, facts: dict[str, Any]) -> Iterator[tuple[str, Callable[[], str]]]:
    model = Path(facts["model"])
    yield f"model {experiment.model.path}", partial(_check_model, model)
    if facts["judge"]:
        yield f"judge {experiment.evaluate.judge}", partial(_check_model, Path(facts["judge"]["folder"]))
    yield f"corpus {experiment.data.source}", partial(_check_corpus, facts["corpus"], experiment)
    yield f"Fisher questions {experiment.fisher.source}", partial(_check_fisher, facts["fisher"], experiment, model)
    for cell in expand_suites(experiment.evaluate, experiment.data.language, heldout=facts["heldout"]):
        if cell.task != "ppl_heldout" or cell.text in facts["heldout"]:
            yield cell.name, partial(_check_cell, cell, experiment, facts)


def _check_model(folder: Path) -> str:
    from safetensors import safe_open
    from transformers import AutoConfig

    from hpc_ewc.evaluate.checkpoint import load_tokenizer

    config, tokenizer, tensors = AutoConfig.from_pretrained(str(folder)), load_tokenizer(folder), 0
    for path in folder.glob("*.safetensors"):
        with safe_open(str(path), framework="numpy") as file:
            tensors += len(file.keys())
    return f"{config.model_type}, {tensors} tensors, tokenizer of {len(tokenizer)}"


def _check_corpus(files: Sequence[str], experiment: Experiment) -> str:
    from hpc_ewc.data.files import Span, read_span

    column = experiment.data.text_column
    (first,) = list(read_span(files[0], Span(0, 1, 1, 0, 0), column))[:1]
    return f"{len(files)} files, first row of {len(first.raw)} {'letters' if isinstance(first.raw, str) else 'bytes'}"


def _check_fisher(files: Sequence[str], experiment: Experiment, model: Path) -> str:
    from hpc_ewc.data.questions import question_batches
    from hpc_ewc.data.tokenizer import load_tokenizer

    config = dataclasses.replace(experiment.fisher, max_examples=1)
    batches = question_batches(config, list(files), load_tokenizer(model), rank=0, world_size=1)
    return f"{len(files)} files, first question of {len(batches.example(0).ids)} tokens"


def _check_cell(cell: Cell, experiment: Experiment, facts: dict[str, Any]) -> str:
    from hpc_ewc.evaluate.task_files import LocalQuestions, write_task_files
    from hpc_ewc.evaluate.task_loading import load_tasks

    config, questions = experiment.evaluate, facts["questions"]
    local = LocalQuestions(Path(questions), bool(config.cloze)) if questions else None
    heldout = facts["heldout"].get(cell.text)
    with tempfile.TemporaryDirectory(prefix="hpc_ewc-tasks-") as folder:
        if cell.kind != "lm-eval":
            write_task_files(
                Path(folder), cell, questions=local, heldout=Path(heldout) if heldout else None, judge=facts["judge"]
            )
        tasks = load_tasks(cell, Path(folder), config.include, config.seed)["tasks"].values()
        rows = sum(len(task.eval_docs) for task in tasks)
        for task in tasks:
            task.doc_to_text(task.eval_docs[0])
    return f"{rows} rows"
