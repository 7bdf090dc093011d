"""Examples for the Fisher: the paper's exact prompt, the right tokens scored, and batches that can be resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_ewc.config import FisherConfig
from hpc_ewc.data import TextTokenizer, load_tokenizer, question_batches
from hpc_ewc.data.prompts import Question, build_example, paper_prompt, read_question
from hpc_ewc.errors import InputError
from tests.unit.data_corpus import write_compressed, write_jsonl, write_model, write_parquet

CHOICES = ["the", "old", "cold", "wet"]
MMLU = {"question": "Is a stone wet?", "subject": "abstract_algebra", "choices": CHOICES, "answer": 3}
BOS, PAD = 2, 0


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return load_tokenizer(write_model(tmp_path_factory.mktemp("model")))


def fisher(**changes: Any) -> FisherConfig:
    return FisherConfig(**({"source": "files", "files": ("x",)} | changes))


def scored(ids: list[int], labels: list[int], tokenizer: TextTokenizer) -> str:
    return str(tokenizer.backend.decode([i for i, label in zip(ids, labels, strict=True) if label != -100]))


# ---------------------------------------------------------------------------------------------- the prompts

PAPER = """The following is a multiple choice question (with answers) about  abstract algebra. Respond only with the \
letter corresponding to the right answer.Example:
How much is 2+2?
A. 0
B. 2
C. 4
D. 9
Answer:
C
Is a stone wet?
A. the
B. old
C. cold
D. wet
Answer:
"""


def test_the_prompt_equals_the_papers(tokenizer: TextTokenizer) -> None:
    assert paper_prompt(read_question(MMLU)) == PAPER
    example = build_example(MMLU, fisher(), tokenizer)
    assert example.ids == [BOS, *tokenizer.encode(PAPER), *tokenizer.encode("D")]
    assert example.first_scored == len(example.ids) - 1  # only the letter


def test_the_papers_prompt_is_made_for_each_answer(tokenizer: TextTokenizer) -> None:
    for answer, letter in enumerate("ABCD"):
        example = build_example(MMLU | {"answer": answer}, fisher(), tokenizer)
        assert example.ids[-1:] == tokenizer.encode(letter)


def test_all_tokens_except_bos_can_be_scored(tokenizer: TextTokenizer) -> None:
    assert build_example(MMLU, fisher(tokens="all"), tokenizer).first_scored == 1
    assert build_example({"text": "old trees"}, fisher(prompt="text", tokens="all"), tokenizer).first_scored == 1


@pytest.mark.parametrize(
    ("row", "context", "answer"),
    [
        (MMLU, "Question: Is a stone wet?\nAnswer:", " wet"),
        ({"question": "Upė?", "answer": "žemė"}, "Question: Upė?\nAnswer:", " žemė"),
        (
            {"question": "Q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
            "Question: Q\nAnswer:",
            " y",
        ),
    ],
)
def test_only_the_answer_of_a_worded_question_is_scored(
    tokenizer: TextTokenizer, row: dict[str, Any], context: str, answer: str
) -> None:
    example = build_example(row, fisher(prompt="text"), tokenizer)
    decode = tokenizer.backend.decode
    assert decode(example.ids[1 : example.first_scored]) == context
    assert decode(example.ids[example.first_scored :]) == answer
    assert example.ids == [BOS, *tokenizer.encode(context + answer)]


def test_an_answer_that_would_merge_with_the_question_is_tokenised_separately(tokenizer: TextTokenizer) -> None:
    """The tokenizer would merge "Answer:" and " cold" into one token; still only the answer is scored."""

    class Joining:
        bos_id = BOS

        def encode(self, text: str) -> list[int]:
            return [7] if text.endswith(": cold") else [8, 9] if text == " cold" else [5, 6]

    example = build_example({"question": "q", "answer": "cold"}, fisher(prompt="text"), Joining())
    assert (example.ids, example.first_scored) == ([BOS, 5, 6, 8, 9], 3)


def test_long_texts_are_truncated_and_questions_are_not(tokenizer: TextTokenizer) -> None:
    long = "cold " * 3000
    text = build_example({"text": long}, fisher(prompt="text", tokens="all"), tokenizer)
    assert text.ids == [BOS, *tokenizer.encode(long)][:1024]  # as in the paper's code
    question = build_example(MMLU | {"question": long}, fisher(), tokenizer)
    assert len(question.ids) > 3000
    assert question.ids[-1:] == tokenizer.encode("D")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (MMLU, Question("Is a stone wet?", "abstract_algebra", ("the", "old", "cold", "wet"), "wet", "D")),
        (MMLU | {"answer": "B"}, Question("Is a stone wet?", "abstract_algebra", tuple(CHOICES), "old", "B")),
        (MMLU | {"answer": "0"}, Question("Is a stone wet?", "abstract_algebra", tuple(CHOICES), "the", "A")),
        (
            {"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "1"},
            Question("q", "", ("x", "y"), "x", "A"),
        ),
        ({"question": "q", "answer": "#### 5"}, Question("q", "", (), "#### 5", "")),
    ],
)
def test_schemas_of_benchmarks_are_read(row: dict[str, Any], expected: Question) -> None:
    assert read_question(row) == expected


# ---------------------------------------------------------------------------------------------- bad rows

BAD = [
    ({"question": "q", "choices": ["a", "b"], "answer": 2}, {}, r"answer 2 is not one of the 2 choices"),
    ({"question": "q", "choices": ["a", "b"], "answer": "E"}, {}, r"answer 'E' is not one of the 2 choices"),
    ({"question": "q", "choices": ["a", "b"], "answer": True}, {}, r"answer True is not one of"),
    (
        {"question": "q", "choices": ["a", "b"], "answer": 0},
        {},
        r"2 choices; the paper's prompt has 4: set fisher",
    ),
    ({"question": "q", "choices": "abcd", "answer": 0}, {}, r"'choices' is neither a list of texts nor"),
    ({"question": "q", "choices": [1, 2], "answer": 0}, {}, r"'choices' is neither a list of texts nor"),
    ({"question": "q", "choices": ["a"], "answer": 0, "subject": 3}, {}, r"'subject' holds int, not text"),
    ({"text": "a"}, {}, r"'question' must be text: no column; the row has text"),
    ({"question": None}, {}, r"'question' must be text: nothing"),
    ({"question": "q"}, {"prompt": "text"}, r"'answer' must be text: no column; the row has question"),
    ({"question": "q", "answer": 4}, {"prompt": "text"}, r"'answer' must be text: 4"),
    ({"text": "a"}, {"prompt": "text"}, r"a row of text has no answer to score; set fisher\.tokens = 'all'"),
    ({"text": 5}, {"prompt": "text", "tokens": "all"}, r"'text' must be text: 5"),
]


@pytest.mark.parametrize(("row", "changes", "message"), BAD)
def test_a_bad_row_is_named_with_file_and_line(
    tmp_path: Path, tokenizer: TextTokenizer, row: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    good = {"text": "a"} if changes.get("tokens") == "all" else MMLU
    path = write_jsonl(tmp_path / "q.jsonl", [good, row])
    with pytest.raises(InputError, match=rf"q\.jsonl:2: {message}"):
        list(question_batches(fisher(**changes), [path], tokenizer, rank=0, world_size=1))


@pytest.mark.parametrize(("line", "message"), [("{", "not JSON"), ("[]", "not a JSON object"), (b"\xff", "not UTF-8")])
def test_a_broken_line_is_named(tmp_path: Path, tokenizer: TextTokenizer, line: str | bytes, message: str) -> None:
    raw = line if isinstance(line, bytes) else line.encode()
    path = write_compressed(tmp_path / "q.jsonl", json.dumps(MMLU).encode() + b"\n" + raw + b"\n")
    with pytest.raises(InputError, match=rf"q\.jsonl:2: {message}"):
        question_batches(fisher(), [path], tokenizer, rank=0, world_size=1)


def test_zero_examples_are_refused(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    path = write_compressed(tmp_path / "q.jsonl", b"\n")
    with pytest.raises(InputError, match=r"the Fisher has no examples: .*q\.jsonl; set fisher\.files"):
        question_batches(fisher(), [path], tokenizer, rank=0, world_size=1)
    with pytest.raises(InputError, match="the Fisher has no examples: no file"):
        question_batches(fisher(), [], tokenizer, rank=0, world_size=1)


def test_a_tokenizer_that_splits_an_answer_letter_is_refused(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    class Splitting:
        bos_id = BOS

        def encode(self, text: str) -> list[int]:
            return [4, 5]

    from hpc_ewc.data.files import BadText

    with pytest.raises(BadText, match="the letter 'D' is 2 tokens"):
        build_example(MMLU, fisher(), Splitting())


# ---------------------------------------------------------------------------------------------- batches


def rows_of(count: int) -> list[dict[str, Any]]:
    return [MMLU | {"question": f"Is stone {i} wet?" + " very" * (i % 5), "answer": i % 4} for i in range(count)]


def test_a_batch_is_padded_on_the_right_and_scores_the_answers(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    files = [
        write_jsonl(tmp_path / "q.jsonl", rows_of(4)),
        write_parquet(tmp_path / "r.parquet", {key: [row[key] for row in rows_of(7)[4:]] for key in MMLU}),
    ]
    batches = question_batches(fisher(batch_size=3), files, tokenizer, rank=0, world_size=1)
    assert (batches.total, len(batches)) == (7, 3)
    found = list(batches)
    assert [batch["examples"].tolist() for batch in found] == [[0, 1, 2], [3, 4, 5], [6]]
    for batch in found:
        for row, g in enumerate(batch["examples"].tolist()):
            example = build_example(rows_of(7)[g], fisher(), tokenizer)
            length = len(example.ids)
            rest = batch["input_ids"].shape[1] - length
            assert batch["input_ids"][row].tolist() == example.ids + [PAD] * rest
            assert batch["attention_mask"][row].tolist() == [1] * length + [0] * rest
            assert batch["labels"][row].tolist() == [-100] * (length - 1) + example.ids[-1:] + [-100] * rest
            assert scored(example.ids, batch["labels"][row, :length].tolist(), tokenizer) == "ABCD"[g % 4]
    assert batches.describe(3) == f"{files[0]}:4"
    assert batches.describe(5) == f"{files[1]}: row 2"


@given(
    total=st.integers(1, 40),
    world=st.integers(1, 5),
    next_world=st.integers(1, 5),
    size=st.integers(1, 6),
    done=st.integers(0, 4),
)
@settings(max_examples=40, deadline=None)
def test_a_run_resumed_on_other_ranks_uses_each_example_once(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: TextTokenizer,
    total: int,
    world: int,
    next_world: int,
    size: int,
    done: int,
) -> None:
    path = write_jsonl(tmp_path_factory.mktemp("deal") / "q.jsonl", rows_of(total))

    def dealt(ranks: int, start: int, batches: int | None) -> list[int]:
        found = []
        for rank in range(ranks):
            mine = question_batches(
                fisher(batch_size=size), [path], tokenizer, rank=rank, world_size=ranks, start=start
            )
            found += [g for batch in list(mine)[:batches] for g in batch["examples"].tolist()]
        return found

    start = done * size * world
    first = dealt(world, 0, done)
    assert sorted(first) == list(range(min(start, total)))
    assert sorted(first + dealt(next_world, start, None)) == list(range(total))


def test_batches_are_the_same_on_every_call(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    path = write_jsonl(tmp_path / "q.jsonl", rows_of(9))
    twice = [list(question_batches(fisher(), [path], tokenizer, rank=1, world_size=2)) for _ in range(2)]
    for a, b in zip(*twice, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_max_examples_reads_only_the_first_examples(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    files = [*(write_jsonl(tmp_path / f"{i}.jsonl", rows_of(5)) for i in range(2)), tmp_path / "never opened.jsonl"]
    batches = question_batches(fisher(max_examples=7), files, tokenizer, rank=0, world_size=1)
    assert batches.total == 7
    assert batches.describe(6) == f"{files[1]}:2"


def test_examples_can_come_from_text_files(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    path = write_compressed(tmp_path / "a.txt.gz", b"old trees\n\nevery stone\n")
    (batch,) = question_batches(fisher(prompt="text", tokens="all"), [path], tokenizer, rank=0, world_size=1)
    assert tokenizer.backend.decode(batch["input_ids"][0].tolist()) == "old trees"
    assert batch["labels"][:, 0].tolist() == [-100, -100]


def test_the_miniatures_questions_are_read(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    from examples.miniature import files

    folder = files.build(tmp_path / "miniature")
    for prompt, tokens in (("paper", "answer"), ("text", "all")):
        paths = files.fisher_files(folder, prompt)
        config = fisher(files=(), prompt=prompt, tokens=tokens, max_examples=8)
        (batch,) = question_batches(config, paths, tokenizer, rank=0, world_size=1)
        count = (batch["labels"] != -100).sum(1)
        assert count.tolist() == [1] * 8 if tokens == "answer" else (count == batch["attention_mask"].sum(1) - 1).all()


def test_real_mmlu_questions_are_read(shared_data: Path, tokenizer: TextTokenizer) -> None:
    path = shared_data / "en" / "mmlu_dev.jsonl"
    rows = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    batches = question_batches(fisher(), [path], tokenizer, rank=0, world_size=1)
    assert batches.total == len(rows) == 285
    letters = [
        tokenizer.backend.decode(ids[labels != -100].tolist())
        for batch in batches
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True)
    ]
    assert letters == ["ABCD"[row["answer"]] for row in rows]
