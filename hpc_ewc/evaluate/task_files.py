"""Task files for lm-eval that include its own and change the data alone, so no definition of a benchmark is copied.

A cell's files stand in a folder of their own, which `lm-eval run --include_path` takes as well: any number in a record
can be had again from lm-eval's own command line. Names are the cell's: `arc_easy.lt`; MMLU is a group `mmlu.lt` with
groups `mmlu.lt.stem` … and subjects `mmlu.lt.anatomy` … below.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from hpc_ewc.errors import InputError
from hpc_ewc.evaluate.native import ANSWERED, CLOZE, NATIVE, SUBJECTS
from hpc_ewc.hub import sealed_rows_dir
from hpc_ewc.suites import FLORES_CODES, TASKS, Cell

ROWS = "hpc_ewc.evaluate.rows"
SEALED = "hpc_ewc.evaluate.sealed"


@dataclass(frozen=True)
class LocalQuestions:
    """Questions in files, `<language>/<task>/<split>.jsonl`, in the column schemas of the benchmarks."""

    folder: Path
    cloze: bool = False
    """Ask MMLU and Belebele for the text of the answer instead of its letter."""


class Function(str):
    """A dotted name that lm-eval resolves to a function."""


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """YAML as lm-eval reads it."""


_Dumper.add_representer(Function, lambda dumper, name: dumper.represent_scalar("!function", str(name)))


def core_tasks() -> Path:
    """Where lm-eval's own task files are."""
    spec = find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise InputError("lm-eval is not installed in this environment; pip install 'lm-eval>=0.4.13'")
    return Path(spec.origin).parent / "tasks"


def write_task_files(
    folder: Path,
    cell: Cell,
    *,
    questions: LocalQuestions | None = None,
    heldout: Path | None = None,
    judge: Mapping[str, Any] | None = None,
    max_gen_toks: int | None = None,
) -> None:
    """Write the files of one of our cells into `folder`.

    Args:
        folder: made if it is missing; holds this cell alone.
        cell: of a task in `suites.TASKS`.
        questions: where the rows are; None: the data sets of the hub, from this machine's cache.
        heldout: the documents of `ppl_heldout`, {"text": …} a line.
        judge: what `judged_answers` asks, and how long an answer may be, as in stage.json.
        max_gen_toks: length of a generated answer, at most; None: lm-eval's.

    Raises:
        InputError: rows are missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    task = TASKS[cell.task]
    if cell.task == "mmlu":
        files = _mmlu(cell, questions)
    elif task.kind == "judged":
        files = {cell.name: _judged(cell, questions, judge or {}, max_gen_toks)}
    elif task.kind == "perplexity":
        files = {cell.name: _perplexity(cell, questions, heldout)}
    else:
        core = core_tasks() / task.core.format(code=FLORES_CODES.get(cell.language, ""))
        rows = _local(cell, questions) if questions else _hub(cell)
        words = _words(cell, cloze=questions is not None and questions.cloze)
        score = {"process_results": Function(f"{ROWS}.score_mc2")} if cell.task == "truthfulqa_mc2" else {}
        limits = _generation(words.pop("until", "Question:"), max_gen_toks) if task.kind == "generation" else {}
        files = {cell.name: {**_named(core, cell.name), **rows, **words, **score, **limits}}
    for name, content in files.items():
        text = yaml.dump(content, Dumper=_Dumper, allow_unicode=True, sort_keys=False)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


def _named(core: Path, name: str) -> dict[str, Any]:
    return {"include": str(core), "task": name, "task_alias": name, "tag": []}


# ---------------------------------------------------------------------------------------------- data


def _local(cell: Cell, questions: LocalQuestions, subject: str = "") -> dict[str, Any]:
    """Rows from files: which splits there are decides which one the worked examples come from."""
    task = TASKS[cell.task]
    folder = questions.folder / cell.language / task.folder
    paths = {
        split: folder / split / f"{subject}.jsonl" if subject else folder / f"{split}.jsonl" for split in task.splits
    }
    there = {split: str(path) for split, path in paths.items() if path.is_file()}
    *examples, scored = task.splits
    if scored not in there:
        raise InputError(f"{paths[scored]}: no such file; {cell.name} has no questions")
    fewshot = next((split for split in examples if split in there), None)
    if cell.shots and fewshot is None:
        allowed = " or ".join(str(paths[split]) for split in examples) or "nothing: it has only its scored rows"
        raise InputError(
            f"{folder}: {cell.name} is asked with {cell.shots} worked examples, which come from {allowed}; "
            f"set evaluate.shots.{cell.task} = 0"
        )
    return {
        "custom_dataset": Function(f"{ROWS}.local_rows"),
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"files": there},
        "training_split": fewshot,
        "validation_split": scored if scored == "validation" else None,
        "test_split": scored if scored == "test" else None,
        "fewshot_split": fewshot,
    }


def hub_sources(cell: Cell) -> list[tuple[str, str]]:
    """(hub id, configuration) of the rows of one of our cells, none for held-out text."""
    source = TASKS[cell.task].sources.get(cell.language)
    if source is None:
        return []
    if cell.task == "mmlu":
        return [(source.path, subject) for subject in _mmlu_files("default")]
    return [(source.path, source.subset)]


def _hub(cell: Cell, subject: str = "") -> dict[str, Any]:
    """Rows as `hpc-ewc prefetch` sealed them; without that, what `datasets` itself has in its cache."""
    source = TASKS[cell.task].sources[cell.language]
    subset = subject or source.subset
    rows: dict[str, Any] = {"dataset_path": source.path, "dataset_name": subset or None}
    folder = sealed_rows_dir(source.path, subset)
    if folder is not None:
        rows |= {"custom_dataset": Function(f"{SEALED}.sealed_rows"), "dataset_kwargs": {"folder": str(folder)}}
    return rows | ({"fewshot_split": source.fewshot_split} if source.fewshot_split else {})


def _perplexity(cell: Cell, questions: LocalQuestions | None, heldout: Path | None) -> dict[str, Any]:
    """A task that scores whole documents."""
    if cell.task == "ppl_heldout":
        if heldout is None or not heldout.is_file():
            raise InputError(
                f"{heldout or cell.name}: no held-out text '{cell.text}'; the corpus gives its own when "
                f"data.heldout_documents > 0, others are named in evaluate.heldout"
            )
        function = Function(f"{ROWS}.heldout_rows")
        rows = {"custom_dataset": function, "dataset_path": "json", "dataset_kwargs": {"files": {"test": str(heldout)}}}
        rows["test_split"] = "test"
    else:
        rows = _local(cell, questions) if questions else {**_hub(cell), "validation_split": "validation"}
    text = "text_of" if cell.task == "ppl_heldout" else "question_and_answer"
    weighted = {"aggregation": "weighted_perplexity", "higher_is_better": False}
    return {
        "task": cell.name,
        "output_type": "loglikelihood_rolling",
        **rows,
        "doc_to_text": "",
        "doc_to_target": Function(f"{ROWS}.{text}"),
        "process_results": Function(f"{ROWS}.score_text"),
        "metric_list": [
            {"metric": "word_perplexity", **weighted},
            {"metric": "byte_perplexity", **weighted},
            {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
        ],
        "metadata": {"version": 1.0},
    }


def _judged(
    cell: Cell, questions: LocalQuestions | None, judge: Mapping[str, Any], max_gen_toks: int | None
) -> dict[str, Any]:
    """Questions that are answered freely, greedily; what the answers are worth, another model says (judge.py)."""
    path = judge.get("questions", {}).get(cell.language)
    if path:
        function = Function(f"{ROWS}.local_rows")
        rows = {"custom_dataset": function, "dataset_path": "json", "dataset_kwargs": {"files": {"test": str(path)}}}
        rows["test_split"] = "test"
    else:
        rows = _local(cell, questions) if questions else {**_hub(cell), "validation_split": "validation"}
    asked = int(judge.get("tokens", 128))
    length = asked if max_gen_toks is None else min(max_gen_toks, asked)
    question, answer = ANSWERED.get(cell.language, ANSWERED["en"])
    return {
        "task": cell.name,
        "output_type": "generate_until",
        **rows,
        "doc_to_text": f"{question}: {{{{question.strip()}}}}\n{answer}:",
        "doc_to_target": "",
        "generation_kwargs": {
            "until": ["\n\n", f"{question}:"],
            "do_sample": False,
            "temperature": 0.0,
            "max_gen_toks": length,
        },
        "process_results": Function(f"{ROWS}.length_of_answer"),
        "metric_list": [{"metric": "length", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }


# ---------------------------------------------------------------------------------------------- words


def _words(cell: Cell, *, cloze: bool, subject: str = "") -> dict[str, Any]:
    """Overrides of the prompt; none for a core prompt asked as it is."""
    language = cell.language if cell.variant == "native" else "en"
    words = dict(NATIVE.get(language, {}).get(cell.task, {}))
    if cloze:
        words |= CLOZE.get(language, {}).get(cell.task, {})
        if cell.task == "belebele":
            words["doc_to_choice"] = "{{[mc_answer1, mc_answer2, mc_answer3, mc_answer4]}}"
    if "description" in words:
        words["description"] = words["description"].format(subject=SUBJECTS[language][subject])
    return words


def _generation(until: str, max_gen_toks: int | None) -> dict[str, Any]:
    """GSM8K's own settings, with another word to stop at or another length."""
    length = {} if max_gen_toks is None else {"max_gen_toks": max_gen_toks}
    stops = list(dict.fromkeys([until, "Question:", "</s>", "<|im_end|>"]))
    return {"generation_kwargs": {"until": stops, "do_sample": False, "temperature": 0.0, **length}}


# ---------------------------------------------------------------------------------------------- MMLU


def _mmlu(cell: Cell, questions: LocalQuestions | None) -> dict[str, dict[str, Any]]:
    """A file a subject, one a group of subjects, one for all; scores are weighted by size, as in lm-eval's group."""
    cloze = questions is not None and questions.cloze
    known = _mmlu_files("continuation" if cloze else "default")
    subjects = _subjects(cell, questions, known)
    files: dict[str, dict[str, Any]] = {}
    groups: dict[str, list[str]] = {}
    for subject in subjects:
        name = f"{cell.name}.{subject}"
        rows = _local(cell, questions, subject) if questions else _hub(cell, subject)
        words = _words(cell, cloze=cloze, subject=subject)
        files[name] = {**_named(known[subject], name), **rows, **words, "task_alias": subject}
        groups.setdefault(f"{cell.name}.{_category(known[subject])}", []).append(name)
    metrics = ["acc", "acc_norm"] if cloze else ["acc"]
    weighted = {"aggregate_metric_list": [{"metric": metric, "weight_by_size": True} for metric in metrics]}
    for name, members in {**groups, cell.name: list(groups)}.items():
        files[f"_{name}"] = {"group": name, "task": members, **weighted, "metadata": {"version": 2}}
    return files


def _mmlu_files(form: str) -> dict[str, Path]:
    """lm-eval's file of each subject."""
    core = core_tasks() / "mmlu" / form
    return {path.stem.removeprefix("mmlu_"): path for path in sorted(core.glob("mmlu_*.yaml"))}


def _subjects(cell: Cell, questions: LocalQuestions | None, known: Mapping[str, Path]) -> list[str]:
    if questions is None:
        return list(known)
    folder = questions.folder / cell.language / "mmlu" / "test"
    subjects = sorted(path.stem for path in folder.glob("*.jsonl"))
    if not subjects:
        raise InputError(f"{folder}: no <subject>.jsonl; {cell.name} has no questions")
    for subject in subjects:
        if subject not in known:
            raise InputError(f"{folder / subject}.jsonl: '{subject}' is no subject of MMLU; known: {', '.join(known)}")
    return subjects


def _category(core: Path) -> str:
    """stem, humanities, social_sciences or other, from the tag in lm-eval's file."""
    found = re.search(r"tag\W+mmlu_(\w+?)_(?:tasks|continuation)", core.read_text(encoding="utf-8"))
    assert found, f"{core}: MMLU's subjects are tagged by category"
    return found[1]
