"""Write task files for lm-eval that include its own and replace only the data, so no benchmark definition is copied.

Each cell has its own folder of files, which `lm-eval run --include_path` accepts too: every number in a record can be
reproduced from lm-eval's command line. Tasks are named like the cell: `arc_easy.lt`; MMLU is a group `mmlu.lt` of the
groups `mmlu.lt.stem` …, which contain the subjects `mmlu.lt.anatomy` ….
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
    """Questions in files `<language>/<task>/<split>.jsonl`, with the columns of the benchmarks."""

    folder: Path
    cloze: bool = False
    """Whether MMLU and Belebele are scored by the text of the answer instead of its letter."""


class Function(str):
    """A dotted name, written as YAML that lm-eval resolves to the function."""


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    pass


_Dumper.add_representer(Function, lambda dumper, name: dumper.represent_scalar("!function", str(name)))


def core_tasks() -> Path:
    """Return the folder of lm-eval's own task files."""
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
    """Write the task files of a cell into `folder`.

    Args:
        folder: a folder for this cell alone, created if it does not exist.
        cell: a cell of a task in `suites.TASKS`.
        questions: the rows; None: the hub's data sets, from this machine's cache.
        heldout: the documents of `ppl_heldout`, one {"text": …} per line.
        judge: questions and answer length of `judged_answers`, as in stage.json.
        max_gen_toks: maximum length of a generated answer; None: lm-eval's.

    Raises:
        InputError: a file of rows is missing.
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
    """Return the data settings for rows in files; worked examples come from the first example split that exists."""
    task = TASKS[cell.task]
    folder = questions.folder / cell.language / task.folder
    paths = {
        split: folder / split / f"{subject}.jsonl" if subject else folder / f"{split}.jsonl" for split in task.splits
    }
    files = {split: str(path) for split, path in paths.items() if path.is_file()}
    *examples, scored = task.splits
    if scored not in files:
        raise InputError(f"{paths[scored]}: no such file; {cell.name} has no questions")
    fewshot = next((split for split in examples if split in files), None)
    if cell.shots and fewshot is None:
        allowed = " or ".join(str(paths[split]) for split in examples) or "nowhere: it has only its scored rows"
        raise InputError(
            f"{folder}: {cell.name} needs rows for {cell.shots} worked examples, which come from {allowed}; "
            f"set evaluate.shots.{cell.task} = 0"
        )
    return {
        "custom_dataset": Function(f"{ROWS}.local_rows"),
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"files": files},
        "training_split": fewshot,
        "validation_split": scored if scored == "validation" else None,
        "test_split": scored if scored == "test" else None,
        "fewshot_split": fewshot,
    }


def hub_sources(cell: Cell) -> list[tuple[str, str]]:
    """Return (hub id, configuration) of each data set that a cell reads; none for held-out text."""
    source = TASKS[cell.task].sources.get(cell.language)
    if source is None:
        return []
    if cell.task == "mmlu":
        return [(source.path, subject) for subject in _mmlu_files("default")]
    return [(source.path, source.subset)]


def _hub(cell: Cell, subject: str = "") -> dict[str, Any]:
    """Return the data settings for the hub: rows sealed by `hpc-ewc prefetch`, else the cache of `datasets`."""
    source = TASKS[cell.task].sources[cell.language]
    subset = subject or source.subset
    rows: dict[str, Any] = {"dataset_path": source.path, "dataset_name": subset or None}
    folder = sealed_rows_dir(source.path, subset)
    if folder is not None:
        rows |= {"custom_dataset": Function(f"{SEALED}.sealed_rows"), "dataset_kwargs": {"folder": str(folder)}}
    return rows | ({"fewshot_split": source.fewshot_split} if source.fewshot_split else {})


def _test_file(function: str, path: Path | str) -> dict[str, Any]:
    """Return the data settings for scored rows in one file."""
    rows = {"custom_dataset": Function(f"{ROWS}.{function}"), "dataset_path": "json"}
    return {**rows, "dataset_kwargs": {"files": {"test": str(path)}}, "test_split": "test"}


def _truthfulqa(cell: Cell, questions: LocalQuestions | None) -> dict[str, Any]:
    """Return the data settings for TruthfulQA's questions."""
    return _local(cell, questions) if questions else {**_hub(cell), "validation_split": "validation"}


def _perplexity(cell: Cell, questions: LocalQuestions | None, heldout: Path | None) -> dict[str, Any]:
    """Return a task that scores whole documents."""
    if cell.task == "ppl_heldout":
        if heldout is None or not heldout.is_file():
            raise InputError(
                f"{heldout or cell.name}: no held-out text '{cell.text}'; set data.heldout_documents > 0 to hold out "
                "documents of the corpus, or name a file in evaluate.heldout"
            )
        rows, text = _test_file("heldout_rows", heldout), "text_of"
    else:
        rows, text = _truthfulqa(cell, questions), "question_and_answer"
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
    """Return a task of questions that are answered greedily in free text; judge.py scores the answers."""
    path = judge.get("questions", {}).get(cell.language)
    rows = _test_file("local_rows", path) if path else _truthfulqa(cell, questions)
    length = int(judge.get("tokens", 128))
    length = length if max_gen_toks is None else min(max_gen_toks, length)
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
    """Return the prompt settings that differ from lm-eval's; none for its own prompt."""
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
    """Return GSM8K's own generation settings, with another stop word or another length."""
    length = {} if max_gen_toks is None else {"max_gen_toks": max_gen_toks}
    stops = list(dict.fromkeys([until, "Question:", "</s>", "<|im_end|>"]))
    return {"generation_kwargs": {"until": stops, "do_sample": False, "temperature": 0.0, **length}}


# ---------------------------------------------------------------------------------------------- MMLU


def _mmlu(cell: Cell, questions: LocalQuestions | None) -> dict[str, dict[str, Any]]:
    """Return a file per subject, one per category and one for all; scores are weighted by size, as in lm-eval."""
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
    """Return lm-eval's file of each subject."""
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
            raise InputError(f"{folder / subject}.jsonl: MMLU has no subject '{subject}'; known: {', '.join(known)}")
    return subjects


def _category(core: Path) -> str:
    """Return stem, humanities, social_sciences or other, from the tag in lm-eval's file."""
    found = re.search(r"tag\W+mmlu_(\w+?)_(?:tasks|continuation)", core.read_text(encoding="utf-8"))
    assert found, f"{core}: MMLU's subjects are tagged by category"
    return found[1]
