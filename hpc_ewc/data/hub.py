"""The files of a data set on the Hugging Face hub, for a worker run by hand without a list of files.

`datasets` finds the files of a configuration and split by the data set's card; files.py reads them, so a corpus on the
hub and one on a disk are the same to every other module. A gated data set needs HF_TOKEN or `hf auth login`. Jobs have
no network: they read the files that `submit` listed in their stage.json.
"""

from __future__ import annotations

import os

from hpc_ewc.data.files import kind_of
from hpc_ewc.errors import InputError, did_you_mean
from hpc_ewc.hub import explain


def resolve(source: str, subset: str, split: str) -> list[str]:
    """The files of a split, in order: absolute paths, or hf:// URLs that name the commit.

    Args:
        source: hub id, or a folder with the same layout.
        subset: configuration name; "" for none.
        split: such as "train".

    Raises:
        InputError: no such data set, configuration or split; no access; no network; files of an unreadable format.
    """
    import datasets

    label = f"data set {source!r}" + (f" ({subset})" if subset else "")
    try:
        builder = datasets.load_dataset_builder(source, subset or None, token=os.environ.get("HF_TOKEN"))
    except Exception as error:  # `datasets` and the hub raise some dozen kinds
        raise InputError(f"{label}: {explain(error, name=source)}") from None
    splits = builder.config.data_files or {}
    if split not in splits:
        raise InputError(f"{label}: no split {split!r}{did_you_mean(split, map(str, splits))}")
    files = [str(name) for name in splits[split]]
    for name in files:
        kind_of(name)
    return files
