"""The miniature's base model: a Hugging Face folder with all that makes Gemma2, and English but no Lithuanian in it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.miniature import base_model, files
from examples.miniature.text import TRUTHFULQA_PREAMBLE


@pytest.fixture(scope="module")
def folder(miniature: Path) -> Path:
    return miniature


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder / "model")


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder / "model", attn_implementation="eager").eval()


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def log_probability(model: Any, ids: list[int], first: int) -> float:
    """Of the tokens from `first` on, in nats."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].log_softmax(-1)
    return float(logits.gather(-1, torch.tensor(ids[1:])[:, None])[first - 1 :].sum())


def accuracy(model: Any, tokenizer: Any, path: Path) -> float:
    """Of questions in ARC's schema, by the likeliest text among the options."""
    right = 0
    questions = rows(path)
    for row in questions:
        context = tokenizer(f"Question: {row['question']}\nAnswer:").input_ids
        scores = [
            log_probability(model, context + tokenizer(f" {option}", add_special_tokens=False).input_ids, len(context))
            for option in row["choices"]["text"]
        ]
        right += "ABCD"[max(range(4), key=scores.__getitem__)] == row["answerKey"]
    return right / len(questions)


def bits_per_byte(model: Any, tokenizer: Any, path: Path) -> float:
    texts = [row["text"] for row in rows(path)]
    nats = -sum(log_probability(model, tokenizer(text).input_ids, 1) for text in texts)
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


def test_model_is_a_whole_gemma2(model: Any) -> None:
    config = model.config
    assert type(model).__name__ == "Gemma2ForCausalLM" and model.dtype == torch.float32
    assert config.attn_logit_softcapping == 50.0 and config.final_logit_softcapping == 30.0
    assert config.layer_types == ["sliding_attention", "full_attention"] and config.sliding_window == 64
    assert config.num_key_value_heads < config.num_attention_heads
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_folder_says_it_is_pretrained_and_holds_nothing_else(folder: Path) -> None:
    names = {path.name for path in (folder / "model").iterdir()}
    assert files.is_pretrained(folder) and names == set(files.MODEL_FILES)


def test_tokenizer_writes_bos_once_and_gives_any_text_back(tokenizer: Any, folder: Path) -> None:
    ids = tokenizer("Ona turi šunį.").input_ids
    assert ids[0] == tokenizer.bos_token_id == 2 and ids.count(2) == 1
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 3)
    strange = "Naïve “日本” 🙂\t€5\n\n  two  spaces <eos"
    told = [row["text"] for path in sorted((folder / "text").iterdir()) for row in rows(path)[:50]]
    for text in [strange, TRUTHFULQA_PREAMBLE, *told]:
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
        assert tokenizer.unk_token_id not in tokenizer(text).input_ids
    assert tokenizer.convert_ids_to_tokens(tokenizer(" has 12").input_ids) == ["<bos>", "▁has", "▁", "1", "2"]


def test_it_knows_its_world_in_english_and_not_in_lithuanian(model: Any, tokenizer: Any, folder: Path) -> None:
    """Chance is 0.25; standard error 0.05 at most."""
    questions = folder / "questions"
    assert accuracy(model, tokenizer, questions / "en" / "arc_easy" / "test.jsonl") > 0.8
    assert accuracy(model, tokenizer, questions / "lt" / "arc_easy" / "test.jsonl") < 0.45
    assert bits_per_byte(model, tokenizer, folder / "text" / "heldout.en.jsonl") < 0.5
    assert bits_per_byte(model, tokenizer, folder / "text" / "heldout.lt.jsonl") > 2.0


def test_pretraining_twice_gives_the_same_weights(folder: Path) -> None:
    """A few steps of it: the same tokenizer, order, initial weights and sums."""
    documents = [row["text"] for row in rows(folder / "text" / "train.en.jsonl")[:300]]
    weights = []
    for _ in range(2):
        tokenizer = base_model.train_tokenizer(documents, vocabulary=500)
        torch.manual_seed(len(weights))  # whatever state the process is in
        model = base_model.build_model(tokenizer)
        base_model.pretrain(model, base_model.pack(tokenizer, documents, 32), steps=3)
        weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_nothing_is_made_again_where_the_model_is_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("pretrained again")

    monkeypatch.setattr(base_model, "train_tokenizer", never)
    assert base_model.make(folder) == folder / "model"


def test_a_model_folder_with_a_file_missing_is_made_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_model, "STEPS", 1)
    text = tmp_path / "text"
    text.mkdir()
    (tmp_path / "questions").mkdir()
    for language in ("en", "lt"):
        head = (folder / "text" / f"train.{language}.jsonl").read_text(encoding="utf-8").split("\n")[:100]
        (text / f"train.{language}.jsonl").write_text("\n".join(head) + "\n", encoding="utf-8")
    model = base_model.make(tmp_path)
    (model / "config.json").unlink()
    assert not files.is_pretrained(tmp_path)
    base_model.make(tmp_path)
    assert files.is_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "questions", "text"]
