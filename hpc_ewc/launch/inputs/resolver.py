"""The inputs of an experiment: their paths on this machine, and their identities, which depend on content alone.

A hub repository is identified by the commit in this machine's cache, a local file by its size and sha256.
Nothing is downloaded.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_ewc import hub, records
from hpc_ewc.config import EvaluateConfig, Experiment, ModelConfig
from hpc_ewc.errors import ConfigError, InputError
from hpc_ewc.launch.inputs.first_record import check_first_record
from hpc_ewc.launch.inputs.hashes import HashCache
from hpc_ewc.launch.inputs.source_files import (
    TEXT_SUFFIXES,
    TOKENIZER_FILES,
    choose_files,
    expand_files,
    fetch_command,
    hub_files,
    kind_of,
    local_path,
    model_files,
    retired_word,
)
from hpc_ewc.model_folder import check_trainable
from hpc_ewc.sweep import Identities


@dataclass(frozen=True)
class Inputs:
    """The inputs of the stages at one point of the grid: absolute paths and identities."""

    identities: Identities
    model: str
    """Folder of the base model."""
    corpus: tuple[str, ...]
    """Files of [data], in document order."""
    fisher: tuple[str, ...]
    """Files of [fisher]."""
    questions: str | None
    """Folder of benchmark rows; None: the hub's."""
    question_id: str
    """Identity of the content of that folder."""
    heldout: dict[str, str]
    """Files of held-out text by language, besides those of the corpus."""
    heldout_ids: dict[str, str]
    """Identity of the content of each."""
    judge: dict[str, Any] | None
    """The model that judges answers, as in stage.json: folder, id, tokens, questions."""


class Resolver:
    """Resolves the points of one experiment; each distinct table is looked up once."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.hashes = HashCache()
        self.model = functools.cache(self._model)
        self.files = functools.cache(self._files)
        self.check_trainable = functools.cache(self._check_trainable)
        self.check_first = functools.cache(check_first_record)

    def resolve(self, experiment: Experiment) -> Inputs:
        """The inputs of one point.

        Raises:
            ConfigError: a path that is no file or folder, or a file that cannot be read by its suffix.
            InputError: a hub repository is not in this machine's cache (the message names the command that fetches
                it), or a model is incomplete or of a family that cannot be trained.
        """
        data, questions = experiment.data, experiment.fisher
        model, model_id, tokenizer_id = self.model(experiment.model)
        self.check_trainable(Path(model))
        corpus, corpus_id = self.files("data", data.source, data.files, data.subset, "train")
        fisher, fisher_id = self.files("fisher", questions.source, questions.files, questions.subset, questions.split)
        if data.on_bad_document == "error":
            self.check_first(corpus, f"{self.where}: data", data.text_column)
        self.check_first(fisher, f"{self.where}: fisher", None)
        identities = Identities(model_id, tokenizer_id, corpus_id, fisher_id)
        base = self.resolve_base(None, experiment)
        self.hashes.save()
        return dataclasses.replace(base, identities=identities, model=model, corpus=corpus, fisher=fisher)

    def resolve_base(self, model: ModelConfig | None, experiment: Experiment) -> Inputs:
        """The inputs of an evaluation without training: base model (if any), questions, held-out text, judge."""
        questions, question_id = self._questions(experiment.evaluate)
        heldout = self._existing_files("evaluate.heldout", experiment.evaluate.heldout)
        inputs = Inputs(
            identities=Identities("", "", "", ""),
            model="",
            corpus=(),
            fisher=(),
            questions=questions,
            question_id=question_id,
            heldout=heldout,
            heldout_ids={language: self.hashes.sha256(Path(path)) for language, path in heldout.items()},
            judge=self._judge(experiment.evaluate),
        )
        return inputs if model is None else dataclasses.replace(inputs, **self.resolve_model(model))

    def resolve_model(self, config: ModelConfig) -> dict[str, Any]:
        """`model` and `identities` of the Inputs of a model that is evaluated without training."""
        model, identity, _ = self.model(config)
        self.hashes.save()
        return {"model": model, "identities": Identities(identity, "", "", "")}

    def _model(self, config: ModelConfig) -> tuple[str, str, str]:
        """Folder, identity of the model, identity of its tokenizer."""
        folder = local_path(config.path)
        if folder.is_dir():
            return str(folder), self._folder_id(folder, records.MODEL_FILES), self._folder_id(folder, TOKENIZER_FILES)
        if not hub.is_hub_id(config.path):
            reason = retired_word(config.path) or "no such folder, and not a hub id"
            raise ConfigError(f"{self.where}: model.path = {config.path!r}: {reason}")
        label = f"{self.where}: model.path"
        snapshot, _ = hub_files(
            "model", config.path, config.revision, model_files, label=label, fix=fetch_command(self.where)
        )
        identity = f"{config.path}@{snapshot.name}"
        return str(snapshot), identity, self._folder_id(snapshot, TOKENIZER_FILES)

    def _check_trainable(self, folder: Path) -> None:
        try:
            check_trainable(folder)
        except InputError as error:
            raise InputError(f"{self.where}: model.path: {error}") from None

    def _files(
        self, table: str, source: str, files: tuple[str, ...], subset: str, split: str
    ) -> tuple[tuple[str, ...], str]:
        """The files of [data] or [fisher], in order, and the identity of their content."""
        if source == "files":
            found = expand_files(files, f"{self.where}: {table}.files")
            self.hashes.announce(found, f"{table}.files")
            content = [[kind_of(path), path.stat().st_size, self.hashes.sha256(path)] for path in found]
            return tuple(map(str, found)), records.key_of(content)
        if not hub.is_hub_id(source):
            reason = retired_word(source) or 'allowed are a hub id (owner/name), "files"'
            raise ConfigError(f"{self.where}: {table}.source = {source!r}: {reason}")
        label, fix = f"{self.where}: {table}.source", fetch_command(self.where)
        choose = functools.partial(choose_files, subset=subset, split=split)
        snapshot, found = hub_files("dataset", source, None, choose, label=label, fix=fix)
        if not found:
            raise InputError(
                f"{label} = {source!r}: no {', '.join(TEXT_SUFFIXES)} file of subset {subset!r}, split {split!r} in "
                f"{snapshot}; fetch it with: {fix}"
            )
        return tuple(map(str, found)), f"{source}@{snapshot.name}"

    def _questions(self, config: EvaluateConfig) -> tuple[str | None, str]:
        """Folder of benchmark rows (None: the hub's) and the identity of its content."""
        if config.questions is None:
            if config.cloze:
                raise ConfigError(
                    f"{self.where}: evaluate.cloze = true needs rows in files: name their folder in evaluate.questions"
                )
            return None, "hub"
        folder = local_path(config.questions)
        rows = sorted(folder.glob("*/*/**/*.jsonl"))
        if not rows:
            raise ConfigError(
                f"{self.where}: evaluate.questions = {config.questions!r}: no <language>/<task>/<split>.jsonl in "
                f"{folder}"
            )
        return str(folder), records.key_of({str(row.relative_to(folder)): self.hashes.sha256(row) for row in rows})

    def _judge(self, config: EvaluateConfig) -> dict[str, Any] | None:
        if config.judge is None:
            if config.judge_questions:
                raise ConfigError(f"{self.where}: evaluate.judge_questions without evaluate.judge; set both or neither")
            return None
        try:
            folder, identity, _ = self.model(ModelConfig(path=config.judge))
        except (ConfigError, InputError) as error:
            raise type(error)(str(error).replace("model.path", "evaluate.judge")) from None
        questions = self._existing_files("evaluate.judge_questions", config.judge_questions)
        return {
            "folder": folder,
            "id": f"{identity}:{config.judge_tokens}",
            "tokens": config.judge_tokens,
            "questions": questions,
        }

    def _existing_files(self, key: str, files: Mapping[str, str]) -> dict[str, str]:
        """Absolute paths of the files of each language."""
        paths = {language: local_path(name) for language, name in files.items()}
        for language, path in paths.items():
            if not path.is_file():
                raise ConfigError(f"{self.where}: {key}.{language} = {files[language]!r}: no such file")
        return {language: str(path) for language, path in paths.items()}

    def _folder_id(self, folder: Path, patterns: Iterable[str]) -> str:
        """Identity of the content of the files that patterns name."""
        files = sorted({path.name: path for pattern in patterns for path in folder.glob(pattern)}.items())
        self.hashes.announce([path for _, path in files], str(folder))
        return records.key_of({name: self.hashes.sha256(path) for name, path in files if path.is_file()})
