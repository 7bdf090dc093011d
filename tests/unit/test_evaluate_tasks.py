"""Task files equal lm-eval's definitions except for data or wording."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from examples.miniature import files
from hpc_ewc.config import EvaluateConfig
from hpc_ewc.errors import InputError
from hpc_ewc.evaluate import rows
from hpc_ewc.evaluate.fluency import Document, summarise
from hpc_ewc.evaluate.native import CLOZE, NATIVE, SUBJECTS
from hpc_ewc.evaluate.task_files import LocalQuestions, core_tasks, write_task_files
from hpc_ewc.evaluate.task_loading import defining_folders, load_tasks
from hpc_ewc.suites import FLORES_CODES, TASKS, Cell, expand_suites

DATA = {"task", "task_alias", "tag", "dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset"}
SPLITS = {"training_split", "validation_split", "test_split", "fewshot_split"}
CHOICES = ["arc_easy", "belebele", "hellaswag", "truthfulqa_mc2", "winogrande"]


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return files.build(tmp_path_factory.mktemp("miniature")) / "questions"


def written(folder: Path, cell: Cell, **inputs: Any) -> dict[str, dict[str, Any]]:
    """Return the task files of a cell as lm-eval loads them."""
    write_task_files(folder, cell, **inputs)
    return {path.stem: load_yaml(path) for path in sorted(folder.glob("*.yaml"))}


def prompts(folder: Path, cell: Cell, seed: int = 1234, **inputs: Any) -> list[str]:
    """Return what lm-eval would send to a model: (context, continuation) of the first rows, joined."""
    write_task_files(folder, cell, **inputs)
    tasks = load_tasks(cell, folder, (), seed=seed)

    class FakeModel:
        rank, world_size, tokenizer_name = 0, 1, ""

        def __init__(self) -> None:
            self.asked: list[str] = []

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            self.asked += ["".join(request.args) for request in requests]
            return [(-1.0, False)] * len(requests)

        def generate_until(self, requests: list[Any]) -> list[str]:
            self.asked += [request.args[0] for request in requests]
            return [""] * len(requests)

    model = FakeModel()
    evaluate(lm=model, task_dict=tasks, limit=3, bootstrap_iters=0, log_samples=False)
    return model.asked


# ---------------------------------------------------------------------------------------------- core


@pytest.mark.parametrize("language", ["en", "lt"])
@pytest.mark.parametrize("task", [*CHOICES, "gsm8k"])
@pytest.mark.parametrize("local", [True, False])
def test_core_tasks_differ_from_lm_eval_only_in_data(
    tmp_path: Path, questions: Path, task: str, language: str, local: bool
) -> None:
    source = LocalQuestions(questions) if local else None
    (ours,) = written(tmp_path, Cell(task, language), questions=source).values()
    core = load_yaml(core_tasks() / TASKS[task].core.format(code=FLORES_CODES[language]))
    changed = {name for name in {*ours, *core} if ours.get(name) != core.get(name)}
    allowed = DATA | SPLITS | ({"process_results"} if task == "truthfulqa_mc2" else set())
    assert changed <= allowed
    if not local and language == "en":
        assert (ours["dataset_path"], ours.get("dataset_name")) == (core["dataset_path"], core.get("dataset_name"))


def test_mmlu_equals_lm_evals_group_of_57_subjects(tmp_path: Path) -> None:
    files = written(tmp_path, Cell("mmlu", "lt"))
    subjects = {name: content for name, content in files.items() if not name.startswith("_")}
    assert len(subjects) == 57
    for name, ours in subjects.items():
        core = load_yaml(core_tasks() / "mmlu" / "default" / f"mmlu_{name.removeprefix('mmlu.lt.')}.yaml")
        assert {key for key in {*ours, *core} if ours.get(key) != core.get(key)} <= DATA | SPLITS
        assert (ours["dataset_path"], ours["dataset_name"]) == ("neurotechnology/lt_mmlu", core["dataset_name"])
    groups = {content["group"]: content["task"] for name, content in files.items() if name.startswith("_")}
    assert groups["mmlu.lt"] == [
        f"mmlu.lt.{category}" for category in ("stem", "other", "social_sciences", "humanities")
    ]
    for category in ("stem", "other", "social_sciences", "humanities"):
        tag = load_yaml(core_tasks() / "mmlu" / "default" / f"_mmlu_{category}.yaml")["task"]
        core_members = {
            path.stem
            for path in (core_tasks() / "mmlu" / "default").glob("mmlu_*.yaml")
            if load_yaml(path)["tag"] in tag
        }
        assert {member.replace("mmlu.lt.", "mmlu_") for member in groups[f"mmlu.lt.{category}"]} == core_members


def test_lm_eval_loads_every_cell_of_the_miniature(tmp_path: Path, questions: Path) -> None:
    heldout = questions.parent / "text" / "heldout.lt.jsonl"
    config = EvaluateConfig(prompts=("core", "native"), shots={})
    for cell in expand_suites(config, "lt"):
        folder = tmp_path / cell.name
        write_task_files(folder, cell, questions=LocalQuestions(questions, cloze=True), heldout=heldout)
        tasks = load_tasks(cell, folder, (), seed=1234)
        assert tasks["tasks"] and all(len(task.eval_docs) for task in tasks["tasks"].values())


def test_few_shot_examples_have_the_set_number_and_are_never_scored_rows(tmp_path: Path, questions: Path) -> None:
    asked = prompts(tmp_path / "2", Cell("gsm8k", "en", shots=2), questions=LocalQuestions(questions))
    assert [prompt.count("Question:") for prompt in asked] == [3, 3, 3]
    train = {row["question"] for row in rows.read_rows(questions / "en" / "gsm8k" / "train.jsonl")}
    examples = {part.split("\nAnswer:")[0] for prompt in asked for part in prompt.split("Question: ")[1:-1]}
    assert examples <= train
    again, other = (
        prompts(tmp_path / "2", Cell("gsm8k", "en", shots=2), seed, questions=LocalQuestions(questions))
        for seed in (1234, 7)
    )
    assert asked == again != other  # the seed decides the draw
    assert [prompt.split("Question: ")[-1] for prompt in other] == [prompt.split("Question: ")[-1] for prompt in asked]


# ---------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize("task", ["arc_easy", "belebele", "gsm8k", "mmlu", "truthfulqa_mc2"])
@pytest.mark.parametrize("cloze", [False, True])
def test_native_prompts_contain_no_english_word(tmp_path: Path, questions: Path, task: str, cloze: bool) -> None:
    source = LocalQuestions(questions, cloze=cloze)
    core = prompts(tmp_path / "core", Cell(task, "lt"), questions=source)
    native = prompts(tmp_path / "native", Cell(task, "lt", "native"), questions=source)
    english = ("Question", "Answer", "Q:", "The following", "multiple choice")
    assert any(word in core[0] for word in english)
    assert not [word for word in english for prompt in native if word in prompt]
    assert len(core) == len(native)  # same rows and same answers


def test_native_words_exist_for_every_subject_and_every_worded_task() -> None:
    subjects = {path.stem.removeprefix("mmlu_") for path in (core_tasks() / "mmlu" / "default").glob("mmlu_*.yaml")}
    worded = {name for name, task in TASKS.items() if task.worded}
    for language, words in NATIVE.items():
        assert set(SUBJECTS[language]) == subjects
        assert set(words) == worded
    assert set(CLOZE) == {"en", "lt"}


def test_a_cloze_question_is_answered_with_words_not_letters(tmp_path: Path, questions: Path) -> None:
    for task in ("mmlu", "belebele"):
        lettered = prompts(tmp_path / "a", Cell(task, "en"), questions=LocalQuestions(questions))
        cloze = prompts(tmp_path / "b", Cell(task, "en"), questions=LocalQuestions(questions, cloze=True))
        assert lettered[0].endswith("Answer: A") and "\nAnswer: A" not in cloze[0]
        assert cloze[0].splitlines()[-1].startswith("Answer: ")


@pytest.mark.parametrize("local", [True, False])
def test_generated_answers_have_lm_evals_length_limit_by_default(tmp_path: Path, questions: Path, local: bool) -> None:
    source, cell = LocalQuestions(questions) if local else None, Cell("gsm8k", "en")
    long = written(tmp_path / "long", cell, questions=source)["gsm8k.en"]
    short = written(tmp_path / "short", cell, questions=source, max_gen_toks=32)["gsm8k.en"]
    assert "max_gen_toks" not in long["generation_kwargs"]
    assert short["generation_kwargs"]["max_gen_toks"] == 32


# ---------------------------------------------------------------------------------------------- rows


def test_a_line_separator_in_a_text_does_not_end_the_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one\u2028two"}\n\n{"text": "three"}\n', encoding="utf-8")
    assert [row["text"] for row in rows.read_rows(tmp_path / "a.jsonl")] == ["one\u2028two", "three"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "rows cannot be read"),
        ("", "contains no rows"),
        ('{"text": "a"}\n{"text', r"a.jsonl:2: not a JSON line"),
        ("[1]\n", r"a.jsonl:1: not an object"),
    ],
)
def test_unreadable_rows_are_named(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        rows.read_rows(tmp_path / "a.jsonl")


def test_empty_held_out_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "a"}\n')
    with pytest.raises(InputError, match=r"needs the column 'text' in every row; found \['body'\]"):
        rows.heldout_rows({"test": str(path)})
    path.write_text('{"text": " "}\n')
    with pytest.raises(InputError, match="every document is empty"):
        rows.heldout_rows({"test": str(path)})
    with pytest.raises(InputError, match="no held-out text 'lt'; set data.heldout_documents > 0"):
        write_task_files(tmp_path, Cell("ppl_heldout", "lt"), heldout=tmp_path / "none.jsonl")


def test_missing_questions_are_named(tmp_path: Path) -> None:
    source = LocalQuestions(tmp_path)
    with pytest.raises(InputError, match=r"arc_easy/test.jsonl: no such file; arc_easy.lt has no questions"):
        write_task_files(tmp_path / "t", Cell("arc_easy", "lt"), questions=source)
    with pytest.raises(InputError, match=r"no <subject>.jsonl; mmlu.lt has no questions"):
        write_task_files(tmp_path / "t", Cell("mmlu", "lt"), questions=source)
    (tmp_path / "lt" / "mmlu" / "test").mkdir(parents=True)
    (tmp_path / "lt" / "mmlu" / "test" / "alchemy.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="MMLU has no subject 'alchemy'; known: abstract_algebra"):
        write_task_files(tmp_path / "t", Cell("mmlu", "lt"), questions=source)
    (tmp_path / "lt" / "belebele").mkdir()
    (tmp_path / "lt" / "belebele" / "test.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=r"for 2 worked examples.*set evaluate.shots.belebele = 0"):
        write_task_files(tmp_path / "t", Cell("belebele", "lt", shots=2), questions=source)


def test_a_data_set_missing_from_the_cache_gives_the_prefetch_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "none")
    cell = Cell("arc_easy", "lt")
    write_task_files(tmp_path, cell)
    with pytest.raises(InputError) as caught:
        load_tasks(cell, tmp_path, (), seed=0)
    assert "arc_easy.lt: neurotechnology/lt_arc is not in this machine's cache" in str(caught.value)
    assert "run `hpc-ewc prefetch SWEEP.toml` on the login node" in str(caught.value)
    assert "https://huggingface.co/datasets/neurotechnology/lt_arc and log in with `hf auth login`" in str(caught.value)


def test_user_tasks_are_loaded_from_include(tmp_path: Path) -> None:
    (tmp_path / "quiz.jsonl").write_text('{"q": "2 + 2 =", "a": "4"}\n{"q": "1 + 1 =", "a": "2"}\n')
    task = {
        "task": "my_quiz",
        "custom_dataset": "FUNCTION",
        "dataset_path": "json",
        "dataset_kwargs": {"files": {"test": str(tmp_path / "quiz.jsonl")}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{q}}",
        "doc_to_choice": ["2", "4"],
        "doc_to_target": "a",
    }
    text = json.dumps(task).replace('"FUNCTION"', "!function hpc_ewc.evaluate.rows.local_rows")
    (tmp_path / "my_quiz.yaml").write_text(text)
    tasks = load_tasks(Cell("my_quiz", "lt", shots=None), tmp_path / "none", (str(tmp_path),), seed=0)
    assert list(tasks["tasks"]) == ["my_quiz"]
    with pytest.raises(InputError, match=r"not_there: no such task in lm-eval .* or in evaluate.include"):
        load_tasks(Cell("not_there", "lt", shots=None), tmp_path / "none", (str(tmp_path),), seed=0)


def test_lm_eval_tasks_are_found_without_reading_all_task_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[Path] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (read.append(path), read_bytes(path))[1])  # type: ignore[func-returns-value]
    for task, folder in (("xcopa_et", "xcopa"), ("lambada_openai", "lambada"), ("arc_challenge", "arc")):
        assert defining_folders(task) == [core_tasks() / folder]
    assert 0 < len(read) < 200
    assert defining_folders("no_such_task") == []


# ---------------------------------------------------------------------------------------------- scores


def test_mc2_equals_lm_evals_and_stays_finite_where_that_is_not() -> None:
    core = load_yaml(core_tasks() / "truthfulqa" / "truthfulqa_mc2.yaml")["process_results"]
    doc = {"mc2_targets": {"choices": list("abcd"), "labels": [1, 1, 0, 0]}}
    rng = np.random.default_rng(0)
    for scale in (1.0, 30.0, 200.0):
        results = [(float(value), False) for value in -scale * rng.random(4)]
        assert rows.score_mc2(doc, results)["acc"] == pytest.approx(core(doc, results)["acc"], rel=1e-12)
    diverged = [(-2000.0, False), (-2001.0, False), (-2002.0, False), (-2010.0, False)]
    with np.errstate(invalid="ignore"):
        assert math.isnan(core(doc, diverged)["acc"])
    assert rows.score_mc2(doc, diverged)["acc"] == pytest.approx(
        (1 + math.e**-1) / (1 + math.e**-1 + math.e**-2), rel=1e-3
    )


def test_document_perplexity_equals_its_definition() -> None:
    documents = [Document(10.0, 5, 4, 20), Document(30.0, 10, 8, 50), Document(2.0, 4, 3, 12)]
    metrics = {result["metric"]: result for result in summarise(documents)}
    assert metrics["perplexity"]["value"] == pytest.approx(math.exp(42 / 19))
    assert metrics["perplexity_mean"]["value"] == pytest.approx((math.exp(2) + math.exp(3) + math.exp(0.5)) / 3)
    assert metrics["perplexity_median"]["value"] == pytest.approx(math.exp(2))
    assert metrics["word_perplexity"]["value"] == pytest.approx(math.exp(42 / 15))
    assert metrics["byte_perplexity"]["value"] == pytest.approx(math.exp(42 / 82))
    assert metrics["bits_per_byte"]["value"] == pytest.approx(42 / 82 / math.log(2))
    assert metrics["nats"]["value"] == 42.0
    assert all(result["n"] == 3 and not result["higher_is_better"] for result in metrics.values())


def test_standard_errors_of_fluency_equal_a_bootstrap_over_documents() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(20, 400, size=300)
    documents = [Document(float(n * rng.normal(2.0, 0.3)), int(n), int(n), int(4 * n)) for n in tokens]
    resampled: dict[str, list[float]] = {}
    for _ in range(400):
        drawn = [documents[i] for i in rng.integers(0, len(documents), len(documents))]
        for result in summarise(drawn):
            resampled.setdefault(result["metric"], []).append(result["value"])
    for result in summarise(documents):
        if result["metric"] != "perplexity_median":
            assert result["stderr"] == pytest.approx(np.std(resampled[result["metric"]]), rel=0.2), result["metric"]


def test_one_document_has_no_standard_error() -> None:
    assert {result["stderr"] for result in summarise([Document(10.0, 5, 4, 20)])} == {None}


def test_truthfulqa_fluency_scores_the_question_a_newline_and_the_best_answer() -> None:
    doc = {"question": "Who?", "mc1_targets": {"choices": ["Nobody.", "Me."], "labels": [0, 1]}}
    assert rows.question_and_answer(doc) == "Who?\nMe."
    scores = rows.score_text(doc, [-3.0])
    assert scores["word_perplexity"] == (-3.0, 2) and scores["bits_per_byte"] == (-3.0, 8)
    assert rows.score_text({"text": "ąč ę"}, [-1.0])["byte_perplexity"] == (-1.0, 7)


def test_the_task_manager_indexes_only_needed_tasks(tmp_path: Path, questions: Path) -> None:
    write_task_files(tmp_path, Cell("mmlu", "en"), questions=LocalQuestions(questions))
    known = TaskManager(include_path=[str(tmp_path)], include_defaults=False).all_tasks
    assert len(known) == 6 + 4 + 1
