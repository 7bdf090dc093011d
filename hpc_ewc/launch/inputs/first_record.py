"""A check of the first record of a corpus, so that a job does not wait a day to find that there is none.

The job reads and checks all of the corpus (data/files.py). A login node has only the standard library and a moment for
it: .parquet and .zst files are left to the job, and so is everything after the first record.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

from hpc_ewc.errors import InputError, did_you_mean

LONGEST = 64 << 20
"""Bytes; a longer first record is not checked."""


def check_first_record(files: Sequence[str], label: str, column: str | None) -> None:
    """Raise InputError if a corpus is empty, or a job could not read its first record.

    Args:
        files: in order.
        label: file and table for errors, such as `x.toml: data`.
        column: name of the column with the text; None: any JSON object is accepted.
    """
    path = next((path for path in files if Path(path).stat().st_size), None)
    if files and path is None:
        raise InputError(f"{label}.files: {files[0]}{' …' * (len(files) > 1)}: empty; there is nothing to read")
    if path is None or not path.endswith((".jsonl", ".jsonl.gz")):
        return
    where = f"{label}.files: {path}"
    line = _first_line(Path(path), where)
    if len(line) == LONGEST:
        return
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8: byte {error.object[error.start]:#04x} in its first record") from None
    except (ValueError, RecursionError):
        start = line[:60].decode(errors="replace").strip()
        raise InputError(f"{where}: its first record is not JSON: {start!r}; a .jsonl has an object a line") from None
    if not isinstance(row, dict):
        raise InputError(f"{where}: its first record is {type(row).__name__}, not an object; a .jsonl has one a line")
    if column is not None and column not in row:
        raise InputError(
            f"{label}.text_column = {column!r}: {path} has no such column{did_you_mean(column, row)}; name the one "
            "with the text"
        )


def _first_line(path: Path, where: str) -> bytes:
    """The first line that is not blank; empty if there is none."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while line := file.readline(LONGEST):
                if line.strip():
                    return line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{where}: the compressed file is damaged or truncated: {error}") from None
    except OSError as error:
        raise InputError(f"{where}: cannot be read: {error.strerror or error}") from None
    return b""
