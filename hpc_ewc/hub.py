"""The Hugging Face hub's cache on this machine, read by huggingface_hub's own functions, and what its errors mean.

`hpc-ewc prefetch` fills the cache on a login node; jobs only read it. huggingface_hub keeps the list of files of each
commit beside what it downloaded, so that half of a corpus is never taken for the whole. The rows of benchmarks are
kept by this project:

    $HPC_EWC_CACHE/benchmarks/<owner>--<name>/pinned.json         the commit in use
    $HPC_EWC_CACHE/benchmarks/<owner>--<name>/<commit>/<subset>/  <split>.parquet, and sealed.json, written last

huggingface_hub takes 0.2 s to import, so each function imports it when it is called.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from hpc_ewc import records
from hpc_ewc.errors import ArtefactError
from hpc_ewc.rundir import cache_dir

HOME = "https://huggingface.co"
PREFETCH = "hpc-ewc prefetch SWEEP.toml"
"""The command that fetches everything that an experiment names."""


def cache() -> Path:
    """The folder where huggingface_hub keeps repositories, by its own rules (HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME)."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).absolute()


def is_hub_id(name: str) -> bool:
    """Whether this can be the `owner/name` of a repository: what huggingface_hub's `validate_repo_id` accepts."""
    word = r"[A-Za-z0-9](?:[\w.-]{0,94}\w)?"
    return re.fullmatch(rf"(?!.*(?:--|\.\.|\.git$)){word}/{word}", name) is not None


def cached_commit(kind: str, name: str, revision: str | None = None) -> str | None:
    """The commit of a branch or tag when it was last fetched; kind: model or dataset. A full commit is returned."""
    from huggingface_hub import resolve_revision
    from huggingface_hub.errors import RevisionResolutionError

    try:
        return resolve_revision(name, repo_type=kind, revision=revision, local_files_only=True).resolved
    except RevisionResolutionError:
        return None


def cached_snapshot(kind: str, name: str, revision: str | None = None) -> Path | None:
    """The folder of a repository at a commit, after which it is named; some of its files may be missing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    no_file: list[str] = []  # is required
    try:
        return Path(
            snapshot_download(name, repo_type=kind, revision=revision, local_files_only=True, allow_patterns=no_file)
        )
    except LocalEntryNotFoundError:
        return None


def cached_listing(kind: str, name: str, revision: str | None = None) -> dict[str, int]:
    """Every file of a repository with its size, as listed when it was fetched; empty if it never was."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return {file.path: file.size for file in get_cached_repo_tree(name, repo_type=kind, revision=revision)}
    except CachedRepoTreeNotFoundError:
        return {}


def missing_files(snapshot: Path | None, files: Mapping[str, int]) -> list[str]:
    """Those of `files` that a snapshot lacks or has with another size."""
    if snapshot is None:
        return list(files)
    found = {name: snapshot / name for name in files}
    return [name for name, path in found.items() if not path.is_file() or path.stat().st_size != files[name]]


# ---------------------------------------------------------------------------------------------- rows of benchmarks


def benchmark_dir(name: str) -> Path:
    """The folder of a benchmark's rows, all commits."""
    return cache_dir() / "benchmarks" / name.replace("/", "--")


def pinned_commit(name: str) -> str | None:
    """The commit whose rows are in use; None where `prefetch` did not fetch this data set."""
    try:
        return str(records.read_json(benchmark_dir(name) / "pinned.json")["commit"])
    except (FileNotFoundError, ArtefactError, KeyError):
        return None


def rows_dir(name: str, subset: str, commit: str) -> Path:
    """The folder for the rows of one configuration, whether it exists or not."""
    return benchmark_dir(name) / commit / (subset or "default")


def sealed_rows_dir(name: str, subset: str) -> Path | None:
    """The folder with the rows of one configuration at the commit in use, if it is complete."""
    commit = pinned_commit(name)
    folder = rows_dir(name, subset, commit) if commit else None
    return folder if folder and (folder / "sealed.json").is_file() else None


# ---------------------------------------------------------------------------------------------- errors

UNREACHABLE = {"OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectError", "ConnectionError", "TimeoutException"}


def explain(error: BaseException, kind: str = "dataset", name: str = "NAME") -> str:
    """Return the meaning of a hub error and what to do about it, followed by its own message.

    Errors are recognised by the names of their classes: huggingface_hub, datasets and their HTTP clients each have
    their own and wrap each other's, and datasets is too heavy to import here.
    """
    chain = list(_causes(error))
    kinds = {cls.__name__ for each in chain for cls in type(each).__mro__}
    text = " ".join(" ".join(str(each) for each in chain).split())
    words = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    page = f"{HOME}/{'datasets/' if kind == 'dataset' else ''}{name}"
    # "gated" alone proves nothing: the hub calls a repository that does not exist "private or gated"
    if "GatedRepoError" in kinds or ("gated" in text.lower() and "RepositoryNotFoundError" not in kinds):
        from huggingface_hub import get_token

        token = "; the token that is set here has no access yet" if get_token() else ""
        meaning = f"gated: accept its terms on the hub, at {page}, then set HF_TOKEN or run `hf auth login`{token}"
    elif "OfflineModeIsEnabled" in kinds and any(map(os.environ.get, ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))):
        meaning = f"not in the cache, and HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set; run `{PREFETCH}` without it"
    elif kinds & {"RepositoryNotFoundError", "DatasetNotFoundError"}:
        meaning = f"no such {kind} on the hub, or a private one: look at {page}, or `hf auth login`"
    elif "RevisionNotFoundError" in kinds:
        meaning = f"no such revision: look at {page}/commits/main"
    elif kinds & UNREACHABLE:
        meaning = f"not in the cache and the hub is out of reach; run `{PREFETCH}` where there is a network"
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        meaning = f"no space left on the file system of {cache()}: set HF_HOME to a larger one"
    elif isinstance(error, OSError):
        meaning = f"not in the cache and the hub cannot be used; run `{PREFETCH}` where there is a network"
    else:
        return words
    return f"{meaning} ({words})"


def is_unreachable(error: BaseException) -> bool:
    """Whether no hub answered at all, as opposed to one that refused."""
    kinds = {cls.__name__ for each in _causes(error) for cls in type(each).__mro__}
    return bool(kinds & UNREACHABLE) and "HfHubHTTPError" not in kinds


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it wraps."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
