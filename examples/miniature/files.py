"""The files of the miniature: `text/` and `questions/`, made in seconds from the recipe in this folder alone."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from examples.miniature import questions, text
from examples.miniature.dice import Dice
from examples.miniature.grammar import GRAMMARS, Language
from examples.miniature.world import World
from hpc_ewc import records

DEFAULT_FOLDER: Final = Path("data") / "miniature"
"""Relative to the current folder, as the paths in `sweeps/miniature.toml` are."""
MODEL_FILES: Final = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
WORLD_SEED: Final = 0
TRAINING_DOCUMENTS: Final = 6000  # in each language
HELDOUT_DOCUMENTS: Final = 60  # the same ones in both
FISHER_DOCUMENTS: Final = 200
RECIPE: Final = ("dice.py", "world.py", "grammar.py", "text.py", "questions.py", "files.py", "base_model.py")


@functools.cache
def version() -> str:
    """The version of the recipe: the first 12 hex digits of the SHA-256 of its sources."""
    digest = hashlib.sha256()
    for name in RECIPE:
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()[:12]


def is_built(folder: Path) -> bool:
    """Whether texts and questions are there."""
    return (folder / "text").is_dir() and (folder / "questions").is_dir()


def is_pretrained(folder: Path) -> bool:
    """Whether the base model is there and complete."""
    return all((folder / "model" / name).is_file() for name in MODEL_FILES)


def fisher_files(folder: Path, prompt: str, split: str = "validation") -> list[Path]:
    """Files for the Fisher: English text for `prompt = "text"`, else the rows of MMLU's `split`, a file per subject."""
    english = folder / "questions" / "en"
    return [english / "fisher_text.jsonl"] if prompt == "text" else sorted((english / "mmlu" / split).glob("*.jsonl"))


def build(folder: Path = DEFAULT_FOLDER, *, world_seed: int = WORLD_SEED) -> Path:
    """Write `text/` and `questions/` and return the folder; existing parts of the same recipe are kept.

    Each part is written beside its place and renamed, so it is complete or absent. Of two processes that build at once
    the first one wins; both write the same bytes.

    Args:
        folder: where to write.
        world_seed: seed of the people and their facts.
    """
    _remove_other_recipe(folder, f"{version()} world_seed={world_seed}\n")
    if not is_built(folder):
        world = World(world_seed)
        _write_part(folder, "text", training_text(world))
        _write_part(folder, "questions", benchmark_questions(world))
    return folder


def _remove_other_recipe(folder: Path, recipe: str) -> None:
    """Remove what another recipe made, then write down this one: a part that is there is always of the recipe."""
    mark = folder / "recipe"
    if mark.is_file() and mark.read_text(encoding="utf-8") == recipe:
        return
    for name in ("text", "questions", "model"):
        shutil.rmtree(folder / name, ignore_errors=True)
    records.write_text(mark, recipe)


def training_text(world: World) -> dict[str, list[dict[str, Any]]]:
    """Rows of every file in `text/`: for pretraining (English), for task B (Lithuanian), and held out (parallel)."""
    rows: dict[str, list[dict[str, Any]]] = {}
    told: set[str] = set()
    shares_of: dict[Language, dict[text.Kind, float]] = {"en": text.PRETRAINING, "lt": text.TASK_B}
    for language, shares in shares_of.items():
        dice = Dice(world.seed, "train", language)
        documents = [text.document(world, language, shares, dice) for _ in range(TRAINING_DOCUMENTS)]
        told.update(documents)
        rows[f"train.{language}.jsonl"] = [{"text": document} for document in documents]
    heldout = [{language: _heldout(world, language, i) for language in GRAMMARS} for i in range(2 * HELDOUT_DOCUMENTS)]
    unseen = [pair for pair in heldout if not told & set(pair.values())][:HELDOUT_DOCUMENTS]
    assert len(unseen) == HELDOUT_DOCUMENTS, "too few documents that are not in the training text"
    for language in GRAMMARS:
        rows[f"heldout.{language}.jsonl"] = [{"text": pair[language]} for pair in unseen]
    return rows


def benchmark_questions(world: World) -> dict[str, list[dict[str, Any]]]:
    """Rows of every file in `questions/`: the benchmarks in both languages, and English text for the Fisher."""
    rows = {
        f"{language}/{path}": file
        for language, grammar in GRAMMARS.items()
        for path, file in questions.files(world, grammar)
    }
    dice = Dice(world.seed, "fisher")
    documents = [text.document(world, "en", text.PRETRAINING, dice) for _ in range(FISHER_DOCUMENTS)]
    rows["en/fisher_text.jsonl"] = [{"text": document} for document in documents]
    return rows


def _heldout(world: World, language: Language, i: int) -> str:
    """The i-th held-out document; equal dice, so the same document in every language."""
    return text.document(world, language, text.HELDOUT, Dice(world.seed, "heldout", i))


def _write_part(folder: Path, name: str, files: dict[str, list[dict[str, Any]]]) -> None:
    beside = folder / f".{name}.{os.getpid()}"
    for path, rows in files.items():
        records.write_text(beside / path, _json_lines(rows))
    move_into_place(beside, folder / name)


def move_into_place(beside: Path, place: Path) -> None:
    """Rename a finished folder to its place; if another process was faster, remove the folder instead."""
    try:
        beside.rename(place)
    except OSError:
        if not place.is_dir():
            raise
        shutil.rmtree(beside)
    records.flush_folder(place.parent)


def _json_lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
