"""A look at the first record of a corpus, before a job waits a day to find that it is none.

The job reads all of it, with its own eyes (data/files.py). Here the standard library must do, and a moment: files of
.parquet and .zst are left to the job, and so is whatever follows the first record.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpc_ewc.errors import InputError, did_you_mean

LONGEST = 64 << 20
"""Bytes of a record that are looked at; of a longer one nothing is said."""


def check_first_record(files: Sequence[str], label: str, column: str | None) -> None:
    """Raise InputError where a corpus has no bytes, or its first record is not what a job could read.

    Args:
        files: in order.
        label: the file and table that errors name, such as `x.toml: data`.
        column: that holds the text; None: any JSON object will do.
    """
    if files and not any(Path(path).stat().st_size for path in files):
        raise InputError(f"{label}.files: {files[0]}{' …' * (len(files) > 1)}: empty; there is nothing to read")
    path = next((path for path in files if Path(path).stat().st_size), None)
    if path is None or not path.endswith((".jsonl", ".jsonl.gz")):
        return
    line = _first_line(Path(path), label)
    if len(line) == LONGEST:
        return
    row = _parse(line, f"{label}.files: {path}")
    if column is not None and column not in row:
        hint = did_you_mean(column, row)
        raise InputError(
            f"{label}.text_column = {column!r}: {path} has no such column{hint}; name the one with the text"
        )


def _first_line(path: Path, label: str) -> bytes:
    """Of the lines that are not blank; empty where there is none."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while line := file.readline(LONGEST):
                if line.strip():
                    return line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{label}.files: {path}: the compressed file is damaged or truncated: {error}") from None
    except OSError as error:
        raise InputError(f"{label}.files: {path}: cannot be read: {error.strerror or error}") from None
    return b""


def _parse(line: bytes, label: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{label}: not UTF-8: byte {error.object[error.start]:#04x} in its first record") from None
    except (ValueError, RecursionError):
        shown = line[:60].decode(errors="replace").strip()
        raise InputError(f"{label}: its first record is not JSON: {shown!r}; a .jsonl has an object a line") from None
    if not isinstance(row, dict):
        raise InputError(f"{label}: its first record is {type(row).__name__}, not an object; a .jsonl has one a line")
    return row
