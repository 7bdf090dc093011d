"""Answers that another model judges: the numbers, by hand; what is part of the cell key; empty answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hpc_ewc import records, suites
from hpc_ewc.config import build_experiment
from hpc_ewc.errors import ConfigError, StageError
from hpc_ewc.evaluate.fluency import Document
from hpc_ewc.evaluate.judge import judge_samples, repetition
from hpc_ewc.rundir import StageDir
from tests.end_to_end.evaluation import noised, prepare, run


@pytest.fixture(scope="module")
def world(miniature: Path) -> Path:
    return miniature


def with_judge(stage: StageDir, folder: Path, **more: Any) -> StageDir:
    """Write a judge into stage.json, as `submit` does."""
    facts = records.read_json(stage.stage_json)
    judge = {"folder": str(folder), "id": "j:12", "tokens": 12, "questions": {}} | more
    records.write_json(stage.stage_json, facts | {"inputs": facts["inputs"] | {"judge": judge}})
    return stage


def by_hand(model: Any, tokenizer: Any, question: str, answer: str) -> tuple[float, int]:
    """Return −log p(answer | BOS, question) and the number of its tokens, from one plain forward."""
    context = tokenizer.encode(f"Question: {question.strip()}\nAnswer:")
    whole = tokenizer.encode(f"Question: {question.strip()}\nAnswer: {answer.strip()}")
    logits = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return -sum(float(logits[i - 1, whole[i]]) for i in range(len(context), len(whole))), len(whole) - len(context)


def test_the_judge_s_perplexity_is_its_own_and_follows_what_is_said(world: Path, tmp_path: Path) -> None:
    cells = ["judged_answers.en"]
    judge = world / "model"
    good = with_judge(prepare(tmp_path / "paper", world, cells, judge="a/judge", judge_tokens=12), judge)
    run(good)
    record = records.read_checked(good.cell(0, cells[0]), "record")
    assert record["status"] == "ok", record["error"]
    values = {result["metric"]: result["value"] for result in record["results"]}
    (primary,) = (result for result in record["results"] if result["primary"])
    assert primary["metric"] == "nats_per_token" and not primary["higher_is_better"]
    assert values["length"] <= 12 and 0 <= values["repetition"] <= 1 and values["empty"] < 1

    model = AutoModelForCausalLM.from_pretrained(str(judge), dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(str(judge))
    rows = [json.loads(row) for row in (world / "questions/en/truthfulqa/validation.jsonl").read_text().splitlines()]
    nats = tokens = 0.0
    with torch.no_grad():
        for sample in records.read_samples(good.samples(0, cells[0])):
            if not sample["metrics"]["empty"]:
                mine = by_hand(model, tokenizer, rows[sample["doc_id"]]["question"], sample["response"])
                assert -sample["loglikelihoods"][0] == pytest.approx(mine[0], rel=1e-4)
                nats, tokens = nats + mine[0], tokens + mine[1]
    assert values["perplexity"] == pytest.approx(torch.tensor(nats / tokens).exp().item(), rel=1e-4)

    train = noised(world / "model", tmp_path / "train" / "r", 1.0)
    bad = prepare(tmp_path / "paper", world, cells, run="r", train=train, judge="a/judge", judge_tokens=12)
    run(with_judge(bad, judge))
    (worse,) = (r for r in records.read_json(bad.cell(10, cells[0]))["results"] if r["metric"] == "perplexity")
    assert worse["value"] > 2 * values["perplexity"]
    shown = subprocess.run(
        [sys.executable, "-m", "hpc_ewc.report", str(tmp_path / "paper"), "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "160"},
    )
    assert "English: answers, judged by another model" in shown.stdout, shown.stdout + shown.stderr
    assert "Not taken" not in shown.stdout, shown.stdout


def test_who_judges_and_what_is_asked_are_part_of_a_cell(tmp_path: Path) -> None:
    cell = suites.Cell("judged_answers", "lt")
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"question": "Kas?"}\n')
    judges = [
        {"id": "a:9", "questions": {}},
        {"id": "b:9", "questions": {}},
        {"id": "a:9", "questions": {"lt": str(asked)}},
    ]
    hashes = {suites.data_hash(cell, questions=None, heldout=None, judge=judge) for judge in judges}
    assert len(hashes) == 3
    asked.write_text('{"question": "Kur?"}\n')
    assert suites.data_hash(cell, questions=None, heldout=None, judge=judges[2]) not in hashes


def evaluate_config(**settings: Any) -> Any:
    table = {"model": {"path": "m"}, "data": {"source": "a/corpus"}, "evaluate": settings}
    return build_experiment(table, "x.toml").evaluate


def test_there_is_such_a_cell_only_with_a_judge() -> None:
    def names(**settings: Any) -> list[str]:
        cells = suites.expand_suites(evaluate_config(suites=["fluency"], **settings), "lt")
        return [cell.name for cell in cells if cell.task == "judged_answers"]

    assert names() == []
    assert names(judge="org/judge") == ["judged_answers.en", "judged_answers.lt"]
    assert names(judge="org/judge", judge_questions={"lt": "asked.jsonl"}) == ["judged_answers.lt"]
    with pytest.raises(
        ConfigError, match=r"evaluate\.suites: 'judged_answers\.lt' needs a judge model: set evaluate\.judge"
    ):
        suites.expand_suites(evaluate_config(suites=["judged_answers.lt"]), "lt")


def test_repetition_is_the_share_of_four_words_that_came_before() -> None:
    assert repetition(["a"] * 3) == 0
    assert repetition(list("abcdefgh")) == 0
    assert repetition(["la"] * 11) == pytest.approx(7 / 8)
    assert repetition(list("abcdabcd")) == pytest.approx(1 / 5)


class FakeJudge:
    """Gives every answer the same score."""

    def read(self, prompts: list[str], answers: list[str]) -> list[Document]:
        return [Document(2.0, 2, 1, 4) for _ in answers]


def test_an_empty_answer_is_counted_and_not_judged() -> None:
    samples: list[dict[str, Any]] = [
        {"response": text, "metrics": {}, "filter": "none"} for text in ("yes", " ", "no no")
    ]
    results = {result["metric"]: result for result in judge_samples(FakeJudge(), samples, ["q"] * 3)}  # type: ignore[arg-type]
    assert (results["perplexity"]["n"], results["empty"]["value"]) == (2, pytest.approx(1 / 3))
    assert [sample["metrics"]["empty"] for sample in samples] == [0, 1, 0]
    assert [sample["filter"] for sample in samples] == ["none", "empty", "none"]
    assert (results["nats_per_token"]["value"], results["nats_per_token"]["n"]) == (1.0, 2)
    with pytest.raises(StageError, match=r"all 1 answers are empty: there is nothing to judge"):
        judge_samples(FakeJudge(), [{"response": "", "metrics": {}, "filter": "none"}], ["q"])  # type: ignore[arg-type]
