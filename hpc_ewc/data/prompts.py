"""Rows of question data sets as an example: the tokens a model reads, and which of them are scored.

Schemas: MMLU (question, subject, choices, answer), ARC (question, choices {text, label}, answerKey), question and
answer in words, or text alone.
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
"""A text is cut here, as in the paper's code. Questions are never cut: an answer without its question says nothing."""

# Neurotechnology/LLM_EWC, compute_ewc_params.py, to the letter: no line break before "Example:", and two blanks before
# the subject, whose words are joined with one blank before each.
PAPER_HEAD = (
    "The following is a multiple choice question (with answers) about {subject}. "
    "Respond only with the letter corresponding to the right answer."
    "Example:\nHow much is 2+2?\nA. 0\nB. 2\nC. 4\nD. 9\nAnswer:\nC\n"
)


@dataclass(frozen=True)
class Example:
    """One example of the Fisher: the tokens from `first_scored` on are scored."""

    ids: list[int]
    first_scored: int


@dataclass(frozen=True)
class Question:
    """A question with its right answer, in words or as one of `choices`."""

    text: str
    subject: str
    choices: tuple[str, ...]
    answer: str
    letter: str


def build_example(row: Mapping[str, Any], config: FisherConfig, tokenizer: TextTokenizer) -> Example:
    """One row as tokens.

    Raises:
        BadText: the row lacks what the prompt needs.
    """
    if config.prompt == "paper":
        question = read_question(row)
        ids, answer = _encode(tokenizer, paper_prompt(question), ""), tokenizer.encode(question.letter)
        if len(answer) != 1:
            raise BadText(
                "tokenizer", f"the letter {question.letter!r} is {len(answer)} tokens; fisher.prompt = 'text'?"
            )
        return _scored(ids + answer, len(ids), config)
    if "text" in row:
        if config.tokens == "answer":
            raise BadText(
                "no answer", "a row of text has no answer to score; set fisher.tokens = 'all', or ask questions"
            )
        return _scored(_encode(tokenizer, _string(row, "text"), "")[:MAX_TEXT_TOKENS], 1, config)
    question = read_question(row)
    prompt = f"Question: {question.text}\nAnswer:"
    context = _encode(tokenizer, prompt, "")
    ids = _encode(tokenizer, prompt, f" {question.answer}")
    if ids[: len(context)] != context or len(ids) == len(context):
        # The answer's first letters changed the tokens of the question: take them apart, so just the answer is scored.
        ids = context + tokenizer.encode(f" {question.answer}")
    return _scored(ids, len(context), config)


def paper_prompt(question: Question) -> str:
    """The paper's prompt for MMLU; the model is to go on with the letter, as a token of its own."""
    if len(question.choices) != 4:
        raise BadText(
            "schema", f"{len(question.choices)} choices; the paper's prompt has 4: set fisher.prompt = 'text'"
        )
    subject = "".join(f" {word}" for word in question.subject.split("_"))
    choices = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, question.choices, strict=True))
    return f"{PAPER_HEAD.format(subject=subject)}{question.text}\n{choices}Answer:\n"


def read_question(row: Mapping[str, Any]) -> Question:
    """A row in the schema of MMLU, of ARC, or with question and answer in words; BadText where it is none of them."""
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
        raise BadText("schema", f"answer {key!r} is none of the {len(choices)} choices")
    return Question(text, subject, tuple(choices), choices[index], LETTERS[index] if index < 4 else "")


def _index(key: Any, labels: list[str], count: int) -> int | None:
    """The place of an answer given by its label, such as "B" or "2"; or by its number, from 0, as text."""
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
        raise BadText("schema", f"'{column}' must be a text: {what}; the row has {known or 'no columns'}")
    return value


def _encode(tokenizer: TextTokenizer, prompt: str, answer: str) -> list[int]:
    return [tokenizer.bos_id, *tokenizer.encode(prompt + answer)]


def _scored(ids: list[int], first: int, config: FisherConfig) -> Example:
    return Example(ids, 1 if config.tokens == "all" else first)
