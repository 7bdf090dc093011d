"""Repositories of the Hugging Face hub, fetched onto this machine: what of them, how much, once. Imports no torch.

huggingface_hub does the fetching: each file appears whole, by rename, so whatever was interrupted goes on with the
first file that is not there. What is there is not asked for again; a commit that was fetched stays the one that is
used until `--update` looks for a newer one.
"""

from __future__ import annotations

import glob
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from hpc_ewc import hub, records
from hpc_ewc.errors import InputError
from hpc_ewc.launch.inputs.source_files import choose_files, model_files

WORKERS = 4
"""Files at once: login nodes are shared."""
SPARE = 1.05
"""Of the bytes asked for: the file system needs some for itself."""


@dataclass(frozen=True)
class Selection:
    """Which files of a repository."""

    purpose: str
    """Who asks, such as `data.source (lt)`."""
    choose: Callable[[Iterable[str]], list[str]]
    known: Callable[[Iterable[str]], str] = field(default=lambda names: "")
    """What there is instead, where nothing is chosen."""


@dataclass
class Repository:
    """What an experiment needs of one repository, and what it found there."""

    kind: str
    name: str
    revision: str | None
    selections: list[Selection] = field(default_factory=list)
    commit: str = ""
    files: dict[str, int] = field(default_factory=dict)
    """The files needed, with their sizes."""
    trouble: str = ""
    """Why it cannot be had, and what to do."""
    unreachable: bool = False
    """Nothing answered."""

    @property
    def absent(self) -> list[str]:
        return hub.absent(self.kind, self.name, self.commit, self.files)

    @property
    def bytes_absent(self) -> int:
        return sum(self.files[name] for name in self.absent)

    @property
    def label(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name

    def fail(self, error: BaseException) -> None:
        self.trouble = hub.explain(error, self.kind, self.name)
        self.unreachable = hub.is_out_of_reach(error)


def wanted_model(name: str, revision: str | None, purpose: str = "model.path") -> Repository:
    """Weights, configuration and tokenizer of a model."""
    known = "its files are {}; a model needs config.json and *.safetensors"
    return Repository("model", name, revision, [Selection(purpose, _whole_model, _listed(known))])


def _whole_model(names: Iterable[str]) -> list[str]:
    chosen = model_files(names)
    return chosen if "config.json" in chosen and any(name.endswith(".safetensors") for name in chosen) else []


def wanted_files(table: str, name: str, subset: str, split: str) -> Repository:
    """The files of one subset and split of a data set: all of them, since `fraction` counts the documents of all."""
    label = f"{table}.source ({subset}, {split})" if subset else f"{table}.source ({split})"
    known = f"no file of subset {subset!r}, split {split!r}; there are {{}}"
    choose = lambda names: choose_files(names, subset, split)  # noqa: E731
    return Repository("dataset", name, None, [Selection(label, choose, _listed(known))])


def _listed(text: str) -> Callable[[Iterable[str]], str]:
    """`text` with the folders and files at the top of a repository."""

    def known(names: Iterable[str]) -> str:
        tops = sorted({name.partition("/")[0] for name in names if not name.startswith(".")})
        return text.format(", ".join(tops[:12]) + (" …" if len(tops) > 12 else ""))

    return known


def merge(repositories: Iterable[Repository]) -> list[Repository]:
    """Each repository once, with all that is asked of it."""
    merged: dict[tuple[str, str, str | None], Repository] = {}
    for repository in repositories:
        at = repository.kind, repository.name, repository.revision
        if at not in merged:
            merged[at] = repository
            continue
        purposes = {selection.purpose for selection in merged[at].selections}
        merged[at].selections += [s for s in repository.selections if s.purpose not in purposes]
    return list(merged.values())


# ---------------------------------------------------------------------------------------------- look


def look(repository: Repository, *, update: bool) -> None:
    """Fill in commit and files, from what was written down here or from the hub; `trouble` where that cannot be."""
    kind, name, revision = repository.kind, repository.name, repository.revision
    commit = hub.commit_of(kind, name, revision)
    listed = {} if update or commit is None else hub.listing(kind, name, commit)
    if not listed:
        try:
            commit, listed = _ask(kind, name, commit if commit and not update else revision)
        except Exception as error:  # huggingface_hub, its HTTP client and the sockets below raise a dozen kinds
            repository.fail(error)
            return
    assert commit is not None
    repository.commit = commit
    for selection in repository.selections:
        chosen = selection.choose(listed)
        if not chosen:
            repository.trouble = f"{selection.purpose}: {selection.known(listed)}"
        repository.files |= {name: listed[name] for name in chosen}


def _ask(kind: str, name: str, revision: str | None) -> tuple[str, dict[str, int]]:
    """Commit and files of a repository on the hub; written down here."""
    from huggingface_hub import HfApi

    info = HfApi().repo_info(name, repo_type=kind, revision=revision, files_metadata=True)
    files = {sibling.rfilename: int(sibling.size or 0) for sibling in getattr(info, "siblings", None) or ()}
    hub.save_listing(kind, name, str(info.sha), files)
    return str(info.sha), files


def check_space(repositories: Iterable[Repository], more: int = 0) -> int:
    """The bytes to be fetched.

    Args:
        repositories: looked at.
        more: bytes that will be needed beside them.

    Raises:
        InputError: the file system of the cache has less.
    """
    needed = sum(repository.bytes_absent for repository in repositories) + more
    place = hub.cache()
    while not place.is_dir():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed * SPARE > free:
        raise InputError(
            f"{hub.cache()}: {size(needed)} to fetch, {size(free)} free; set HF_HOME (for jobs too) to a folder on a "
            "larger file system, or make room"
        )
    return needed


# ---------------------------------------------------------------------------------------------- fetch


def fetch(repository: Repository) -> None:
    """Fetch the files that are not there; `trouble` where that cannot be."""
    from huggingface_hub import snapshot_download

    _point(repository)
    try:
        folder = snapshot_download(
            repository.name,
            repo_type=repository.kind,
            revision=repository.commit,
            allow_patterns=[glob.escape(name) for name in repository.files],
            max_workers=WORKERS,
        )
    except Exception as error:
        repository.fail(error)
        return
    absent = repository.absent
    if absent:
        repository.trouble = f"{len(absent)} of {len(repository.files)} files are not whole in {folder}: {absent[0]}"


def _point(repository: Repository) -> None:
    """The branch that was asked for is this commit from now on: until it is whole, a submit says what is absent."""
    revision = repository.revision or "main"
    if revision != repository.commit:
        records.write_text(hub.repository(repository.kind, repository.name) / "refs" / revision, repository.commit)


def size(number: float) -> str:
    """`5.2 GB`; powers of ten, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"
