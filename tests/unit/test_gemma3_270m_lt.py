"""Data of the real experiment: disjoint, reproducible, and made only from the real files."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from hpc_ewc.evaluate.rows import read_rows

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def prepare() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gemma3_270m_lt", REPOSITORY / "sweeps" / "gemma3_270m_lt.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_fisher_uses_no_evaluated_question(prepare: ModuleType, shared_data: Path, tmp_path: Path) -> None:
    prepare.write_questions(shared_data, tmp_path)
    fisher = [row["question"] for row in read_rows(tmp_path / "fisher" / "mmlu.jsonl")]
    asked = [row for path in (tmp_path / "questions/en/mmlu/test").glob("*.jsonl") for row in read_rows(path)]
    assert len(fisher) == 57 * prepare.FISHER_ROWS and len(asked) == 57 * prepare.ROWS["mmlu"]
    assert not set(fisher) & {row["question"] for row in asked}
    assert {row["subject"] for row in asked} == {path.stem for path in (tmp_path / "questions/en/mmlu/test").iterdir()}


def test_rows_and_texts_are_reproducible_and_parallel(prepare: ModuleType, shared_data: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        prepare.write_questions(shared_data, tmp_path / folder)
        prepare.write_texts(shared_data, tmp_path / folder / "text")
    files = [path.relative_to(tmp_path / "a") for path in sorted((tmp_path / "a").rglob("*.jsonl"))]
    assert len(files) == 57 + 5 + 2 + 6
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    flores = {
        language: [
            row["text"] for row in read_rows(shared_data / f"{language}_text" / f"sib200_flores_{language}.jsonl")
        ]
        for language in ("en", "lt")
    }
    sides = {language: read_rows(tmp_path / "a/text" / f"flores.{language}.jsonl") for language in ("en", "lt")}
    places = [flores["en"].index(row["text"]) for row in sides["en"]]
    assert [flores["lt"][place] for place in places] == [row["text"] for row in sides["lt"]]


def test_scored_statutes_are_not_in_the_training_text(prepare: ModuleType, shared_data: Path, tmp_path: Path) -> None:
    prepare.write_texts(shared_data, tmp_path)
    trained = [row["text"] for row in read_rows(tmp_path / "statutes_train.jsonl")]
    scored = [row["text"] for row in read_rows(tmp_path / "statutes.lt.jsonl")]
    assert len(scored) == prepare.HELDOUT_STATUTES
    assert len(trained) + len(scored) == len(read_rows(shared_data / "lt_text" / "statutes_train.jsonl"))
    assert not any(document.startswith(beginning) for beginning in scored for document in trained)


def test_missing_real_data_is_named(prepare: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare.main(["--shared", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    assert "set --shared to the folder of real texts" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_selection_does_not_depend_on_file_order(prepare: ModuleType) -> None:
    rows = [{"question": str(number)} for number in range(50)]
    assert prepare.chosen(rows, 7) == prepare.chosen(rows[::-1], 7)
    assert json.dumps(prepare.chosen(rows, 50)) != json.dumps(rows)
