"""The checkpoints that a command line names: folders, globs and hub ids, checked by their files.

A checkpoint that this project exported has run, step, fraction and base in its `hpc_ewc.json`.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_ewc import hub, records
from hpc_ewc.config import ModelConfig
from hpc_ewc.errors import ArtefactError, ConfigError, InputError
from hpc_ewc.launch.inputs.source_files import local_path, retired_word
from hpc_ewc.model_folder import check_model
from hpc_ewc.sweep import plain_word

FACTS: dict[str, type | tuple[type, ...]] = {
    "run": str,
    "step": int,
    "fraction": (int, float),
    "train_key": str,
    "model_hash": str,
    "base_hash": str,
    "coordinates": dict,
}
"""Keys of hpc_ewc.json that are read here."""


@dataclass(frozen=True)
class CheckpointArg:
    """One checkpoint of the command line."""

    name: str
    """A hub id with or without `@revision`, or an absolute path."""
    facts: dict[str, Any] | None = None
    """Its hpc_ewc.json, if this project exported it."""

    @property
    def model(self) -> ModelConfig:
        path, _, revision = self.name.partition("@")
        return ModelConfig(path, revision or None) if hub.is_hub_id(path) else ModelConfig(self.name)

    @property
    def run(self) -> str:
        """`<folder name>-<key of its path>`."""
        return f"{plain_word(Path(self.model.path).name)[:100]}-{records.key_of(self.name)}"


def find_checkpoints(names: Sequence[str]) -> list[CheckpointArg]:
    """The checkpoints that folders, globs and hub ids name, each once.

    Raises:
        ConfigError: none is given, or two are copies of one export.
        InputError: some are not checkpoints or incomplete; the message lists all of them.
    """
    if not names:
        raise ConfigError("no checkpoint given; name folders, globs or hub ids, such as runs/x/train/*/exports/*")
    found: dict[str, CheckpointArg] = {}
    errors: list[str] = []
    for path in dict.fromkeys(path for name in names for path in _expand(name)):
        try:
            found[path] = _read_checkpoint(path)
        except (InputError, ArtefactError) as error:
            errors.append(str(error))
    if errors:
        raise InputError("; ".join(errors))
    _check_distinct(list(found.values()))
    return list(found.values())


def _expand(name: str) -> list[str]:
    """The absolute paths that a path or glob names, or a hub id unchanged."""
    path = local_path(name)
    if path.exists():
        return [str(path)]
    if retired := retired_word(name):
        raise InputError(f"{name}: {retired}")
    matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - an absolute pattern
    return matches or [name if hub.is_hub_id(name.partition("@")[0]) else str(path)]


def _read_checkpoint(name: str) -> CheckpointArg:
    if not name.startswith("/"):
        return CheckpointArg(name)
    check_model(Path(name))
    path = Path(name, "hpc_ewc.json")
    return CheckpointArg(name, _read_facts(path) if path.is_file() else None)


def _read_facts(path: Path) -> dict[str, Any]:
    """The content of hpc_ewc.json; raises ArtefactError unless an export wrote it."""
    facts = {"coordinates": {}} | records.read_json(path)
    wrong = [key for key, kind in FACTS.items() if not isinstance(facts.get(key), kind)]
    if wrong:
        raise ArtefactError(f"{path}: lacks {', '.join(wrong)}; corrupt or not written by hpc-ewc")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+=,-]*", facts["run"]):  # it becomes the name of a folder
        raise ArtefactError(f"{path}: run = {facts['run']!r}: not a name that submit gives; not written by hpc-ewc")
    if not 0 <= facts["fraction"] <= 1:
        raise ArtefactError(f"{path}: fraction = {facts['fraction']!r}: allowed is 0 to 1; not written by hpc-ewc")
    return facts


def _check_distinct(given: Sequence[CheckpointArg]) -> None:
    """Raise ConfigError if two are copies of one export, which would write the same record."""
    known: dict[tuple[str, float], str] = {}
    for checkpoint in given:
        if checkpoint.facts is not None:
            at = str(checkpoint.facts["run"]), float(checkpoint.facts["fraction"])
            if at in known:
                raise ConfigError(
                    f"{known[at]} and {checkpoint.name}: both say they are run {at[0]} at fraction {at[1]:g}; give one"
                )
            known[at] = checkpoint.name
