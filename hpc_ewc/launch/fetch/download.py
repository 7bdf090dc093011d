"""Repositories of the Hugging Face hub: which files an experiment needs, how large they are, and their download.

huggingface_hub downloads: each file appears complete, by rename, so an interrupted download continues with the first
file that is missing. A commit that was fetched once stays in use until `--update` looks for a newer one.
"""

from __future__ import annotations

import glob
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from hpc_ewc import hub
from hpc_ewc.errors import InputError
from hpc_ewc.launch.inputs.source_files import choose_files, model_files

WORKERS = 4
"""Files downloaded at once: login nodes are shared."""
SPARE = 1.05
"""Free bytes required for each byte to fetch: the file system needs some for itself."""


@dataclass
class Repository:
    """The files of a repository that one key of the experiment needs, and what `look_up` found out about them."""

    kind: str
    name: str
    revision: str | None
    purpose: str
    """The key, such as `data.source (lt, train)`."""
    choose: Callable[[Iterable[str]], list[str]]
    """Picks the files by their names."""
    nothing: str
    """The error if no file is chosen; `{}` stands for the top of the repository."""
    commit: str = ""
    files: dict[str, int] = field(default_factory=dict)
    """The files needed, with their sizes."""
    error: str = ""
    """Why it cannot be fetched, and what to do."""
    unreachable: bool = False
    """No hub answered."""

    @property
    def missing(self) -> list[str]:
        """The needed files that are not in the cache."""
        return hub.missing_files(hub.cached_snapshot(self.kind, self.name, self.commit), self.files)

    @property
    def missing_bytes(self) -> int:
        return sum(self.files[name] for name in self.missing)

    @property
    def label(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name

    def fail(self, error: BaseException) -> None:
        self.error = hub.explain(error, self.kind, self.name)
        self.unreachable = hub.is_unreachable(error)


def model_repository(name: str, revision: str | None, purpose: str = "model.path") -> Repository:
    """Weights, configuration, tokenizer and chat template of a model."""

    def choose(names: Iterable[str]) -> list[str]:
        chosen = model_files(names)
        return chosen if "config.json" in chosen and any(name.endswith(".safetensors") for name in chosen) else []

    return Repository(
        "model", name, revision, purpose, choose, "its files are {}; a model needs config.json and *.safetensors"
    )


def dataset_repository(table: str, name: str, subset: str, split: str) -> Repository:
    """All files of one subset and split of a data set, since `fraction` counts the documents of all of them."""
    purpose = f"{table}.source ({', '.join(filter(None, (subset, split)))})"
    nothing = f"no file of subset {subset!r}, split {split!r}; there are {{}}"
    return Repository("dataset", name, None, purpose, partial(choose_files, subset=subset, split=split), nothing)


def look_up(repository: Repository, *, update: bool) -> None:
    """Fill in commit and files, from the cache or else from the hub; `error` if neither has them.

    One request asks for the commit and all sizes; `snapshot_download(dry_run=True)` would send one for each file.
    """
    kind, name, revision = repository.kind, repository.name, repository.revision
    commit = None if update else hub.cached_commit(kind, name, revision)
    listing = hub.cached_listing(kind, name, commit) if commit else {}
    if not listing:
        from huggingface_hub import HfApi

        try:
            info = HfApi().repo_info(name, repo_type=kind, revision=commit or revision, files_metadata=True)
        except Exception as error:  # huggingface_hub, its HTTP client and the sockets below raise a dozen kinds
            repository.fail(error)
            return
        commit = info.sha
        listing = {file.rfilename: file.size or 0 for file in getattr(info, "siblings", None) or ()}
    repository.commit = str(commit)
    repository.files = {file: listing[file] for file in repository.choose(listing)}
    if not repository.files:
        top = sorted({file.partition("/")[0] for file in listing if not file.startswith(".")})
        known = ", ".join(top[:12]) + (" …" if len(top) > 12 else "")
        repository.error = f"{repository.purpose}: {repository.nothing.format(known)}"


def check_space(repositories: Iterable[Repository], more: int = 0) -> int:
    """The bytes to fetch: the missing files of `repositories`, and `more`.

    Raises:
        InputError: the file system of the cache has not enough free space.
    """
    needed = sum(repository.missing_bytes for repository in repositories) + more
    folder = hub.cache()
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed * SPARE > free:
        raise InputError(
            f"{hub.cache()}: {format_size(needed)} to fetch, {format_size(free)} free; set HF_HOME (for jobs too) to a "
            "folder on a larger file system, or make room"
        )
    return needed


def fetch(repository: Repository) -> None:
    """Download the missing files; sets `error` if that fails.

    Given a branch, huggingface_hub first points it to the newest commit and writes the list of its files; until all of
    them are there, `submit` says which are missing.
    """
    from huggingface_hub import snapshot_download

    known = hub.cached_commit(repository.kind, repository.name, repository.revision) == repository.commit
    try:
        folder = snapshot_download(
            repository.name,
            repo_type=repository.kind,
            revision=repository.commit if known else repository.revision,
            allow_patterns=[glob.escape(name) for name in repository.files],
            max_workers=WORKERS,
        )
    except Exception as error:  # as in look_up
        repository.fail(error)
        return
    repository.commit = Path(folder).name
    if missing := repository.missing:
        repository.error = (
            f"{len(missing)} of {len(repository.files)} files are missing or have another size than on the hub, such "
            f"as {missing[0]}; check them with `hf cache verify`, delete the wrong ones in {folder} and try again"
        )


def format_size(number: float) -> str:
    """`5.2 GB`; powers of ten, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"
