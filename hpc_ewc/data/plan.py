"""What a corpus becomes: which of its records are used, in which parts, and which documents are held out.

The plan follows from the files and [data] alone, so whichever worker writes `plan.json`, it is the same one, and the
bytes of a part do not depend on how many workers share them.

1. Count the records of every file (.parquet: its footer alone) and cut them into parts of about PART_BYTES.
2. Keep the first ⌈fraction · records⌉, in the order of the files; records that turn out bad count.
3. Hash every document kept; those with the `heldout_documents` smallest hashes are held out, with all their copies.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from hpc_ewc import records
from hpc_ewc.config import DataConfig
from hpc_ewc.data.files import (
    BadText,
    Span,
    check_column,
    kind_of,
    lines_of,
    open_bytes,
    open_parquet,
    parse_text,
    place,
    read_span,
    size_of,
)
from hpc_ewc.data.processes import Stopped, available_cores, begin_child, start_pool
from hpc_ewc.errors import ArtefactError, InputError

PART_BYTES = 64 << 20
PART_RECORDS = 1 << 16
PARALLEL_FROM_BYTES = 64 << 20
"""Below it, starting processes takes longer than hashing."""
SCHEMA = 1
T = TypeVar("T")


@dataclass(frozen=True)
class Document:
    """One good document of the corpus."""

    text: str
    hash: str
    file: str
    line: int


@dataclass(frozen=True)
class Plan:
    """The parts of a corpus."""

    files: tuple[str, ...]
    sizes: tuple[int, ...]
    """Bytes of each file, as it lies."""
    records: int
    """Of all files."""
    used_records: int
    """The first so many."""
    parts: tuple[tuple[Span, ...], ...]
    heldout: frozenset[str]
    """`text_hash` of each document held out."""

    def name(self, part: int) -> str:
        """Of its files, so that names sort as numbers."""
        return f"{part:05d}"


def text_hash(text: str) -> str:
    """First 32 hex digits of the sha256 of a document's UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def build_plan(
    files: Sequence[str],
    data: DataConfig,
    *,
    part_records: int = PART_RECORDS,
    part_bytes: int = PART_BYTES,
    stop: Callable[[], bool] = lambda: False,
) -> Plan:
    """The plan of a corpus.

    Args:
        files: absolute paths or URLs, in document order.
        data: of the experiment.
        part_records: at most so many in a part.
        part_bytes: a part ends with the record that reaches it.
        stop: asked now and then.

    Raises:
        InputError: a file that cannot be read, no record at all, a bad document with `on_bad_document = "error"`, or
            fewer different documents than are to be held out.
        Stopped: `stop` said so.
    """
    if not files:
        raise InputError("the corpus has no file; set data.files, or data.source to a data set")
    sizes = tuple(size_of(path) for path in files)
    spans: list[Span] = []
    for number, path in enumerate(files):
        spans += _cut(path, number, data.text_column, part_records, part_bytes, stop)
    total = sum(span.count for span in spans)
    if not total:
        raise InputError(f"the corpus is empty: no document in {', '.join(files[:5])}")
    used = math.ceil(Fraction(repr(data.fraction)) * total)  # the decimal number as it was written
    parts = tuple(_group(_first(spans, used), part_records, part_bytes))
    heldout = _smallest_hashes(files, parts, data, stop) if data.heldout_documents else frozenset()
    return Plan(tuple(files), sizes, total, used, parts, heldout)


def documents(
    files: Sequence[str], spans: Sequence[Span], data: DataConfig, skipped: Counter[str]
) -> Iterator[Document]:
    """The good documents of a part, in order; the others are added to `skipped` by reason.

    Raises:
        InputError: a bad document, with file and line, when `on_bad_document = "error"`.
    """
    for span in spans:
        path = files[span.file]
        for record in read_span(path, span, data.text_column):
            try:
                text = parse_text(path, record, data.text_column)
            except BadText as bad:
                if data.on_bad_document == "error":
                    hint = 'repair it, or set data.on_bad_document = "skip" to count and leave out such documents'
                    raise InputError(f"{place(path, record.line)}: {bad}; {hint}") from None
                skipped[bad.reason] += 1
                continue
            yield Document(text, text_hash(text), path, record.line)


# ---------------------------------------------------------------------------------------------- count and cut


def _cut(
    path: str, number: int, column: str, part_records: int, part_bytes: int, stop: Callable[[], bool]
) -> Iterator[Span]:
    """A file as spans of at most `part_records` records, each ended by the record that reaches `part_bytes`."""
    if kind_of(path) == ".parquet":
        yield from _cut_parquet(path, number, column, part_records, part_bytes)
        return
    with open_bytes(path) as file:
        span = Span(number, count=0, line=1, offset=0, bytes=0)
        line = 1
        for _, lines, size in lines_of(path, file):
            line += lines
            span = replace(span, count=span.count + 1, bytes=span.bytes + size)
            if span.count == part_records or span.bytes >= part_bytes:
                yield span
                span = Span(number, count=0, line=line, offset=span.offset + span.bytes, bytes=0)
                if stop():
                    raise Stopped
        if span.count:
            yield span


def _cut_parquet(path: str, number: int, column: str, part_records: int, part_bytes: int) -> Iterator[Span]:
    with open_parquet(path) as parquet:
        check_column(path, parquet.schema_arrow.names, column, "data.text_column")
        rows = parquet.metadata.num_rows
        size = _column_bytes(parquet.metadata, column)
        step = max(1, min(part_records, part_bytes * rows // max(size, 1)))
        for first in range(0, rows, step):
            count = min(step, rows - first)
            yield Span(number, count, first + 1, 0, size * count // rows)


def _column_bytes(metadata: Any, column: str) -> int:
    """Uncompressed bytes of one column, as the footer says."""
    total = 0
    for group in range(metadata.num_row_groups):
        chunks = (metadata.row_group(group).column(i) for i in range(metadata.num_columns))
        total += sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == column)
    return total


def _first(spans: Sequence[Span], count: int) -> Iterator[Span]:
    """The spans that hold the first `count` records; the last one cut short."""
    for span in spans:
        if count <= 0:
            return
        if span.count > count:
            span = replace(span, count=count, bytes=span.bytes * count // span.count)
        yield span
        count -= span.count


def _group(spans: Iterator[Span], part_records: int, part_bytes: int) -> Iterator[tuple[Span, ...]]:
    """Small files share a part."""
    part: list[Span] = []
    for span in spans:
        full = sum(s.count for s in part) + span.count > part_records or sum(s.bytes for s in part) >= part_bytes
        if part and full:
            yield tuple(part)
            part = []
        part.append(span)
    if part:
        yield tuple(part)


# ---------------------------------------------------------------------------------------------- hold out


def _smallest_hashes(
    files: Sequence[str], parts: Sequence[Sequence[Span]], data: DataConfig, stop: Callable[[], bool]
) -> frozenset[str]:
    """The `heldout_documents` smallest hashes of different documents: a fair draw that no order changes."""
    wanted = data.heldout_documents
    smallest: set[str] = set()
    skipped: Counter[str] = Counter()
    for found, bad in _map_parts(partial(_hashes, list(files), data), parts, stop):
        smallest = set(heapq.nsmallest(wanted + 1, smallest | found))
        skipped += bad
        if stop():
            raise Stopped
    if len(smallest) <= wanted:
        raise InputError(
            f"data.heldout_documents = {wanted}, but the part of the corpus that is used has {len(smallest)} different "
            f"documents ({sum(skipped.values())} records skipped: {dict(skipped) or 'none'}), and some must be left to "
            "train on; lower it, or raise data.fraction"
        )
    return frozenset(heapq.nsmallest(wanted, smallest))


def _hashes(files: list[str], data: DataConfig, spans: Sequence[Span]) -> tuple[set[str], Counter[str]]:
    """The smallest hashes of one part, one more than are held out; and what was skipped."""
    skipped: Counter[str] = Counter()
    found = {document.hash for document in documents(files, spans, data, skipped)}
    return set(heapq.nsmallest(data.heldout_documents + 1, found)), skipped


def _map_parts(
    work: Callable[[Sequence[Span]], T], parts: Sequence[Sequence[Span]], stop: Callable[[], bool]
) -> Iterator[T]:
    cores = min(available_cores(), len(parts))
    if cores < 2 or sum(span.bytes for part in parts for span in part) < PARALLEL_FROM_BYTES:
        yield from map(work, parts)
        return
    with start_pool(cores, stop, begin_child) as pool:
        yield from pool.map(work, parts)


# ---------------------------------------------------------------------------------------------- plan.json


def save_plan(path: Path, plan: Plan) -> None:
    """Write `plan.json`; two writers write the same."""
    facts = asdict(plan) | {"schema": SCHEMA, "heldout": sorted(plan.heldout)}
    facts["parts"] = [[astuple(span) for span in part] for part in plan.parts]
    records.write_json(path, facts)


def load_plan(path: Path, files: Sequence[str] | None = None) -> Plan:
    """The plan in `plan.json`; where `files` are given, if it is of these as they lie now.

    Raises:
        FileNotFoundError: there is none.
        ArtefactError: it is half-written, foreign, or of other files.
        InputError: a file has another size than when the plan was made.
    """
    facts = records.read_json(path)
    try:
        if facts["schema"] != SCHEMA:
            raise ValueError(f"schema {facts['schema']!r}, this version reads {SCHEMA}")
        parts = tuple(tuple(Span(*span) for span in part) for part in facts["parts"])
        plan = Plan(
            tuple(facts["files"]),
            tuple(facts["sizes"]),
            int(facts["records"]),
            int(facts["used_records"]),
            parts,
            frozenset(facts["heldout"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ArtefactError(
            f"{path}: corrupt or not written by hpc-ewc: {error}; delete the folder {path.parent} and resubmit"
        ) from None
    if files is None:
        return plan
    if plan.files != tuple(files):
        raise ArtefactError(f"{path}: is of other files ({', '.join(plan.files[:3])}); remove the folder {path.parent}")
    for name, size in zip(plan.files, plan.sizes, strict=True):
        if size_of(name) != size:
            raise InputError(
                f"{name}: {size_of(name)} bytes, {size} when the plan was made; the corpus changed: submit again"
            )
    return plan
