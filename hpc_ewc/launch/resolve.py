"""The inputs of an experiment: where they lie on this machine, and what they are wherever they lie.

A hub repository is named by the commit in this machine's cache, a local file by its size and sha256 (kept by path,
size and mtime, so that a second submit reads no corpus), the miniature by the version of its recipe. Nothing is
downloaded here and nothing heavy imported: the cache's folders are read as they are documented by huggingface_hub.
"""

from __future__ import annotations

import dataclasses
import functools
import glob
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hpc_ewc import hub, miniature, records, rundir
from hpc_ewc.config import DataConfig, EvaluateConfig, Experiment, FisherConfig, ModelConfig
from hpc_ewc.errors import ArtefactError, ConfigError, InputError
from hpc_ewc.launch.first_record import check_first_record
from hpc_ewc.launch.model_folder import check_trainable
from hpc_ewc.launch.process import die_with_parent
from hpc_ewc.sweep import Identities

MINIATURE = "miniature"
MINIATURE_LANGUAGES = ("en", "lt")
TEXT_SUFFIXES = (".jsonl", ".parquet", ".txt")
COMPRESSIONS = (".gz", ".zst")
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "*.model", "vocab*", "merges*")


@dataclass(frozen=True)
class Inputs:
    """What the stages of one point of the grid read, as absolute paths, and what that is."""

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
    """What that folder holds."""
    heldout: dict[str, str]
    """Files of held-out text by language, beside the corpus' own."""
    heldout_ids: dict[str, str]
    """What each of these files holds."""
    judge: dict[str, Any] | None = None
    """Who judges answers, as stage.json says it: folder, id, tokens, questions."""


class Resolver:
    """Resolves the points of one experiment; each distinct table is looked up once."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.hashes = HashCache()
        self.model = functools.cache(self._model)
        self.corpus = functools.cache(self._corpus)
        self.fisher = functools.cache(self._fisher)
        self.check_trainable = functools.cache(self._check_trainable)
        self.check_first = functools.cache(check_first_record)

    def resolve(self, experiment: Experiment) -> Inputs:
        """The inputs of one point.

        Raises:
            ConfigError: a path that is no file or folder, or of a kind that cannot be read.
            InputError: a hub repository that this machine's cache does not hold; the command that fetches it is named.
                A model that is not whole, or of a family that cannot be trained.
        """
        model, model_id, tokenizer_id = self.model(experiment.model)
        if experiment.model.path != MINIATURE:
            self.check_trainable(Path(model))
        questions, question_id = self._questions(experiment)
        corpus, corpus_id = self.corpus(experiment.data)
        fisher, fisher_id = self.fisher(experiment.fisher)
        if experiment.data.source != MINIATURE and experiment.data.on_bad_document == "error":
            self.check_first(corpus, f"{self.where}: data", experiment.data.text_column)
        if experiment.fisher.source != MINIATURE:
            self.check_first(fisher, f"{self.where}: fisher", None)
        heldout = self._heldout(experiment.evaluate, experiment.model)
        heldout_ids = {language: self._heldout_id(path) for language, path in heldout.items()}
        self.hashes.save()
        return Inputs(
            identities=Identities(model_id, tokenizer_id, corpus_id, fisher_id),
            model=model,
            corpus=corpus,
            fisher=fisher,
            questions=questions,
            question_id=question_id,
            heldout=heldout,
            heldout_ids=heldout_ids,
            judge=self._judge(experiment.evaluate),
        )

    def resolve_base(self, model: ModelConfig | None, experiment: Experiment) -> Inputs:
        """What evaluating needs without any training: the base model, if there is one; questions; held-out text."""
        questions, question_id = self._questions(experiment)
        heldout = self._heldout(experiment.evaluate, experiment.model)
        inputs = Inputs(
            identities=Identities("", "", "", ""),
            model="",
            corpus=(),
            fisher=(),
            questions=questions,
            question_id=question_id,
            heldout=heldout,
            heldout_ids={language: self._heldout_id(path) for language, path in heldout.items()},
            judge=self._judge(experiment.evaluate),
        )
        return inputs if model is None else dataclasses.replace(inputs, **self.resolve_model(model))

    def resolve_model(self, config: ModelConfig) -> dict[str, Any]:
        """`model` and `identities` of Inputs, of a model that is evaluated as it is."""
        model, identity, _ = self.model(config)
        self.hashes.save()
        return {"model": model, "identities": Identities(identity, "", "", "")}

    # ------------------------------------------------------------------------------------------ one table each

    def _model(self, config: ModelConfig) -> tuple[str, str, str]:
        """Folder, identity of the model, identity of its tokenizer."""
        if config.path == MINIATURE:
            return str(miniature.model_dir()), _miniature_id(), _miniature_id()
        folder = local_path(config.path)
        if folder.is_dir():
            return str(folder), self._folder_id(folder, records.MODEL_FILES), self._folder_id(folder, TOKENIZER_FILES)
        if not is_hub_id(config.path):
            raise ConfigError(f"{self.where}: model.path = {config.path!r}: no such folder, and not a hub id")
        snapshot = hub_snapshot("model", config.path, config.revision, f"{self.where}: model.path", self.prefetch)
        self._check_whole("model", config.path, snapshot, model_files)
        identity = f"{config.path}@{snapshot.name}"
        return str(snapshot), identity, self._folder_id(snapshot, TOKENIZER_FILES)

    def _check_trainable(self, folder: Path) -> None:
        try:
            check_trainable(folder)
        except InputError as error:
            raise InputError(f"{self.where}: model.path: {error}") from None

    def _corpus(self, config: DataConfig) -> tuple[tuple[str, ...], str]:
        if config.source == MINIATURE:
            if config.subset not in MINIATURE_LANGUAGES:
                known = ", ".join(MINIATURE_LANGUAGES)
                raise ConfigError(f"{self.where}: data.subset = {config.subset!r}: the miniature has {known}")
            text = miniature.default_folder() / "text" / f"train.{config.subset}.jsonl"
            return (str(text),), _miniature_id()
        return self._files("data", config.source, config.files, config.subset, "train")

    def _fisher(self, config: FisherConfig) -> tuple[tuple[str, ...], str]:
        if config.source == MINIATURE:
            return tuple(map(str, miniature.fisher_files(config.prompt, config.split))), _miniature_id()
        return self._files("fisher", config.source, config.files, config.subset, config.split)

    def _files(
        self, table: str, source: str, files: tuple[str, ...], subset: str, split: str
    ) -> tuple[tuple[str, ...], str]:
        """The files of [data] or [fisher], in order, and what they hold."""
        if source == "files":
            found = expand_files(files, f"{self.where}: {table}.files")
            self.hashes.announce(found, f"{table}.files")
            return tuple(map(str, found)), self._files_id(found)
        if not is_hub_id(source):
            raise ConfigError(
                f'{self.where}: {table}.source = {source!r}: allowed are a hub id (owner/name), "files", "miniature"'
            )
        snapshot = hub_snapshot("dataset", source, None, f"{self.where}: {table}.source", self.prefetch)
        self._check_whole("dataset", source, snapshot, lambda names: choose_files(names, subset, split))
        found = snapshot_files(snapshot, subset, split)
        if not found:
            raise InputError(
                f"{self.where}: {table}.source = {source!r}: no {', '.join(TEXT_SUFFIXES)} file of subset {subset!r}, "
                f"split {split!r} in {snapshot}; fetch it with: {self.prefetch}"
            )
        return tuple(map(str, found)), f"{source}@{snapshot.name}"

    def _questions(self, experiment: Experiment) -> tuple[str | None, str]:
        """Folder of benchmark rows and what it holds; no folder: the hub's."""
        config = experiment.evaluate
        if config.questions is None and experiment.model.path == MINIATURE:
            return str(miniature.default_folder() / "questions"), _miniature_id()
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
        questions = {language: local_path(name) for language, name in config.judge_questions.items()}
        for language, path in questions.items():
            if not path.is_file():
                raise ConfigError(f"{self.where}: evaluate.judge_questions.{language} = {str(path)!r}: no such file")
        found = {"folder": folder, "id": f"{identity}:{config.judge_tokens}", "tokens": config.judge_tokens}
        return found | {"questions": {language: str(path) for language, path in questions.items()}}

    def _heldout(self, config: EvaluateConfig, model: ModelConfig) -> dict[str, str]:
        heldout = {}
        if model.path == MINIATURE:
            text = miniature.default_folder() / "text"
            heldout = {language: str(text / f"heldout.{language}.jsonl") for language in MINIATURE_LANGUAGES}
        for language, name in config.heldout.items():
            path = local_path(name)
            if not path.is_file():
                raise ConfigError(f"{self.where}: evaluate.heldout.{language} = {name!r}: no such file")
            heldout[language] = str(path)
        return heldout

    @property
    def prefetch(self) -> str:
        """The command that fetches what this experiment names."""
        return fetch_command(self.where)

    def _check_whole(self, kind: str, name: str, snapshot: Path, choose: Callable[[Iterable[str]], list[str]]) -> None:
        """Raise InputError where `prefetch` wrote down more files than are there."""
        files = hub.listing(kind, name, snapshot.name)
        chosen = {file: files[file] for file in choose(files)}
        absent = hub.absent(kind, name, snapshot.name, chosen)
        if absent:
            raise InputError(
                f"{self.where}: {name}: {len(absent)} of {len(chosen)} files are not in the cache yet, such as "
                f"{absent[0]}; go on with: {self.prefetch}"
            )

    # ------------------------------------------------------------------------------------------ identities

    def _heldout_id(self, path: str) -> str:
        if path.startswith(str(miniature.default_folder()) + os.sep):
            return _miniature_id()
        return self.hashes.sha256(Path(path))

    def _files_id(self, files: Sequence[Path]) -> str:
        return records.key_of([[_kind(path), path.stat().st_size, self.hashes.sha256(path)] for path in files])

    def _folder_id(self, folder: Path, patterns: Iterable[str]) -> str:
        files = sorted({path.name: path for pattern in patterns for path in folder.glob(pattern)}.items())
        self.hashes.announce([path for _, path in files], str(folder))
        return records.key_of({name: self.hashes.sha256(path) for name, path in files if path.is_file()})


def _miniature_id() -> str:
    return f"{MINIATURE}@{miniature.version()}"


# ---------------------------------------------------------------------------------------------- local files


def local_path(name: str) -> Path:
    """A path of the TOML: `~` and `$VAR` expand, a relative one starts at the current folder."""
    return Path(os.path.expandvars(name)).expanduser().absolute()


def expand_files(names: Iterable[str], label: str) -> list[Path]:
    """The files that paths and globs name, in order, each once.

    Raises:
        ConfigError: one that names none, or a file of a kind that cannot be read.
    """
    found: dict[Path, None] = {}
    for name in names:
        pattern = str(local_path(name))
        matches = sorted(path for path in map(Path, glob.glob(pattern, recursive=True)) if path.is_file())  # noqa: PTH207
        if not matches:
            raise ConfigError(f"{label}: {name!r} names no file; it was looked for as {pattern}")
        for path in matches:
            if _kind(path) not in TEXT_SUFFIXES:
                raise ConfigError(
                    f"{label}: {path}: allowed are {', '.join(TEXT_SUFFIXES)}, also {' and '.join(COMPRESSIONS)}"
                )
            found[path] = None
    return list(found)


def _kind(path: Path) -> str:
    """The suffix that says how a file is read, a compression left out."""
    return Path(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix


class HashCache:
    """sha256 of files, kept in the cache by path, size and mtime."""

    def __init__(self) -> None:
        self.path = rundir.cache_dir() / "hashes.json"
        self.known: dict[str, Any] = {}
        self.changed = False
        self.announced: Callable[[str], None] | None = None
        with suppress(FileNotFoundError, ArtefactError):
            self.known = records.read_json(self.path)

    def sha256(self, path: Path) -> str:
        """Of a file's bytes; read only when it is not known, or its size or mtime changed."""
        status = path.stat()
        entry = [status.st_size, status.st_mtime_ns]
        known = self.known.get(str(path))
        if isinstance(known, list) and len(known) == 3 and known[:2] == entry:
            return str(known[2])
        digest = records.sha256_file(path)
        self.known[str(path)] = [*entry, digest]
        self.changed = True
        return digest

    def save(self) -> None:
        """Keep what was computed; a cache that cannot be written costs time alone."""
        if self.changed:
            with suppress(OSError):
                records.write_json(self.path, self.known)
            self.changed = False

    def announce(self, files: Sequence[Path], what: str) -> None:
        """Say that something long begins: more than 2 GB to be hashed."""
        unknown = [path for path in files if path.is_file() and str(path) not in self.known]
        size = sum(path.stat().st_size for path in unknown)
        if self.announced is not None and size > 2e9:
            self.announced(f"hashing {what}: {size / 1e9:.0f} GB, once")


# ---------------------------------------------------------------------------------------------- the hub's cache


def is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is not None


def hub_snapshot(kind: str, name: str, revision: str | None, label: str, fix: str) -> Path:
    """The folder of a hub repository in this machine's cache, named by its commit.

    Raises:
        InputError: it is not there; the command that fetches it is named.
    """
    snapshot = hub.repository(kind, name) / "snapshots" / (hub.commit_of(kind, name, revision) or "main")
    if not snapshot.is_dir():
        version = f" at {revision}" if revision else ""
        raise InputError(
            f"{label} = {name!r}: not in the cache {hub.cache()}{version}, and not a folder here; fetch it with: "
            f"{fix.replace('NAME', name)}"
        )
    return snapshot


def fetch_command(where: str) -> str:
    """The command that fetches what an experiment file names; of a single model, the hub's own."""
    return f"hpc-ewc prefetch {where}" if where.endswith(".toml") else "hf download NAME"


def model_files(names: Iterable[str]) -> list[str]:
    """What of a model's repository is used: weights, configuration, tokenizer; not its copies in other formats."""
    patterns = (*records.MODEL_FILES, *TOKENIZER_FILES)
    return sorted({name for name in names for pattern in patterns if "/" not in name and fnmatchcase(name, pattern)})


def snapshot_files(snapshot: Path, subset: str, split: str) -> list[Path]:
    """The files of a subset and split: subset as a folder or first part of the name, split likewise.

    Where no file is marked with the split, all of the subset are taken if it is "train" (a corpus without splits).
    """
    names = [str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if path.is_file()]
    return [snapshot / name for name in choose_files(names, subset, split)]


def choose_files(names: Iterable[str], subset: str, split: str) -> list[str]:
    """The same of the files of a repository by their names alone, in order."""
    files = [path for path in map(Path, names) if _kind(path) in TEXT_SUFFIXES]
    if subset:
        files = [path for path in files if _marked(path, subset)]
    of_split = [path for path in files if _marked(path, split)]
    return [str(path) for path in sorted(of_split if of_split or split != "train" else files)]


def _marked(path: Path, word: str) -> bool:
    """Whether a folder of the path is `word`, or the file's name begins with it: validation-00000-of-00001.parquet."""
    return word in path.parts[:-1] or re.match(re.escape(word) + r"(?![A-Za-z0-9])", path.name) is not None


# ---------------------------------------------------------------------------------------------- the miniature


def uses_miniature(experiment: Experiment) -> bool:
    """Whether model, corpus or questions are the package's own small world, at any point of the grid."""
    grid = experiment.grid
    values = [experiment.model.path, experiment.data.source, experiment.fisher.source]
    values += [value for key in ("model.path", "data.source", "fisher.source") for value in grid.get(key, ())]
    return MINIATURE in values


def prepare_miniature(python: str, say: Callable[[str], None]) -> None:
    """Write the miniature's files, and pretrain its base model, where they are missing. The latter imports torch.

    Raises:
        InputError: the pretraining failed; its output says why.
    """
    folder = miniature.default_folder()
    if not miniature.is_built(folder):
        say(f"miniature: writing texts and questions to {folder}")
        miniature.build(folder)
    if miniature.is_pretrained(folder):
        return
    say("miniature: pretraining its base model, once (about a minute)")
    # The package as it stands here, also where it is not installed.
    root = str(Path(miniature.__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    command = [python, "-m", "hpc_ewc.miniature", "pretrain", "--folder", str(folder)]
    done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False, preexec_fn=die_with_parent)
    if done.returncode != 0 or not miniature.is_pretrained(folder):
        raise InputError(
            f"the miniature's base model could not be made: `{' '.join(command)}` ended with {done.returncode}"
        )
