"""Our subclass of lm-eval's HFLM: BOS once per request; batches fit, stop on request and do not change scores."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from examples.miniature.base_model import build_model, train_tokenizer
from hpc_ewc.evaluate import scoring
from hpc_ewc.evaluate.scoring import Scorer, StopRequested

TEXT = (
    "Ona gyvena Vilniuje ir augina katę. Jonas gyvena Kaune ir augina šunį, o ryte eina į darbą. "
    "Anna lives in Vilnius and keeps a cat. John lives in Kaunas, keeps a dog, and walks to work in the morning. "
)
BOS = 2
LENGTHS = (*range(4, 24), *range(4, 14), 60, 100, 110, 120, 200, 300)  # lengths of documents in letters


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer([TEXT] * 4, vocabulary=340)


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    torch.manual_seed(0)
    return build_model(tokenizer).eval()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Tensor]]:
    """Record the token ids of every batch that reaches the model."""
    batches: list[torch.Tensor] = []
    call, generate = HFLM._model_call, HFLM._model_generate

    def spy_call(self: Any, inps: torch.Tensor, *args: Any) -> Any:
        batches.append(inps)
        return call(self, inps, *args)

    def spy_generate(self: Any, context: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        batches.append(context)
        return generate(self, context, *args, **kwargs)

    monkeypatch.setattr(HFLM, "_model_call", spy_call)
    monkeypatch.setattr(HFLM, "_model_generate", spy_generate)
    yield batches


def scorer(model: Any, tokenizer: Any, **changes: Any) -> Scorer:
    return Scorer(model, tokenizer, **{"batch_size": 4, "max_length": 128, "whole_texts": False} | changes)


def choices(n: int = 6) -> list[Instance]:
    asked = [f"{TEXT[: 20 + 7 * i]}\nAnswer:" for i in range(n)]
    return [Instance("loglikelihood", {}, (text, answer), 0) for text in asked for answer in (" Vilnius", " a dog")]


def documents(*lengths: int) -> list[Instance]:
    return [Instance("loglikelihood_rolling", {}, ((TEXT * 9)[:length],), 0) for length in lengths]


def prompts(*lengths: int) -> list[Instance]:
    kwargs = {"until": ["\n\n"], "max_gen_toks": 8, "do_sample": False}
    return [Instance("generate_until", {}, ((TEXT * 9)[:length] + "\nAnswer:", dict(kwargs)), 0) for length in lengths]


def logprob(model: Any, context: list[int], scored: list[int]) -> float:
    """Return log p(`scored` | `context`), from one plain forward in float64."""
    ids = torch.tensor([context + scored])
    with torch.no_grad():
        logs = model.double()(ids).logits[0].log_softmax(-1)
    model.float()
    rows = range(len(context) - 1, ids.shape[1] - 1)
    return float(sum(logs[i, ids[0, i + 1]] for i in rows))


def assert_bos_once_and_first(batches: list[torch.Tensor], pad: int) -> None:
    rows = [row for batch in batches for row in batch.tolist()]
    assert rows
    for row in rows:
        assert row.count(BOS) == 1, row
        assert row[next(i for i, token in enumerate(row) if token != pad)] == BOS, row


def test_bos_appears_once_before_a_question(model: Any, tokenizer: Any, seen: list[torch.Tensor]) -> None:
    scorer(model, tokenizer).loglikelihood(choices())
    assert_bos_once_and_first(seen, tokenizer.pad_token_id)


def test_bos_appears_once_before_a_bare_continuation(model: Any, tokenizer: Any, seen: list[torch.Tensor]) -> None:
    scorer(model, tokenizer).loglikelihood([Instance("loglikelihood", {}, ("", TEXT[:40]), 0)])
    assert_bos_once_and_first(seen, tokenizer.pad_token_id)


def test_bos_appears_once_before_a_generated_answer(model: Any, tokenizer: Any, seen: list[torch.Tensor]) -> None:
    scorer(model, tokenizer).generate_until(prompts(30, 60, 90, 45, 10))
    assert_bos_once_and_first(seen, tokenizer.pad_token_id)


def test_bos_appears_once_before_each_part_of_a_document(model: Any, tokenizer: Any, seen: list[torch.Tensor]) -> None:
    whole = scorer(model, tokenizer, whole_texts=True)
    whole.loglikelihood_rolling(documents(40, 900, 200))
    assert_bos_once_and_first(seen, tokenizer.pad_token_id)
    assert len({tuple(row) for batch in seen for row in batch.tolist()}) > 3  # the long document was split


def test_bos_is_kept_if_a_long_prompt_is_truncated(model: Any, tokenizer: Any, seen: list[torch.Tensor]) -> None:
    asked = scorer(model, tokenizer, max_length=48)
    long = [Instance("loglikelihood", {}, (TEXT * 3 + "\nAnswer:", " Vilnius"), 0), *choices(2)]
    asked.loglikelihood(long)
    assert asked.truncated == 1
    asked.generate_until(prompts(500, 20, 400))
    assert asked.truncated == 3
    assert_bos_once_and_first(seen, tokenizer.pad_token_id)
    assert max(batch.shape[1] for batch in seen) <= 48


@pytest.mark.parametrize("ask", ["questions", "letters", "documents", "answers"])
def test_the_number_of_requests_is_known_before_the_first(model: Any, tokenizer: Any, ask: str) -> None:
    """Progress can then estimate the time left in a cell; one-token choices after a shared context are one request."""
    seen: list[tuple[int, int]] = []
    asked = scorer(model, tokenizer, whole_texts=ask == "documents")
    asked.on_batch = lambda requests: seen.append((requests, asked.expected))
    match ask:
        case "questions":
            asked.batch_invariance = 0.0  # the probe's repeated requests are not counted
            asked.loglikelihood(choices())
        case "letters":
            texts = [f"{TEXT[: 30 + i]}\nAnswer:" for i in range(5)]
            asked.loglikelihood([Instance("loglikelihood", {}, (text, f" {c}"), 0) for text in texts for c in "ABCD"])
        case "documents":
            asked.loglikelihood_rolling(documents(40, 900, 200))
        case "answers":
            asked.generate_until(prompts(30, 60, 90, 45, 10))
    assert sum(requests for requests, _ in seen) == seen[0][1] == seen[-1][1] > 4


def test_questions_are_scored_as_in_lm_eval(model: Any, tokenizer: Any) -> None:
    plain = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=128)
    ours = scorer(model, tokenizer).loglikelihood(choices())
    assert_same(ours, plain.loglikelihood(choices(), disable_tqdm=True))


def assert_same(ours: list[tuple[float, bool]], theirs: list[tuple[float, bool]]) -> None:
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in theirs], abs=1e-5)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


def mixed(tokenizer: Any) -> list[Instance]:
    """Return requests for letters, words, sentences and padding; some share a context, and two split one text."""
    pad = tokenizer.decode([0])
    pairs = [(f"{TEXT[: 15 * i]}\nAnswer:", f" {letter}") for i in range(1, 5) for letter in "ABCD"]
    pairs += [(TEXT[: 9 * i], TEXT[9 * i : 9 * i + 40]) for i in range(1, 6)]
    pairs += [("Ona gyvena", " Vilniuje"), ("Ona", " gyvena Vilniuje"), ("", TEXT[:30]), ("Ona gyvena", f" Kaune{pad}")]
    return [Instance("loglikelihood", {}, pair, 0) for pair in pairs]


def test_logits_are_computed_only_for_scored_tokens_and_scores_are_unchanged(model: Any, tokenizer: Any) -> None:
    plain = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=6, max_length=128)
    asked: list[tuple[int, int]] = []
    layers = model.model.register_forward_hook(lambda module, given, out: asked.append((out[0].shape[1], 0)))
    head = model.lm_head.register_forward_hook(lambda module, given, out: asked.append((0, out.shape[1])))
    try:
        theirs = plain.loglikelihood(mixed(tokenizer), disable_tqdm=True)
        assert sum(read for read, _ in asked) == sum(kept for _, kept in asked)
        asked.clear()
        less = scorer(model, tokenizer, batch_size=6)
        less.batch_invariance = 0.0  # no probe
        assert_same(less.loglikelihood(mixed(tokenizer)), theirs)
        asked.clear()
        less.loglikelihood(choices())
        assert sum(kept for _, kept in asked) < 0.7 * sum(read for read, _ in asked)
        asked.clear()
        scorer(model, tokenizer, whole_texts=True).loglikelihood_rolling(documents(40, 900))
        assert sum(read for read, _ in asked) == sum(kept for _, kept in asked)
    finally:
        layers.remove()
        head.remove()
    assert not model._forward_pre_hooks


def test_models_that_cannot_skip_the_head_are_scored(model: Any, tokenizer: Any) -> None:
    class Old(type(model)):  # type: ignore[misc]
        def forward(self, input_ids: torch.Tensor) -> Any:
            return super().forward(input_ids)

    old = Old(model.config).eval()
    old.load_state_dict(model.state_dict())
    assert_same(
        scorer(old, tokenizer).loglikelihood(mixed(tokenizer)), scorer(model, tokenizer).loglikelihood(mixed(tokenizer))
    )


def test_documents_are_scored_as_in_lm_eval_without_the_second_bos(model: Any, tokenizer: Any) -> None:
    plain = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=128, add_bos_token=False)
    twice = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=128)
    ours = scorer(model, tokenizer, whole_texts=True).loglikelihood_rolling(documents(40, 80, 200))
    assert ours == pytest.approx(plain.loglikelihood_rolling(documents(40, 80, 200), disable_tqdm=True), abs=1e-4)
    assert ours != pytest.approx(twice.loglikelihood_rolling(documents(40, 80, 200), disable_tqdm=True), abs=1e-2)


def test_a_long_documents_score_is_the_sum_of_parts_each_after_bos(model: Any, tokenizer: Any) -> None:
    text = (TEXT * 9)[:900]
    tokens = tokenizer.encode(text, add_special_tokens=False)
    assert len(tokens) > 3 * 64
    expected = sum(logprob(model, [BOS], tokens[i : i + 64]) for i in range(0, len(tokens), 64))
    whole = scorer(model, tokenizer, whole_texts=True, max_length=64)
    assert whole.loglikelihood_rolling(documents(900)) == pytest.approx([expected], rel=1e-5)
    whole = scorer(model, tokenizer, whole_texts=True, max_length=512)  # the model's own limit is 512
    assert whole.loglikelihood_rolling(documents(900)) == pytest.approx([logprob(model, [BOS], tokens)], rel=1e-5)


def test_the_models_position_limit_takes_precedence(model: Any, tokenizer: Any) -> None:
    assert scorer(model, tokenizer, max_length=100_000).max_length == model.config.max_position_embeddings


def test_a_batch_that_does_not_fit_is_halved_with_equal_scores(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = scorer(model, tokenizer).loglikelihood(choices())
    answers = scorer(model, tokenizer).generate_until(prompts(30, 60, 90, 45))
    call, generate = HFLM._model_call, HFLM._model_generate

    def small_call(self: Any, inps: torch.Tensor, *args: Any) -> Any:
        if len(inps) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return call(self, inps, *args)

    def small_generate(self: Any, context: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(context) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return generate(self, context, *args, **kwargs)

    monkeypatch.setattr(HFLM, "_model_call", small_call)
    monkeypatch.setattr(HFLM, "_model_generate", small_generate)
    small = scorer(model, tokenizer, batch_size=8)
    with caplog.at_level(logging.WARNING):
        found = small.loglikelihood(choices())
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4)
    assert small.smallest_batch_size == 2 and "batch size is now 2" in caplog.text
    small = scorer(model, tokenizer, batch_size=8)
    assert small.generate_until(prompts(30, 60, 90, 45)) == answers
    assert small.smallest_batch_size == 2


def test_errors_other_than_out_of_memory_are_not_retried(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Any, inps: torch.Tensor, *args: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(HFLM, "_model_call", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        scorer(model, tokenizer).loglikelihood(choices())


def test_batches_are_planned_for_the_available_memory(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, seen: list[torch.Tensor]
) -> None:
    expected = scorer(model, tokenizer, whole_texts=True, batch_size=64).loglikelihood_rolling(documents(*LENGTHS))
    seen.clear()
    monkeypatch.setattr(scoring, "free_memory", lambda device: 3 * 60 * model.config.vocab_size * 20 / 0.8)
    planned = scorer(model, tokenizer, whole_texts=True, batch_size=8)
    planned.on_batch = lambda requests: None
    found = planned.loglikelihood_rolling(documents(*LENGTHS))
    assert found == pytest.approx(expected, abs=1e-4)
    assert all(batch.numel() <= 3 * 60 for batch in seen if len(batch) > 1)
    assert max(len(batch) for batch in seen) == 8  # short requests are not limited by the long ones
    assert planned.smallest_batch_size == 1 and planned.batch_size == 8


def test_the_probe_finds_only_rounding_in_a_sound_model(
    model: Any, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    sound = scorer(model, tokenizer)
    with caplog.at_level(logging.WARNING):
        sound.loglikelihood(choices())
    assert sound.batch_invariance is not None and sound.batch_invariance < 1e-4
    assert "depend on the batch" not in caplog.text


def test_the_probe_warns_with_the_difference_if_batches_change_scores(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    call = HFLM._model_call

    def leaking(self: Any, inps: torch.Tensor, *args: Any) -> Any:
        logits = call(self, inps, *args)
        return logits * 1.5 if len(inps) > 1 else logits

    monkeypatch.setattr(HFLM, "_model_call", leaking)
    leaky = scorer(model, tokenizer)
    with caplog.at_level(logging.WARNING):
        leaky.loglikelihood(choices())
    assert leaky.batch_invariance is not None and leaky.batch_invariance > 0.1
    assert f"scores depend on the batch: up to {leaky.batch_invariance:.3g} nats" in caplog.text


def test_the_longest_requests_come_first(model: Any, tokenizer: Any, seen: list[torch.Tensor]) -> None:
    """Batches then waste little on padding, and a batch that does not fit fails at once."""
    asked = scorer(model, tokenizer)
    asked.batch_invariance = 0.0  # no probe
    asked.loglikelihood(mixed(tokenizer))
    questions = [batch.shape[1] for batch in seen]
    seen.clear()
    asked.generate_until(prompts(30, 90, 60, 10, 45, 120, 20, 80, 70))
    answers = [batch.shape[1] for batch in seen]
    for lengths in (questions, answers):
        assert len(lengths) > 2 and lengths == sorted(lengths, reverse=True) and lengths[0] > lengths[-1]


def test_a_stop_request_takes_effect_between_two_batches(model: Any, tokenizer: Any, seen: list[torch.Tensor]) -> None:
    def stop_at_the_third(requests: int) -> None:
        if len(seen) == 2:
            raise StopRequested

    stopped = scorer(model, tokenizer, on_batch=stop_at_the_third)
    with pytest.raises(StopRequested):
        stopped.loglikelihood(choices())
    assert len(seen) == 2
