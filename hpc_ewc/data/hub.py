"""Data sets of the Hugging Face hub as files: on this machine where the cache has them, else streamed.

`datasets` finds which files a configuration and split are made of, as their card says; reading them is files.py's, so
a corpus on the hub and one on a disk are the same to every other module. A gated data set needs HF_TOKEN, or
`hf auth login`. Jobs without a network follow the file list that `submit` put into their stage.json.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from hpc_ewc.data.files import kind_of
from hpc_ewc.errors import InputError, did_you_mean
from hpc_ewc.hub import explain

PREFIX = "hf://datasets/"


@dataclass(frozen=True)
class HubFiles:
    """The files of one split, in order: absolute paths, or hf:// URLs that name the commit."""

    files: tuple[str, ...]
    commit: str
    """Of the repository; "" for a folder."""


def resolve(source: str, subset: str, split: str, revision: str | None = None) -> HubFiles:
    """The files of a split.

    Args:
        source: hub id, or a folder laid out as one.
        subset: configuration name; "" for none.
        split: such as "train".
        revision: commit or branch; absent: the main branch.

    Raises:
        InputError: no such data set, configuration or split; it is gated; the hub is out of reach; its files are of a
            format that is not read here.
    """
    import datasets

    token = os.environ.get("HF_TOKEN")
    label = f"data set {source!r}" + (f" ({subset})" if subset else "")
    try:
        builder = datasets.load_dataset_builder(source, subset or None, revision=revision, token=token)
    except Exception as error:  # `datasets` and the hub raise some dozen kinds
        raise InputError(f"{label}: {explain(error, name=source)}") from None
    splits = builder.config.data_files or {}
    if split not in splits:
        raise InputError(f"{label}: no split {split!r}{did_you_mean(split, map(str, splits))}")
    files = tuple(str(name) for name in splits[split])
    for name in files:
        kind_of(name)
    commits = {name.removeprefix(PREFIX).partition("@")[2].partition("/")[0] for name in files}
    return HubFiles(files, commits.pop() if len(commits) == 1 else "")


def fetch(found: HubFiles) -> HubFiles:
    """The same files in the hub's cache on this machine, downloaded where they are not there yet."""
    from huggingface_hub import hf_hub_download

    local = []
    for name in found.files:
        if not name.startswith(PREFIX):
            local.append(name)
            continue
        repository, _, rest = name.removeprefix(PREFIX).partition("@")
        commit, _, path = rest.partition("/")
        try:
            path = hf_hub_download(repository, path, repo_type="dataset", revision=commit)
        except Exception as error:
            raise InputError(f"{name}: {explain(error, name=repository)}") from None
        local.append(path)
    return HubFiles(tuple(local), found.commit)
