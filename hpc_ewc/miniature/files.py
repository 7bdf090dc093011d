"""The miniature's files: `text/` and `questions/`, made in seconds from the recipe in this package alone."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from hpc_ewc import records, rundir
from hpc_ewc.miniature import questions, text
from hpc_ewc.miniature.dice import Dice
from hpc_ewc.miniature.grammar import GRAMMARS, Language
from hpc_ewc.miniature.world import World

WORLD_SEED: Final = 0
TRAINING_DOCUMENTS: Final = 6000  # in each language
HELDOUT_DOCUMENTS: Final = 60  # the same ones in both
FISHER_DOCUMENTS: Final = 200
RECIPE: Final = ("dice.py", "world.py", "grammar.py", "text.py", "questions.py", "files.py", "base_model.py")


@functools.cache
def version() -> str:
    """Names what `build` and `pretrain` make: the first 12 hex digits of the SHA-256 of their sources."""
    digest = hashlib.sha256()
    for name in RECIPE:
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()[:12]


def default_folder() -> Path:
    """`<cache>/miniature/<version>`: where the miniature of this version of the package stands."""
    return rundir.cache_dir() / "miniature" / version()


def is_built(folder: Path) -> bool:
    return (folder / "text").is_dir() and (folder / "questions").is_dir()


def build(folder: Path | None = None, *, world_seed: int = WORLD_SEED) -> Path:
    """Write `text/` and `questions/`, and return the folder; what is there already is kept.

    Each of the two is written beside its place and renamed, so that it is whole or absent; of two builders that run at
    once the first wins, and both have the same bytes.

    Args:
        folder: where to; `default_folder()` if None.
        world_seed: draws the people and their facts. Only the default belongs into the default folder.
    """
    folder = folder or default_folder()
    if not is_built(folder):
        world = World(world_seed)
        _write_part(folder, "text", training_text(world))
        _write_part(folder, "questions", benchmark_questions(world))
    return folder


def training_text(world: World) -> dict[str, list[dict[str, Any]]]:
    """The rows of every file under `text/`: for pretraining (English), task B (Lithuanian), and held out (parallel)."""
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
    assert len(unseen) == HELDOUT_DOCUMENTS, "too few documents that the training text does not hold"
    for language in GRAMMARS:
        rows[f"heldout.{language}.jsonl"] = [{"text": pair[language]} for pair in unseen]
    return rows


def benchmark_questions(world: World) -> dict[str, list[dict[str, Any]]]:
    """The rows of every file under `questions/`: the benchmarks in both languages, and English text for the Fisher."""
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
    """The i-th document of prose that is held out: the same dice, so the same document, in every language."""
    return text.document(world, language, text.HELDOUT, Dice(world.seed, "heldout", i))


def _write_part(folder: Path, name: str, files: dict[str, list[dict[str, Any]]]) -> None:
    """Write the files beside `folder/name`, then give them that name, unless another process just did."""
    beside = folder / f".{name}.{os.getpid()}"
    for path, rows in files.items():
        records.write_text(beside / path, _json_lines(rows))
    keep(beside, folder / name)


def keep(beside: Path, place: Path) -> None:
    """Rename a finished folder to its place; where there is one already, that one stays and this one goes."""
    try:
        beside.rename(place)
    except OSError:
        if not place.is_dir():
            raise
        shutil.rmtree(beside)
    records.flush_folder(place.parent)


def _json_lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
