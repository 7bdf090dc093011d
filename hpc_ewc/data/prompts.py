"""Turn rows of question data sets into examples: the tokens a model reads, and which of them are scored.

Schemas: MMLU (question, subject, choices, answer), ARC (question, choices {text, label}, answerKey), question and
answer in words, or text only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpc_ewc.config import FisherConfig
from hpc_ewc.data.files import BadText
from hpc_ewc.data.tokenizer import TextTokenizer

LETTERS = "ABCD"
MAX_TEXT_TOKENS = 1024
"""Texts are cut at this length, as in the paper's code. Questions are never cut: the answer needs its question."""

# Exactly as in Neurotechnology/LLM_EWC, compute_ewc_params.py: no line break before "Example:", and two spaces before
# the subject, whose words have one space before each.
PAPER_HEAD = (
    "The following is a multiple choice question (with answers) about {subject}. "
    "Respond only with the letter corresponding to the right answer."
    "Example:\nHow much is 2+2?\nA. 0\nB. 2\nC. 4\nD. 9\nAnswer:\nC\n"
)


@dataclass(frozen=True)
class Example:
    """One example of the Fisher, whose tokens from `first_scored` on are scored."""

    ids: list[int]
    first_scored: int


@dataclass(frozen=True)
class Question:
    """A question with its correct answer, in words or as one of `choices`."""

    text: str
    subject: str
    choices: tuple[str, ...]
    answer: str
    letter: str


def build_example(row: Mapping[str, Any], config: FisherConfig, tokenizer: TextTokenizer) -> Example:
    """Return the tokens of a row.

    Raises:
        BadText: the row lacks a column that the prompt needs.
    """
    if config.prompt == "paper":
        question = read_question(row)
        prompt, answer = _encode(tokenizer, paper_prompt(question)), tokenizer.encode(question.letter)
        if len(answer) != 1:
            raise BadText(
                "tokenizer", f"the letter {question.letter!r} is {len(answer)} tokens; set fisher.prompt = 'text'"
            )
        ids = prompt + answer
    elif "text" in row:
        if config.tokens == "answer":
            raise BadText(
                "no answer", "a row of text has no answer to score; set fisher.tokens = 'all', or use questions"
            )
        prompt, ids = [tokenizer.bos_id], _encode(tokenizer, _string(row, "text"))[:MAX_TEXT_TOKENS]
    else:
        question = read_question(row)
        text, answer_text = f"Question: {question.text}\nAnswer:", f" {question.answer}"
        prompt, ids = _encode(tokenizer, text), _encode(tokenizer, text + answer_text)
        if ids[: len(prompt)] != prompt or len(ids) == len(prompt):
            # the answer's first letters changed the tokens of the question: encode them apart, to score only the answer
            ids = prompt + tokenizer.encode(answer_text)
    return Example(ids, 1 if config.tokens == "all" else len(prompt))


def paper_prompt(question: Question) -> str:
    """Return the paper's prompt for MMLU; the answer is the letter, as a separate token."""
    if len(question.choices) != 4:
        raise BadText(
            "schema", f"{len(question.choices)} choices; the paper's prompt has 4: set fisher.prompt = 'text'"
        )
    subject = "".join(f" {word}" for word in question.subject.split("_"))
    choices = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, question.choices, strict=True))
    return f"{PAPER_HEAD.format(subject=subject)}{question.text}\n{choices}Answer:\n"


def read_question(row: Mapping[str, Any]) -> Question:
    """Return the question in a row; BadText if its schema is not MMLU, ARC, or question and answer in words."""
    text, subject = _string(row, "question"), row.get("subject", "")
    if not isinstance(subject, str):
        raise BadText("schema", f"'subject' holds {type(subject).__name__}, not text")
    choices, labels = row.get("choices"), list(LETTERS)
    if choices is None:
        return Question(text, subject, (), _string(row, "answer"), "")
    if isinstance(choices, Mapping):
        labels = [str(label) for label in choices.get("label", [])]
        choices = choices.get("text")
    if not isinstance(choices, (list, tuple)) or not all(isinstance(choice, str) for choice in choices):
        raise BadText("schema", "'choices' is neither a list of texts nor {text, label}")
    key = row.get("answer", row.get("answerKey"))
    index = key if isinstance(key, int) and not isinstance(key, bool) else _index(key, labels, len(choices))
    if index is None or not 0 <= index < len(choices):
        raise BadText("schema", f"answer {key!r} is not one of the {len(choices)} choices")
    return Question(text, subject, tuple(choices), choices[index], LETTERS[index] if index < 4 else "")


def _index(key: Any, labels: list[str], count: int) -> int | None:
    """Return the index of an answer given as a label, such as "B" or "2", or as an index in text, from 0."""
    if not isinstance(key, str):
        return None
    if key in labels[:count]:
        return labels.index(key)
    return int(key) if key.isascii() and key.isdigit() else None


def _string(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        what = "no column" if column not in row else "nothing" if value is None or value == "" else f"{value!r}"
        known = ", ".join(map(str, row))
        raise BadText("schema", f"'{column}' must be text: {what}; the row has {known or 'no columns'}")
    return value


def _encode(tokenizer: TextTokenizer, text: str) -> list[int]:
    return [tokenizer.bos_id, *tokenizer.encode(text)]
