"""Rows of the hub's benchmarks, sealed into plain files on a login node and only read from then on.

`load_dataset` in a job would look the data set up anew, take locks and write an Arrow cache: array elements that start
together meet there, and locks on shared file systems outlive their holders. `seal` does all that once; a job reads
Parquet into memory (hub.py says where).
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
    """Fetch the rows of a data set and write them down; what is there is kept. Says what there is.

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
                found = datasets.load_dataset(path, subset or None, revision=commit, cache_dir=scratch)
                _write(found, folder, {"source": path, "subset": subset, "commit": commit})
            total += sum(records.read_json(folder / "sealed.json")["rows"].values())
    if commit != pinned:  # last: until all rows are there, the ones of before are asked
        records.write_json(hub.benchmark_dir(path) / "pinned.json", {"schema": records.SCHEMA, "commit": commit})
    return f"{total} rows, {commit[:7]}"


def _write(found: Any, folder: Path, facts: dict[str, str]) -> None:
    """All splits beside the place, then by rename."""
    beside = folder.with_name(f".{folder.name}.{socket.gethostname()}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    for split, rows in found.items():
        rows.to_parquet(beside / f"{split}.parquet")
    counts = {str(split): len(rows) for split, rows in found.items()}
    records.write_json(beside / "sealed.json", {"schema": records.SCHEMA, **facts, "rows": counts})
    shutil.rmtree(folder, ignore_errors=True)  # half of it, of another time
    beside.rename(folder)


def sealed_rows(folder: str, **_: Any) -> datasets.DatasetDict:
    """What `seal` wrote, in memory: no lock, no cache, nothing written. lm-eval calls it from a task file."""
    found = {path.stem: datasets.Dataset(pyarrow.parquet.read_table(path)) for path in Path(folder).glob("*.parquet")}
    return datasets.DatasetDict(found)
