"""Plan a corpus: the records used, the parts they form, and the documents held out.

The plan depends only on the files and [data], so every worker would write the same `plan.json`, and the bytes of a part
do not depend on the number of workers.

1. Count the records of every file (.parquet: from its footer) and cut them into parts of about PART_BYTES.
2. Use the first ⌈fraction · records⌉, in the order of the files; bad records count.
3. Hash every document used; those with the `heldout_documents` smallest hashes are held out, with all their copies.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, cast

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
from hpc_ewc.schemas import PlanFacts

PART_BYTES = 64 << 20
PART_RECORDS = 1 << 16
PARALLEL_FROM_BYTES = 64 << 20
"""For a smaller corpus, starting processes takes longer than hashing."""
SCHEMA = 1


@dataclass(frozen=True)
class Document:
    """One usable document of the corpus."""

    text: str
    doc_hash: str
    file: str
    line: int


@dataclass(frozen=True)
class Plan:
    """The parts and the held-out documents of a corpus."""

    files: tuple[str, ...]
    sizes: tuple[int, ...]
    """Size of each file in bytes, compressed if it is."""
    records: int
    """Number of records in all files."""
    used_records: int
    """Number of records used: the first ones."""
    parts: tuple[tuple[Span, ...], ...]
    heldout: frozenset[str]
    """`text_hash` of each held-out document."""

    def name(self, part: int) -> str:
        """Return the file name of a part, without its suffix; names sort like numbers."""
        return f"{part:05d}"


def text_hash(text: str) -> str:
    """Return the first 32 hex digits of the SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def build_plan(
    files: Sequence[str],
    data: DataConfig,
    *,
    part_records: int = PART_RECORDS,
    part_bytes: int = PART_BYTES,
    stop: Callable[[], bool] = lambda: False,
) -> Plan:
    """Return the plan of a corpus.

    Args:
        files: absolute paths or URLs, in document order.
        data: the [data] table.
        part_records: largest number of records in a part.
        part_bytes: size at which a part ends.
        stop: returns True to stop; called after each part.

    Raises:
        InputError: a file cannot be read, there is no record, a bad document with `on_bad_document = "error"`, or too
            few different documents to hold out `heldout_documents` and train on the others.
        Stopped: `stop` returned True.
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
    used = math.ceil(Fraction(repr(data.fraction)) * total)  # exact: the decimal number in the configuration
    parts = tuple(_group(_take(spans, used), part_records, part_bytes))
    heldout = _smallest_hashes(files, parts, data, stop) if data.heldout_documents else frozenset()
    return Plan(tuple(files), sizes, total, used, parts, heldout)


def documents(
    files: Sequence[str], spans: Sequence[Span], data: DataConfig, skipped: Counter[str]
) -> Iterator[Document]:
    """Yield the usable documents of a part, in order; count the other records in `skipped` by reason.

    Raises:
        InputError: a bad document, named by file and line, with `on_bad_document = "error"`.
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
    """Yield a file as spans of at most `part_records` records, each ended by the record that reaches `part_bytes`."""
    if kind_of(path) == ".parquet":
        yield from _cut_parquet(path, number, column, part_records, part_bytes)
        return
    with open_bytes(path) as file:
        span, line = Span(number, count=0, line=1, offset=0, bytes=0), 1
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
    """Return the uncompressed size of a column in bytes, from the footer."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    chunks = [group.column(i) for group in groups for i in range(metadata.num_columns)]
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == column)


def _take(spans: Sequence[Span], count: int) -> Iterator[Span]:
    """Yield the spans of the first `count` records, the last one shortened."""
    for span in spans:
        if count <= 0:
            return
        if span.count > count:
            span = replace(span, count=count, bytes=span.bytes * count // span.count)
        yield span
        count -= span.count


def _group(spans: Iterator[Span], part_records: int, part_bytes: int) -> Iterator[tuple[Span, ...]]:
    """Yield the spans grouped into parts, so that small files share a part."""
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
    """Return the `heldout_documents` smallest hashes of different documents: a random draw, independent of order."""
    wanted = data.heldout_documents
    smallest: set[str] = set()
    skipped: Counter[str] = Counter()
    read = partial(_hashes, list(files), data)
    cores = min(available_cores(), len(parts))
    is_large = sum(span.bytes for part in parts for span in part) >= PARALLEL_FROM_BYTES
    with ExitStack() as stack:
        pool = stack.enter_context(start_pool(cores, stop, begin_child)) if cores > 1 and is_large else None
        for found, bad in pool.map(read, parts) if pool else map(read, parts):
            smallest = set(heapq.nsmallest(wanted + 1, smallest | found))
            skipped += bad
            if stop():
                raise Stopped
    if len(smallest) <= wanted:
        raise InputError(
            f"data.heldout_documents = {wanted}, but the used part of the corpus has {len(smallest)} different "
            f"documents ({sum(skipped.values())} records skipped: {dict(skipped) or 'none'}), and at least one must "
            "remain for training; lower it, or raise data.fraction"
        )
    return frozenset(heapq.nsmallest(wanted, smallest))


def _hashes(files: list[str], data: DataConfig, spans: Sequence[Span]) -> tuple[set[str], Counter[str]]:
    """Return the smallest hashes of one part, one more than are held out, and the skipped records by reason."""
    skipped: Counter[str] = Counter()
    found = {document.doc_hash for document in documents(files, spans, data, skipped)}
    return set(heapq.nsmallest(data.heldout_documents + 1, found)), skipped


# ---------------------------------------------------------------------------------------------- plan.json


def save_plan(path: Path, plan: Plan) -> None:
    """Write `plan.json`; the content does not depend on the writer."""
    facts: PlanFacts = {
        "files": list(plan.files),
        "sizes": list(plan.sizes),
        "records": plan.records,
        "used_records": plan.used_records,
        "parts": [[astuple(span) for span in part] for part in plan.parts],
        "heldout": sorted(plan.heldout),
        "schema": SCHEMA,
    }
    records.write_json(path, facts)


def load_plan(path: Path, files: Sequence[str] | None = None) -> Plan:
    """Return the plan in `plan.json`.

    Args:
        path: path of the plan.json.
        files: if given, the files that the plan must be for, unchanged since.

    Raises:
        FileNotFoundError: the file does not exist.
        ArtefactError: it is incomplete, not written by hpc-ewc, or for other files.
        InputError: a file of the corpus changed its size since the plan was made.
    """
    facts = cast(PlanFacts, records.read_json(path))
    try:
        if facts["schema"] != SCHEMA:
            raise ValueError(f"schema {facts['schema']!r}, this version reads {SCHEMA}")
        parts = tuple(tuple(Span(*span) for span in part) for part in facts["parts"])
        counts = int(facts["records"]), int(facts["used_records"])
        plan = Plan(tuple(facts["files"]), tuple(facts["sizes"]), *counts, parts, frozenset(facts["heldout"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ArtefactError(
            f"{path}: {records.FOREIGN}: {error}; delete the folder {path.parent} and resubmit"
        ) from None
    if files is None:
        return plan
    if plan.files != tuple(files):
        raise ArtefactError(
            f"{path}: was made for other files ({', '.join(plan.files[:3])}); delete the folder {path.parent}"
        )
    for name, size in zip(plan.files, plan.sizes, strict=True):
        if size_of(name) != size:
            raise InputError(
                f"{name}: {size_of(name)} bytes, {size} when the plan was made; the corpus changed: resubmit"
            )
    return plan
