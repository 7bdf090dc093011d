"""Files of documents or questions, read record by record: .jsonl, .parquet, .txt; the first and last also .gz or .zst.

A record is a line of a .jsonl that is not blank, a row of a .parquet, or a block of a .txt: lines up to the next blank
one, so a file without blank lines is one record. Lines end at the line feed alone: U+2028 may stand in a JSON string.
A file lies on this machine or behind an fsspec URL (`hf://datasets/…` streams it from the hub).
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from hpc_ewc.errors import InputError, did_you_mean

KINDS = (".jsonl", ".parquet", ".txt")
COMPRESSIONS = (".gz", ".zst")
BUFFER_BYTES = 1 << 20
BOM = b"\xef\xbb\xbf"
"""The byte order mark that some editors put in front of UTF-8: no text."""


@dataclass(frozen=True)
class Record:
    """One record as it lies in the file, not yet parsed."""

    line: int
    """Where it begins, from 1: a line, or a row of a .parquet."""
    raw: Any
    """bytes; the value of the text column, of a .parquet."""


@dataclass(frozen=True)
class Span:
    """Consecutive records of one file, and where to find the first."""

    file: int
    """Its number in the list of files."""
    count: int
    line: int
    """Where it begins, from 1: at the first record, or at blank lines in front of it; a row of a .parquet."""
    offset: int
    """Bytes before that line, uncompressed; 0 in a .parquet."""
    bytes: int
    """Of the records; estimated in a .parquet."""


class BadText(ValueError):  # noqa: N818 - a verdict on one record, turned into an InputError or a count
    """A record that holds no document, and why: `reason` is what it is counted under."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def kind_of(path: str) -> str:
    """`.jsonl`, `.parquet` or `.txt`, whatever the compression.

    Raises:
        InputError: none of these.
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
    """Bytes of the file as it lies; InputError where there is none."""
    try:
        if "://" not in path:
            return Path(path).stat().st_size
        import fsspec

        filesystem, name = fsspec.core.url_to_fs(path)
        return int(filesystem.size(name))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def place(path: str, line: int) -> str:
    """How messages name a record: `corpus.jsonl:7`, or `corpus.parquet: row 7`."""
    return f"{path}: row {line}" if kind_of(path) == ".parquet" else f"{path}:{line}"


# ---------------------------------------------------------------------------------------------- bytes


@contextmanager
def open_bytes(path: str) -> Iterator[BinaryIO]:
    """The uncompressed bytes of a file.

    Raises:
        InputError: it is not there, may not be read, or its compressed stream is damaged or truncated.
    """
    import zstandard

    try:
        with _open_raw(path) as raw:
            if path.endswith(".gz"):
                yield cast(BinaryIO, io.BufferedReader(gzip.GzipFile(fileobj=raw), BUFFER_BYTES))
            elif path.endswith(".zst"):
                yield cast(BinaryIO, io.BufferedReader(_WholeZstd(raw), BUFFER_BYTES))
            else:
                yield raw
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise InputError(f"{path}: the compressed file is damaged or truncated: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


@contextmanager
def _open_raw(path: str) -> Iterator[BinaryIO]:
    if "://" in path:
        import fsspec

        with fsspec.open(path, "rb") as file:
            yield file
    else:
        with Path(path).open("rb", buffering=BUFFER_BYTES) as file:
            yield file


class _WholeZstd(io.RawIOBase):
    """The frames of a .zst, uncompressed; a file that ends inside a frame is an EOFError, not a short text."""

    def __init__(self, raw: BinaryIO) -> None:
        import zstandard

        self._raw = raw
        self._build: Callable[[], Any] = zstandard.ZstdDecompressor().decompressobj
        self._frame: Any = None
        self._compressed = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            self._compressed = self._compressed or self._raw.read(BUFFER_BYTES)
            if not self._compressed:
                if self._frame is not None:
                    raise EOFError("it ends inside a frame")
                return 0
            self._frame = self._frame or self._build()
            self._ready = memoryview(self._frame.decompress(self._compressed))
            self._compressed = b""
            if self._frame.eof:
                self._compressed, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


# ---------------------------------------------------------------------------------------------- records


def lines_of(path: str, file: BinaryIO, line: int = 1) -> Iterator[tuple[Record, int, int]]:
    """Each record of a .jsonl or .txt from where `file` stands, with the lines and bytes read since the one before.

    Args:
        path: says which of the two it is.
        file: open where a record or a blank line begins.
        line: number of that line.
    """
    blocks = kind_of(path) == ".txt"
    held: list[bytes] = []
    begun = line
    lines = size = 0
    for number, text in enumerate(file, line):
        lines, size = lines + 1, size + len(text)
        blank = not text.removeprefix(BOM).strip()
        if blocks and not blank:
            begun = begun if held else number
            held.append(text)
            continue
        if blank and not held:
            continue
        yield Record(begun if blocks else number, b"".join(held) if blocks else text), lines, size
        held, lines, size = [], 0, 0
    if held:
        yield Record(begun, b"".join(held)), lines, size


def read_span(path: str, span: Span, column: str) -> Iterator[Record]:
    """The records of one span, in order.

    Raises:
        InputError: the file cannot be read, or ends before the span does: it changed since it was counted.
    """
    count = 0
    if kind_of(path) == ".parquet":
        for value in _read_column(path, span.line - 1, span.count, column):
            yield Record(span.line + count, value)
            count += 1
    elif span.count:
        with open_bytes(path) as file:
            _skip(file, span.offset)
            for record, _, _ in lines_of(path, file, span.line):
                yield record
                count += 1
                if count == span.count:
                    break
    if count < span.count:
        raise InputError(f"{path}: ends after {count} of {span.count} records; it changed while it was read")


def _skip(file: BinaryIO, offset: int) -> None:
    if not isinstance(getattr(file, "raw", None), (gzip.GzipFile, _WholeZstd)):
        file.seek(offset)
        return
    while offset > 0:  # a compressed stream has no other way forward
        taken = len(file.read(min(offset, BUFFER_BYTES)))
        if not taken:
            return
        offset -= taken


# ---------------------------------------------------------------------------------------------- parquet


@contextmanager
def open_parquet(path: str) -> Iterator[Any]:
    """A pyarrow ParquetFile; InputError where it is none."""
    import pyarrow
    import pyarrow.parquet

    try:
        with _open_raw(path) as raw:
            yield pyarrow.parquet.ParquetFile(raw)
    except pyarrow.ArrowException as error:
        raise InputError(f"{path}: not a whole .parquet file: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def check_column(path: str, names: list[str], column: str, key: str) -> None:
    """InputError, naming the configuration `key`, where a table has no such column."""
    if column not in names:
        raise InputError(f"{path}: no column '{column}'{did_you_mean(column, names)}; set {key} to one of its columns")


def _read_column(path: str, first: int, count: int, column: str) -> Iterator[Any]:
    """Rows [first, first + count) of one column; whole row groups before them are not read."""
    with open_parquet(path) as parquet:
        check_column(path, parquet.schema_arrow.names, column, "data.text_column")
        groups, start = [], 0
        for number in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(number).num_rows
            if start + rows > first and start < first + count:
                groups.append((number, start))
            start += rows
        if not groups:
            return
        at = groups[0][1]
        for batch in parquet.iter_batches(1024, row_groups=[number for number, _ in groups], columns=[column]):
            for value in batch.column(0).to_pylist():
                if first <= at < first + count:
                    yield value
                at += 1


# ---------------------------------------------------------------------------------------------- documents


def parse_text(path: str, record: Record, column: str) -> str:
    """The document of a record.

    Raises:
        BadText: broken JSON, no such column, not a string, not UTF-8, or nothing but white space.
    """
    kind = kind_of(path)
    value: Any = record.raw
    if kind != ".parquet":
        value = decode(record.raw)
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
    except UnicodeEncodeError as error:  # a half surrogate, which JSON can spell and UTF-8 cannot
        raise BadText("encoding", f"not text in Unicode: {error}") from None
    return value


def decode(raw: bytes) -> str:
    """UTF-8, less a byte order mark; BadText says which byte is wrong."""
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise BadText("encoding", f"not UTF-8: byte {raw[error.start]:#04x} at {error.start} of the record") from None


def parse_row(text: str) -> dict[str, Any]:
    """The object of a JSON line; BadText where it is none."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadText("broken line", f"not JSON: {error}: {text[:60]!r}") from None
    if not isinstance(row, dict):
        raise BadText("broken line", f"not a JSON object: {text[:60]!r}")
    return row
