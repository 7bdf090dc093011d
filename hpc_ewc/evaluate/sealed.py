"""Rows of the hub's benchmarks, saved as Parquet files on a login node and only read by jobs.

`load_dataset` in a job would look the data set up again, take locks and write an Arrow cache; array elements that start
together would compete for them, and locks on shared file systems outlive their owners. `seal` does all that once.
hub.py says where the files are.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet

from hpc_ewc import hub, records


def seal(path: str, subsets: Iterable[str], *, update: bool = False) -> str:
    """Fetch and save the rows of a data set, except those that are there; returns the number of rows and the commit.

    Args:
        path: hub id.
        subsets: configurations; "" for a data set without.
        update: look for a newer commit, of which all rows are then fetched.

    Raises:
        Exception: whatever `datasets` and huggingface_hub raise: no network, gated, no such configuration.
    """
    from huggingface_hub import HfApi

    pinned = None if update else hub.pinned_commit(path)
    commit = pinned or str(HfApi().dataset_info(path).sha)
    total = 0
    with tempfile.TemporaryDirectory(prefix="hpc_ewc-rows-") as scratch:
        for subset in subsets:
            folder = hub.rows_dir(path, subset, commit)
            if not (folder / "sealed.json").is_file():
                splits = datasets.load_dataset(path, subset or None, revision=commit, cache_dir=scratch)
                _write(splits, folder, {"source": path, "subset": subset, "commit": commit})
            total += sum(records.read_json(folder / "sealed.json")["rows"].values())
    if commit != pinned:  # written last: until all rows are there, those of the previous commit stay in use
        records.write_json(hub.benchmark_dir(path) / "pinned.json", {"schema": records.SCHEMA, "commit": commit})
    return f"{total} rows, {commit[:7]}"


def _write(splits: Any, folder: Path, source: dict[str, str]) -> None:
    """Write all splits to a temporary folder, then rename it."""
    temporary = folder.with_name(f".{folder.name}.{socket.gethostname()}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for split, rows in splits.items():
        rows.to_parquet(temporary / f"{split}.parquet")
    counts = {str(split): len(rows) for split, rows in splits.items()}
    records.write_json(temporary / "sealed.json", {"schema": records.SCHEMA, **source, "rows": counts})
    shutil.rmtree(folder, ignore_errors=True)  # without sealed.json, so incomplete
    temporary.rename(folder)


def sealed_rows(folder: str, **_: Any) -> datasets.DatasetDict:
    """The rows that `seal` wrote, in memory, without locks or caches. lm-eval calls this from a task file."""
    splits = {path.stem: datasets.Dataset(pyarrow.parquet.read_table(path)) for path in Path(folder).glob("*.parquet")}
    return datasets.DatasetDict(splits)
