"""One element, cells of every kind: one model, two ways to put BOS, and how long it will take."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpc_ewc import records
from hpc_ewc.evaluate import checkpoint, judge, models, scoring
from hpc_ewc.stage import Stage
from tests.end_to_end.evaluation import prepare, primary, run

QUIZ = """
task: my_quiz
custom_dataset: !function hpc_ewc.evaluate.rows.local_rows
dataset_path: json
dataset_kwargs: {files: {test: FILE}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{q}}"
doc_to_choice: ["2", "4"]
doc_to_target: a
"""


@pytest.fixture
def world(miniature: Path) -> Path:
    return miniature


def test_an_element_loads_its_model_once_for_questions_answers_and_texts_and_says_how_long_it_will_take(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cell of each kind, one of them a task of the user's own; the judge is another model, loaded once as well."""
    loaded: list[str] = []
    scorers: list[tuple[bool, int]] = []
    told: list[tuple[float, dict[str, Any]]] = []
    make, progress = scoring.Scorer, Stage.progress

    def counted(who: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def load(*args: Any, **kwargs: Any) -> Any:
            loaded.append(who)
            return original(*args, **kwargs)

        return load

    def counted_scorer(model: Any, *args: Any, whole_texts: bool, **kwargs: Any) -> Any:
        scorers.append((whole_texts, id(model)))
        return make(model, *args, whole_texts=whole_texts, **kwargs)

    def listening(self: Stage, done: float, total: float, unit: str, **fields: Any) -> None:
        told.append((done, fields))
        progress(self, done, total, unit, **fields)

    monkeypatch.setattr(models, "load_model", counted("model", checkpoint.load_model))
    monkeypatch.setattr(models, "load_tokenizer", counted("tokenizer", checkpoint.load_tokenizer))
    monkeypatch.setattr(judge, "load_model", counted("judge", checkpoint.load_model))
    monkeypatch.setattr(models, "Scorer", counted_scorer)
    monkeypatch.setattr(Stage, "progress", listening)

    (tmp_path / "tasks").mkdir()
    (tmp_path / "quiz.jsonl").write_text('{"q": "2 + 2 =", "a": "4"}\n{"q": "1 + 1 =", "a": "2"}\n')
    (tmp_path / "tasks" / "my_quiz.yaml").write_text(QUIZ.replace("FILE", str(tmp_path / "quiz.jsonl")))
    cells = ("arc_easy.en", "my_quiz.lt", "gsm8k.en", "judged_answers.en", "ppl_heldout.en", "winogrande.lt")
    cells += ("belebele.lt",)
    more: dict[str, Any] = {"include": [str(tmp_path / "tasks")], "judge": "a/judge", "judge_tokens": 8}
    stage = prepare(tmp_path / "paper", world, cells, limit=2, **more)
    facts = records.read_json(stage.stage_json)
    facts["inputs"]["judge"] = {"folder": str(world / "model"), "id": "j", "tokens": 8, "questions": {}}
    records.write_json(stage.stage_json, facts)
    run(stage)

    assert loaded == ["tokenizer", "model", "judge"]
    assert [whole for whole, _ in scorers] == [False, True]
    assert len({model for _, model in scorers}) == 1
    assert primary(stage, 0, "my_quiz.lt")["n"] == 2
    asked = [json.loads(line) for line in (world / "questions/lt/belebele/test.jsonl").read_text().split("\n")[:2]]
    passages = [hashlib.sha256(row["flores_passage"].encode()).hexdigest()[:12] for row in asked]
    clusters = {cell: [row.get("cluster") for row in records.read_samples(stage.samples(0, cell))] for cell in cells}
    assert clusters["belebele.lt"] == passages, "by which the report knows two questions on one passage"
    assert passages[0] == passages[1]
    assert clusters["arc_easy.en"] == [None, None]
    shots = {cell: records.read_json(stage.cell(0, cell))["shots"] for cell in cells}
    assert (shots["arc_easy.en"], shots["gsm8k.en"], shots["my_quiz.lt"]) == (1, 2, 0)

    assert [done for done, _ in told] == sorted(done for done, _ in told) and told[-1][0] == len(cells)
    for cell in cells:
        requests = [fields["requests"] for _, fields in told if fields.get("cell") == cell]
        assert requests and requests == sorted(requests) and requests[-1] > 1
    left = [fields["eta_s"] for _, fields in told if "eta_s" in fields]
    assert len(left) > 2 * len(cells) and min(left) >= 0 and left[-1] == 0 and max(left) > 0
