"""Read files of documents or questions record by record: .jsonl, .parquet and .txt; .jsonl and .txt also .gz or .zst.

A record is a non-blank line of a .jsonl, a row of a .parquet, or a block of a .txt: the lines up to the next blank
line, so a file without blank lines is one record. Lines end at the line feed only: U+2028 may occur in a JSON string.
A file is a local path or an fsspec URL (`hf://datasets/…` streams it from the hub).
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from hpc_ewc.errors import InputError, did_you_mean

KINDS = (".jsonl", ".parquet", ".txt")
COMPRESSIONS = (".gz", ".zst")
BUFFER_BYTES = 1 << 20
BOM = b"\xef\xbb\xbf"
"""The byte order mark that some editors put at the start of UTF-8; it is not part of the text."""


@dataclass(frozen=True)
class Record:
    """One record of a file, not parsed yet."""

    line: int
    """Number of its first line, or of its row in a .parquet, from 1."""
    raw: Any
    """Bytes; for a .parquet, the value of the text column."""


@dataclass(frozen=True)
class Span:
    """Consecutive records of one file, and the position of the first."""

    file: int
    """Index of the file in the list of files."""
    count: int
    line: int
    """Line number of the first record, or of blank lines before it, from 1; for a .parquet, the row number."""
    offset: int
    """Uncompressed bytes before that line; 0 for a .parquet."""
    bytes: int
    """Size of the records; an estimate for a .parquet."""


class BadText(ValueError):  # noqa: N818 - about one record, turned into an InputError or a count
    """A record is not a usable document; `reason` is the name under which it is counted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def kind_of(path: str) -> str:
    """Return `.jsonl`, `.parquet` or `.txt`, ignoring the compression.

    Raises:
        InputError: the file has another format.
    """
    suffixes = PurePosixPath(path).suffixes
    if suffixes and suffixes[-1] in COMPRESSIONS and suffixes[-2:-1] != [".parquet"]:
        suffixes = suffixes[:-1]
    if not suffixes or suffixes[-1] not in KINDS:
        raise InputError(
            f"{path}: cannot be read; allowed are .jsonl .parquet .txt, and .jsonl and .txt as .gz or .zst"
        )
    return suffixes[-1]


def size_of(path: str) -> int:
    """Return the size of a file in bytes, compressed if it is; InputError if it does not exist."""
    try:
        if "://" not in path:
            return Path(path).stat().st_size
        import fsspec

        filesystem, name = fsspec.core.url_to_fs(path)
        return int(filesystem.size(name))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def place(path: str, line: int) -> str:
    """Return the name of a record for messages: `corpus.jsonl:7`, or `corpus.parquet: row 7`."""
    return f"{path}: row {line}" if kind_of(path) == ".parquet" else f"{path}:{line}"


# ---------------------------------------------------------------------------------------------- bytes


@contextmanager
def open_bytes(path: str) -> Iterator[BinaryIO]:
    """Yield a file of the uncompressed bytes.

    Raises:
        InputError: the file is missing or may not be read, or its compressed stream is damaged or truncated.
    """
    try:
        with _open_raw(path) as raw:
            if path.endswith(".gz"):
                yield cast(BinaryIO, io.BufferedReader(gzip.GzipFile(fileobj=raw), BUFFER_BYTES))
            elif path.endswith(".zst"):
                # zstandard's own reader takes a truncated file for a short one; pyarrow's raises an OSError
                import pyarrow

                stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd")
                yield cast(BinaryIO, io.BufferedReader(stream, BUFFER_BYTES))
            else:
                yield raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: the compressed file is damaged or truncated: {error}") from None
    except OSError as error:
        is_damaged = path.endswith(".zst") and type(error) is OSError and error.errno is None  # raised by pyarrow
        what = "the compressed file is damaged or truncated" if is_damaged else "cannot be read"
        raise InputError(f"{path}: {what}: {error.strerror or error}") from None


def _open_raw(path: str) -> AbstractContextManager[BinaryIO]:
    if "://" in path:
        import fsspec

        return cast(AbstractContextManager[BinaryIO], fsspec.open(path, "rb"))
    return Path(path).open("rb", buffering=BUFFER_BYTES)


# ---------------------------------------------------------------------------------------------- records


def lines_of(path: str, file: BinaryIO, line: int = 1) -> Iterator[tuple[Record, int, int]]:
    """Yield each record of a .jsonl or .txt, with the number of lines and bytes read since the previous record.

    Args:
        path: path of the file; its ending tells .jsonl from .txt.
        file: the open file, at the start of a record or of a blank line.
        line: number of that line.
    """
    is_jsonl = kind_of(path) == ".jsonl"
    block: list[bytes] = []
    first = line
    lines = size = 0
    for number, text in enumerate(file, line):
        lines, size = lines + 1, size + len(text)
        is_blank = not text.removeprefix(BOM).strip()
        if not is_blank:
            first = first if block else number
            block.append(text)
        if block and (is_blank or is_jsonl):
            yield Record(first, b"".join(block)), lines, size
            block, lines, size = [], 0, 0
    if block:
        yield Record(first, b"".join(block)), lines, size


def read_span(path: str, span: Span, column: str) -> Iterator[Record]:
    """Yield the records of a span, in order.

    Raises:
        InputError: the file cannot be read, or has fewer records than when it was counted.
    """
    count = 0
    if kind_of(path) == ".parquet":
        for value in _read_column(path, span.line - 1, span.count, column):
            yield Record(span.line + count, value)
            count += 1
    elif span.count:
        with open_bytes(path) as file:
            _skip(file, span.offset)
            for record, _, _ in islice(lines_of(path, file, span.line), span.count):
                yield record
                count += 1
    if count < span.count:
        raise InputError(f"{path}: ends after {count} of {span.count} records; it changed while it was read")


def _skip(file: BinaryIO, offset: int) -> None:
    if file.seekable():
        file.seek(offset)
        return
    while offset > 0 and (skipped := len(file.read(min(offset, BUFFER_BYTES)))):
        offset -= skipped


# ---------------------------------------------------------------------------------------------- parquet


@contextmanager
def open_parquet(path: str) -> Iterator[Any]:
    """Yield a pyarrow ParquetFile; InputError if the file is missing, damaged or not Parquet."""
    import pyarrow
    import pyarrow.parquet

    try:
        with _open_raw(path) as raw:
            yield pyarrow.parquet.ParquetFile(raw)
    except pyarrow.ArrowException as error:
        raise InputError(f"{path}: not a complete .parquet file: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def check_column(path: str, names: list[str], column: str, key: str) -> None:
    """Raise an InputError, naming the configuration `key`, if a table has no such column."""
    if column not in names:
        raise InputError(f"{path}: no column '{column}'{did_you_mean(column, names)}; set {key} to one of its columns")


def _read_column(path: str, first: int, count: int, column: str) -> Iterator[Any]:
    """Yield rows [first, first + count) of a column; row groups outside of them are not read."""
    with open_parquet(path) as parquet:
        check_column(path, parquet.schema_arrow.names, column, "data.text_column")
        sizes = [parquet.metadata.row_group(number).num_rows for number in range(parquet.num_row_groups)]
        begins = list(accumulate(sizes, initial=0))
        groups = [i for i, size in enumerate(sizes) if first < begins[i] + size and begins[i] < first + count]
        if groups:
            batches = parquet.iter_batches(1024, row_groups=groups, columns=[column])
            values = (value for batch in batches for value in batch.column(0).to_pylist())
            yield from islice(values, first - begins[groups[0]], first - begins[groups[0]] + count)


# ---------------------------------------------------------------------------------------------- documents


def parse_text(path: str, record: Record, column: str) -> str:
    """Return the text of the document in a record.

    Raises:
        BadText: broken JSON, no such column, not a string, not UTF-8, or only white space.
    """
    kind = kind_of(path)
    value: Any = record.raw if kind == ".parquet" else decode(record.raw)
    if kind == ".txt":
        value = value.replace("\r\n", "\n").strip("\n")
    elif kind == ".jsonl":
        row = parse_row(value)
        if column not in row:
            hint = did_you_mean(column, map(str, row))
            raise BadText("missing column", f"no column '{column}'{hint}; data.text_column names the text")
        value = row[column]
    if not isinstance(value, str):
        raise BadText("not text", f"column '{column}' holds {type(value).__name__}, not text")
    if not value.strip():
        raise BadText("empty", "empty document")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # an unpaired surrogate: valid in JSON, not in UTF-8
        raise BadText("encoding", f"not text in Unicode: {error}") from None
    return value


def decode(raw: bytes) -> str:
    """Return UTF-8 bytes as text without a byte order mark; BadText, naming the wrong byte, if they are not UTF-8."""
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise BadText("encoding", f"not UTF-8: byte {raw[error.start]:#04x} at {error.start} of the record") from None


def parse_row(text: str) -> dict[str, Any]:
    """Return the object in a JSON line; BadText if it is not one."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadText("broken line", f"not JSON: {error}: {text[:60]!r}") from None
    if not isinstance(row, dict):
        raise BadText("broken line", f"not a JSON object: {text[:60]!r}")
    return row
