"""A small made world in English and Lithuanian: texts, benchmark questions, a base model; for the demo and the tests.

    <cache>/miniature/<version>/
      text/       train.{en,lt}.jsonl  heldout.{en,lt}.jsonl                      {"text": …}; held-out text is parallel
      questions/  {en,lt}/arc_easy/{train,validation,test}.jsonl  belebele/test.jsonl  gsm8k/{train,test}.jsonl
                  hellaswag/{train,validation}.jsonl  mmlu/{dev,validation,test}/<subject>.jsonl
                  truthfulqa/validation.jsonl  winogrande/{train,validation}.jsonl    en/fisher_text.jsonl
      model/      a Hugging Face folder: a tiny Gemma2, pretrained on the English text, and its tokenizer

`build` writes the first two in pure Python, in seconds; `pretrain` makes the third in under a minute, once.
"""

from __future__ import annotations

from pathlib import Path

from hpc_ewc.miniature.files import build, default_folder, is_built, version

__all__ = ["build", "default_folder", "fisher_files", "is_built", "is_pretrained", "model_dir", "pretrain", "version"]

MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def model_dir(folder: Path | None = None) -> Path:
    """Where the base model stands, or will."""
    return (folder or default_folder()) / "model"


def is_pretrained(folder: Path | None = None) -> bool:
    """Whether the base model is there, whole (it is put in place by one rename)."""
    return all((model_dir(folder) / name).is_file() for name in MODEL_FILES)


def fisher_files(prompt: str, split: str = "validation", folder: Path | None = None) -> list[Path]:
    """The Fisher's data: English text for `prompt = "text"`, else the rows of MMLU's `split`, a file a subject."""
    questions = (folder or default_folder()) / "questions" / "en"
    if prompt == "text":
        return [questions / "fisher_text.jsonl"]
    return sorted((questions / "mmlu" / split).glob("*.jsonl"))


def pretrain(folder: Path | None = None) -> Path:
    """Make the base model if it is missing, and return its folder. Imports torch; takes under a minute on two cores."""
    from hpc_ewc.miniature.base_model import make

    return make(build(folder))
