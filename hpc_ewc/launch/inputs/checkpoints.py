"""The checkpoints that a command line names: folders, globs and hub ids, each looked at as far as its files tell.

One that this project exported explains itself by its `hpc_ewc.json`: run, step, fraction, base.
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
    """As it was given: a hub id with or without `@revision`, an absolute path."""
    facts: dict[str, Any] | None = None
    """Its hpc_ewc.json, if this project exported it."""

    @property
    def model(self) -> ModelConfig:
        path, _, revision = (
            self.name.partition("@") if hub.is_hub_id(self.name.partition("@")[0]) else (self.name, "", "")
        )
        return ModelConfig(path=path, revision=revision or None)

    @property
    def run(self) -> str:
        """`<folder name>-<key of its path>`."""
        return f"{plain_word(Path(self.model.path).name)[:100]}-{records.key_of(self.name)}"


def find_checkpoints(names: Sequence[str]) -> list[CheckpointArg]:
    """The checkpoints that folders, globs and hub ids name, each once, whole as far as their files tell.

    Raises:
        ConfigError: none is given, or two are copies of one export.
        InputError: some are not checkpoints, or not whole; all of them are listed.
    """
    if not names:
        raise ConfigError("no checkpoint given; name folders, globs or hub ids, such as runs/x/train/*/exports/*")
    found: dict[str, CheckpointArg] = {}
    wrong: list[str] = []
    for name in names:
        for path in _expand(name):
            try:
                found.setdefault(path, _look_at(path))
            except (InputError, ArtefactError) as error:
                wrong.append(str(error))
    if wrong:
        raise InputError("; ".join(wrong))
    _check_distinct(list(found.values()))
    return list(found.values())


def _expand(name: str) -> list[str]:
    """A hub id as it is, a folder as its absolute path, a glob as all that it matches."""
    path = local_path(name)
    if path.exists():
        return [str(path)]
    if retired := retired_word(name):
        raise InputError(f"{name}: {retired}")
    matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - an absolute pattern
    return matches or [name if hub.is_hub_id(name.partition("@")[0]) else str(path)]


def _look_at(name: str) -> CheckpointArg:
    if not name.startswith("/"):
        return CheckpointArg(name)
    folder = Path(name)
    check_model(folder)
    if not (folder / "hpc_ewc.json").is_file():
        return CheckpointArg(name)
    _check_facts(facts := records.read_json(folder / "hpc_ewc.json"), folder / "hpc_ewc.json")
    return CheckpointArg(name, facts)


def _check_facts(facts: dict[str, Any], path: Path) -> None:
    """Raise ArtefactError unless these are an export's; `coordinates` may be absent."""
    facts.setdefault("coordinates", {})
    wrong = [key for key, kind in FACTS.items() if not isinstance(facts.get(key), kind)]
    if wrong:
        raise ArtefactError(f"{path}: lacks {', '.join(wrong)}; corrupt or not written by hpc-ewc")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+=,-]*", facts["run"]):  # it becomes the name of a folder
        raise ArtefactError(f"{path}: run = {facts['run']!r}: not a name that submit gives; not written by hpc-ewc")
    if not 0 <= facts["fraction"] <= 1:
        raise ArtefactError(f"{path}: fraction = {facts['fraction']!r}: allowed is 0 to 1; not written by hpc-ewc")


def _check_distinct(given: Sequence[CheckpointArg]) -> None:
    """Two copies of one export would write one record."""
    known: dict[tuple[str, float], str] = {}
    for checkpoint in given:
        if checkpoint.facts is not None:
            at = str(checkpoint.facts["run"]), float(checkpoint.facts["fraction"])
            if at in known:
                raise ConfigError(
                    f"{known[at]} and {checkpoint.name}: both say they are run {at[0]} at fraction {at[1]:g}; give one"
                )
            known[at] = checkpoint.name
