"""The Hugging Face hub as this project knows it without importing anything: its cache, its pages, its refusals.

`hpc-ewc prefetch` fills the cache on a login node; jobs only read. What it fetched is written down here, so that half
of a corpus is never taken for the whole:

    $HPC_EWC_CACHE/hub/<kind>s--<owner>--<name>/<commit>.json     every file of that commit, with its size
    $HPC_EWC_CACHE/benchmarks/<owner>--<name>/pinned.json         the commit that its rows are of
    $HPC_EWC_CACHE/benchmarks/<owner>--<name>/<commit>/<subset>/  <split>.parquet, and sealed.json, written last
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpc_ewc import records
from hpc_ewc.errors import ArtefactError
from hpc_ewc.rundir import cache_dir

HOME = "https://huggingface.co"
PREFETCH = "hpc-ewc prefetch SWEEP.toml"
"""What fetches everything that an experiment names."""


def cache() -> Path:
    """Where huggingface_hub keeps repositories."""
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or f"{home}/hub").expanduser().absolute()


def repository(kind: str, name: str) -> Path:
    """The folder of a repository there; kind: model or dataset."""
    return cache() / f"{kind}s--{name.replace('/', '--')}"


def commit_of(kind: str, name: str, revision: str | None = None) -> str | None:
    """The commit that a branch was at when it was fetched; a revision that is no branch is taken at its word."""
    reference = repository(kind, name) / "refs" / (revision or "main")
    return reference.read_text().strip() if reference.is_file() else revision


def page(kind: str, name: str) -> str:
    """Where a person accepts its conditions."""
    return f"{HOME}/{'datasets/' if kind == 'dataset' else ''}{name}"


# ---------------------------------------------------------------------------------------------- what was fetched


def listing(kind: str, name: str, commit: str) -> dict[str, int]:
    """Every file of a repository with its size, as `prefetch` saw it; nothing where it was not fetched by it."""
    try:
        return dict(records.read_json(_listing(kind, name, commit))["files"])
    except (FileNotFoundError, ArtefactError, KeyError, TypeError, ValueError):
        return {}


def save_listing(kind: str, name: str, commit: str, files: Mapping[str, int]) -> None:
    """Written before the first file is fetched."""
    records.write_json(_listing(kind, name, commit), {"schema": records.SCHEMA, "files": dict(files)})


def _listing(kind: str, name: str, commit: str) -> Path:
    return cache_dir() / "hub" / f"{kind}s--{name.replace('/', '--')}" / f"{commit}.json"


def absent(kind: str, name: str, commit: str, files: Mapping[str, int]) -> list[str]:
    """Those of `files` that the cache does not hold whole."""
    snapshot = repository(kind, name) / "snapshots" / commit
    return [file for file, size in files.items() if _size(snapshot / file) != size]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


# ---------------------------------------------------------------------------------------------- rows of benchmarks


def benchmark(name: str) -> Path:
    """The folder of a benchmark's rows, all commits."""
    return cache_dir() / "benchmarks" / name.replace("/", "--")


def pinned(name: str) -> str | None:
    """The commit whose rows are asked; None where `prefetch` did not fetch this data set."""
    try:
        return str(records.read_json(benchmark(name) / "pinned.json")["commit"])
    except (FileNotFoundError, ArtefactError, KeyError):
        return None


def rows(name: str, subset: str, commit: str | None = None) -> Path:
    """The folder of the rows of one configuration, whether it is there or not."""
    return benchmark(name) / (commit or pinned(name) or "none") / (subset or "default")


def sealed(name: str, subset: str) -> Path | None:
    """The folder of the rows of one configuration, if it is whole."""
    folder = rows(name, subset)
    return folder if (folder / "sealed.json").is_file() else None


# ---------------------------------------------------------------------------------------------- refusals


UNREACHABLE = {"OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectError", "ConnectionError", "TimeoutException"}


def has_token() -> bool:
    """Whether this account is logged in to the hub, on this machine."""
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    return bool(os.environ.get("HF_TOKEN")) or Path(os.environ.get("HF_TOKEN_PATH") or home / "token").is_file()


def explain(error: BaseException, kind: str = "dataset", name: str = "NAME") -> str:
    """What a refusal of the hub means and what to do about it, in front of its own words.

    Told by the names of classes: huggingface_hub, datasets and their HTTP clients each have their own, and wrap each
    other's.
    """
    chain = list(_chain(error))
    kinds = {cls.__name__ for each in chain for cls in type(each).__mro__}
    text = " ".join(" ".join(str(each) for each in chain).split())
    words = f"({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    # the word alone does not tell: a repository that is not there is said to be "private or gated"
    if "GatedRepoError" in kinds or ("gated" in text.lower() and "RepositoryNotFoundError" not in kinds):
        given = "; the token that is set here has no access yet" if has_token() else ""
        return (
            f"gated: accept its terms on the hub, at {page(kind, name)}, then set HF_TOKEN or run `hf auth login`"
            f"{given} {words}"
        )
    if "OfflineModeIsEnabled" in kinds and (os.environ.get("HF_HUB_OFFLINE") or os.environ.get("HF_DATASETS_OFFLINE")):
        offline = "HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set"
        return f"not in the cache, and {offline}; run `{PREFETCH}` without it {words}"
    if kinds & {"RepositoryNotFoundError", "DatasetNotFoundError"}:
        return f"no such {kind} on the hub, or a private one: look at {page(kind, name)}, or `hf auth login` {words}"
    if "RevisionNotFoundError" in kinds:
        return f"no such revision: look at {page(kind, name)}/commits/main {words}"
    if kinds & UNREACHABLE:
        return f"not in the cache and the hub is out of reach; run `{PREFETCH}` where there is a network {words}"
    if isinstance(error, OSError) and error.errno == 28:
        return f"no space left on the file system of {cache()}: set HF_HOME to a larger one {words}"
    if isinstance(error, OSError):
        return f"not in the cache and the hub cannot be used; run `{PREFETCH}` where there is a network {words}"
    return words[1:-1]


def is_out_of_reach(error: BaseException) -> bool:
    """Whether nothing answered, rather than something saying no."""
    kinds = [{cls.__name__ for cls in type(each).__mro__} for each in _chain(error)]
    return any(found & UNREACHABLE for found in kinds) and not any("HfHubHTTPError" in found for found in kinds)


def _chain(error: BaseException | None) -> Any:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
