"""Files that an experiment names: paths and globs, and the files of a hub repository that are used."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from hpc_ewc import hub, records
from hpc_ewc.errors import ConfigError, InputError

TEXT_SUFFIXES = (".jsonl", ".parquet", ".txt")
COMPRESSIONS = (".gz", ".zst")
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "*.model", "vocab*", "merges*")
CHAT_TEMPLATE = "chat_template.jinja"
"""Fetched with a model; it changes no token of a corpus, so the identity of a tokenizer leaves it out."""


def local_path(name: str) -> Path:
    """A path of the TOML: `~` and `$VAR` expand, a relative one starts at the current folder."""
    return Path(os.path.expandvars(name)).expanduser().absolute()


def retired_word(name: str) -> str | None:
    """The fix for the word by which experiments of 0.1.0 name the demo's inputs; None for any other name."""
    if name != "miniature":
        return None
    return "no longer built in; run `python -m examples.miniature` and copy the paths from sweeps/miniature.toml"


def expand_files(names: Iterable[str], label: str) -> list[Path]:
    """The files that paths and globs name, in order, each once.

    Raises:
        ConfigError: a name matches no file, or a file that cannot be read by its suffix.
    """
    found: dict[Path, None] = {}
    for name in names:
        pattern = str(local_path(name))
        matches = sorted(path for path in map(Path, glob.glob(pattern, recursive=True)) if path.is_file())  # noqa: PTH207
        if not matches:
            raise ConfigError(f"{label}: {name!r} names no file; it was looked for as {pattern}")
        for path in matches:
            if kind_of(path) not in TEXT_SUFFIXES:
                raise ConfigError(
                    f"{label}: {path}: allowed are {', '.join(TEXT_SUFFIXES)}, also {' and '.join(COMPRESSIONS)}"
                )
            found[path] = None
    return list(found)


def kind_of(path: Path) -> str:
    """The suffix that says how a file is read, without that of a compression."""
    return Path(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix


def hub_files(
    kind: str, name: str, revision: str | None, choose: Callable[[Iterable[str]], list[str]], *, label: str, fix: str
) -> tuple[Path, list[Path]]:
    """The folder of a hub repository in this machine's cache, named after its commit, and the files that are used.

    Args:
        kind: model or dataset.
        name: hub id.
        revision: branch, tag or commit; None: main.
        choose: picks the files by their names.
        label: file and key for errors.
        fix: the command that fetches the repository.

    Raises:
        InputError: some or all of these files were not fetched.
    """
    fix = fix.replace("NAME", name)
    snapshot = hub.cached_snapshot(kind, name, revision)
    if snapshot is None:
        version = f" at {revision}" if revision else ""
        raise InputError(
            f"{label} = {name!r}: not in the cache {hub.cache()}{version}, and not a folder here; fetch it with: {fix}"
        )
    listing = hub.cached_listing(kind, name, snapshot.name)
    chosen = choose(listing or [str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if path.is_file()])
    if missing := hub.missing_files(snapshot, {file: listing[file] for file in chosen if listing}):
        raise InputError(
            f"{label} = {name!r}: {len(missing)} of {len(chosen)} files are not in the cache yet, such as "
            f"{missing[0]}; continue with: {fix}"
        )
    return snapshot, [snapshot / file for file in chosen]


def fetch_command(where: str) -> str:
    """The command that fetches what an experiment file names; for a single model, huggingface_hub's own."""
    return f"hpc-ewc prefetch {where}" if where.endswith(".toml") else "hf download NAME"


def model_files(names: Iterable[str]) -> list[str]:
    """The files of a model's repository that are used: weights, configuration, tokenizer, chat template.

    Not its weights in other formats, and nothing in folders.
    """
    patterns = (*records.MODEL_FILES, *TOKENIZER_FILES, CHAT_TEMPLATE)
    return sorted(name for name in names if "/" not in name and any(fnmatchcase(name, each) for each in patterns))


def choose_files(names: Iterable[str], subset: str, split: str) -> list[str]:
    """The text files of a subset and split, in order: both are folders of the path or begin the file's name.

    If no file is marked with the split, all of the subset are taken for "train": a corpus without splits.
    """
    files = [path for path in map(Path, names) if kind_of(path) in TEXT_SUFFIXES]
    if subset:
        files = [path for path in files if _is_marked(path, subset)]
    of_split = [path for path in files if _is_marked(path, split)]
    return [str(path) for path in sorted(of_split if of_split or split != "train" else files)]


def _is_marked(path: Path, word: str) -> bool:
    """Whether a folder of the path is `word`, or the file's name begins with it: validation-00000-of-00001.parquet."""
    return word in path.parts[:-1] or re.match(re.escape(word) + r"(?![A-Za-z0-9])", path.name) is not None
