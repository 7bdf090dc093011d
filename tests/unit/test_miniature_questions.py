"""The miniature's questions: benchmark schemas, parallel rows, correct answers and atomic files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from examples.miniature import files, questions
from examples.miniature.__main__ import main
from examples.miniature.grammar import ENGLISH, GRAMMARS, LITHUANIAN
from examples.miniature.world import World
from tests.conftest import REPOSITORY

Row = dict[str, Any]

# files in ../shared/data/en, and our files with the same schema
REAL = {
    "arc_easy_validation": "arc_easy/*.jsonl",
    "belebele_test": "belebele/*.jsonl",
    "gsm8k_test": "gsm8k/*.jsonl",
    "hellaswag_validation": "hellaswag/*.jsonl",
    "mmlu_test": "mmlu/*/*.jsonl",
    "winogrande_validation": "winogrande/*.jsonl",
    "truthfulqa_validation": "truthfulqa/*.jsonl",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return files.build(tmp_path_factory.mktemp("built"))


def rows_of(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def shape(value: Any) -> Any:
    """Return the nested types; a list by the type of its elements."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


@pytest.mark.parametrize(("real", "ours"), sorted(REAL.items()))
def test_rows_have_the_schema_of_the_real_benchmark(shared_data: Path, built: Path, real: str, ours: str) -> None:
    expected = shape(rows_of(shared_data / "en" / f"{real}.jsonl")[0])
    found = [path for language in GRAMMARS for path in (built / "questions" / language).glob(ours)]
    assert found
    for path in found:
        for row in rows_of(path):
            assert shape(row) == expected, path


def test_every_split_read_by_core_tasks_exists(built: Path) -> None:
    for language in GRAMMARS:
        names = {
            str(path.relative_to(built / "questions" / language))
            for path in (built / "questions" / language).rglob("*.jsonl")
        }
        assert names >= {
            *(f"arc_easy/{split}.jsonl" for split in ("train", "validation", "test")),
            "belebele/test.jsonl",
            *(f"gsm8k/{split}.jsonl" for split in ("train", "test")),
            *(f"hellaswag/{split}.jsonl" for split in ("train", "validation")),
            *(f"mmlu/{split}/{subject}.jsonl" for split in questions.MMLU_ROWS for subject in questions.SUBJECTS),
            "truthfulqa/validation.jsonl",
            *(f"winogrande/{split}.jsonl" for split in ("train", "validation")),
        }


def test_rows_are_parallel_and_correct_in_both_languages() -> None:
    """Row i has its correct answer at the same position in both languages, in different words."""
    world = World(0)
    english, lithuanian = dict(questions.files(world, ENGLISH)), dict(questions.files(world, LITHUANIAN))
    assert english.keys() == lithuanian.keys()
    keys = ("answerKey", "correct_answer_num", "label", "subject", "link", "question_number", "id", "source_id")
    for path, rows in english.items():
        assert len(rows) == len(lithuanian[path]) > 0
        for row, other in zip(rows, lithuanian[path], strict=True):
            assert [row.get(key) for key in keys] == [other.get(key) for key in keys]
            assert row != other
            if "gsm8k" in path:
                assert row["answer"].split("#### ")[1] == other["answer"].split("#### ")[1]
            elif "mmlu" in path or "winogrande" in path:
                assert row["answer"] == other["answer"]


def test_only_correct_answers_are_true_in_the_world() -> None:
    world = World(1)
    for grammar in GRAMMARS.values():
        rows = dict(questions.files(world, grammar))
        truth = {
            grammar.question(topic, person): grammar.word(world.value((person, topic)), female=person.female)
            for person, topic in world.facts
        }
        checked = 0
        for row in rows["arc_easy/test.jsonl"]:
            if row["question"] in truth:
                right = row["choices"]["text"]["ABCD".index(row["answerKey"])]
                assert right == truth[row["question"]] and len(set(row["choices"]["text"])) == 4
                checked += 1
        assert checked == len(world.facts)
        for row in rows["belebele/test.jsonl"]:
            assert row[f"mc_answer{row['correct_answer_num']}"] == truth[row["question"]]
        for row in rows["truthfulqa/validation.jsonl"]:
            assert row["mc1_targets"]["labels"][0] == 1 and sum(row["mc1_targets"]["labels"]) == 1
            assert sum(row["mc2_targets"]["labels"]) == 2 and len(set(row["mc2_targets"]["choices"])) == 6
        for row in rows["gsm8k/test.jsonl"]:
            numbers = [int(word) for word in row["question"].split() if word.isdigit()]
            assert row["answer"].endswith(f"#### {sum(numbers)}")
        for row in rows["winogrande/validation.jsonl"]:
            assert row["sentence"].count("_") == 1 and row["option1"] != row["option2"]


def test_correct_answers_occur_at_every_position() -> None:
    """Always choosing one position scores about a quarter, like chance."""
    rows = dict(questions.files(World(0), ENGLISH))
    for path, key in (("arc_easy/test.jsonl", "answerKey"), ("hellaswag/validation.jsonl", "label")):
        counts = Counter(row[key] for row in rows[path])
        assert len(counts) == 4 and max(counts.values()) < 0.45 * len(rows[path])


def test_no_question_occurs_twice_in_the_same_words() -> None:
    for grammar in GRAMMARS.values():
        for path, rows in questions.files(World(0), grammar):
            said = [json.dumps({**row, "id": "", "ind": 0, "source_id": ""}, ensure_ascii=False) for row in rows]
            assert len(set(said)) == len(said), path


def test_text_is_long_enough_to_train_on_and_heldout_text_is_not_in_it(built: Path) -> None:
    for language in GRAMMARS:
        train = {row["text"] for row in rows_of(built / "text" / f"train.{language}.jsonl")}
        heldout = [row["text"] for row in rows_of(built / "text" / f"heldout.{language}.jsonl")]
        assert len(train) > 0.8 * files.TRAINING_DOCUMENTS
        assert len(heldout) == files.HELDOUT_DOCUMENTS and train.isdisjoint(heldout)
    assert all(row["text"] for row in rows_of(built / "questions" / "en" / "fisher_text.jsonl"))


def test_bytes_do_not_depend_on_the_process(built: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.miniature", "--without-model", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, env={"PYTHONHASHSEED": "7"}, capture_output=True, text=True)
    assert done.stdout == f"{tmp_path}\n", done.stderr
    paths = sorted(path.relative_to(built) for path in built.rglob("*.jsonl"))
    assert paths == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.jsonl"))
    for path in paths:
        assert (built / path).read_bytes() == (tmp_path / path).read_bytes()


def test_build_keeps_existing_files_and_makes_missing_ones(tmp_path: Path) -> None:
    folder = files.build(tmp_path / "new")
    mark = folder / "text" / "train.en.jsonl"
    mark.write_text("kept", encoding="utf-8")
    assert files.build(folder) == folder
    assert mark.read_text(encoding="utf-8") == "kept"
    (folder / "questions").rename(folder / "gone")
    files.build(folder)
    assert (folder / "questions" / "lt" / "arc_easy" / "test.jsonl").is_file()
    assert mark.read_text(encoding="utf-8") == "kept"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_another_recipe_or_world_is_rebuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = files.build(tmp_path)
    (folder / "model").mkdir()
    first = (folder / "text" / "train.en.jsonl").read_bytes()
    files.build(folder, world_seed=1)
    assert (folder / "text" / "train.en.jsonl").read_bytes() != first
    assert not (folder / "model").exists(), "a model trained on the other world is removed"
    files.build(folder)
    assert (folder / "text" / "train.en.jsonl").read_bytes() == first
    mark = folder / "text" / "train.en.jsonl"
    mark.write_text("old", encoding="utf-8")
    monkeypatch.setattr(files, "version", lambda: "another")
    files.build(folder)
    assert mark.read_bytes() == first


def test_the_default_folder_is_data_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--without-model"]) == 0
    folder = Path("data/miniature")
    assert files.is_built(folder) and not files.is_pretrained(folder)
    assert [path.name for path in files.fisher_files(folder, "text")] == ["fisher_text.jsonl"]
    paper = files.fisher_files(folder, "paper", "validation")
    assert [path.stem for path in paper] == sorted(questions.SUBJECTS) and all(path.is_file() for path in paper)


def test_the_version_names_the_recipe() -> None:
    assert len(files.version()) == 12 and int(files.version(), 16) >= 0
    sources = {path.name for path in Path(files.__file__).parent.glob("*.py")}
    assert sources - set(files.RECIPE) == {"__init__.py", "__main__.py", "criterion.py"}
