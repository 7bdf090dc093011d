"""Data sets of the Hugging Face hub as files, streamed: for a worker run by hand that was given none.

`datasets` finds which files a configuration and split are made of, as their card says; reading them is files.py's, so
a corpus on the hub and one on a disk are the same to every other module. A gated data set needs HF_TOKEN, or
`hf auth login`. Jobs have no network: they follow the file list that `submit` put into their stage.json.
"""

from __future__ import annotations

import os

from hpc_ewc.data.files import kind_of
from hpc_ewc.errors import InputError, did_you_mean
from hpc_ewc.hub import explain


def resolve(source: str, subset: str, split: str) -> list[str]:
    """The files of a split, in order: absolute paths, or hf:// URLs that name the commit.

    Args:
        source: hub id, or a folder laid out as one.
        subset: configuration name; "" for none.
        split: such as "train".

    Raises:
        InputError: no such data set, configuration or split; it is gated; the hub is out of reach; its files are of a
            format that is not read here.
    """
    import datasets

    token = os.environ.get("HF_TOKEN")
    label = f"data set {source!r}" + (f" ({subset})" if subset else "")
    try:
        builder = datasets.load_dataset_builder(source, subset or None, token=token)
    except Exception as error:  # `datasets` and the hub raise some dozen kinds
        raise InputError(f"{label}: {explain(error, name=source)}") from None
    splits = builder.config.data_files or {}
    if split not in splits:
        raise InputError(f"{label}: no split {split!r}{did_you_mean(split, map(str, splits))}")
    files = [str(name) for name in splits[split]]
    for name in files:
        kind_of(name)
    return files
