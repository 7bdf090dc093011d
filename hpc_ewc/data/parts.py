"""One part of a tokenised corpus: tokens in `<i>.bin`, document lengths and lines in `<i>.index`, facts in `<i>.json`.

The .bin is a plain array of little-endian uint32: the documents of the part one after another, each with BOS first,
for "truncate" each cut to `sequence_length`. The .index is an array of the same type: the length of each document, then
the line of each in its file. The .json counts everything, including skipped records by reason, and contains the
held-out documents; it is written last, so a part is complete if all three files exist.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from hpc_ewc import records
from hpc_ewc.config import DataConfig
from hpc_ewc.data.plan import Document, Plan, documents
from hpc_ewc.data.processes import Stopped
from hpc_ewc.data.tokenizer import TextTokenizer
from hpc_ewc.errors import ArtefactError
from hpc_ewc.schemas import HeldoutDocument, PartFacts

SCHEMA = 1
BLOCK_BYTES = 1 << 20
"""Size of the text that is tokenised at once: some hundred documents, so that all threads have work."""


def write_part(
    folder: Path,
    plan: Plan,
    part: int,
    data: DataConfig,
    tokenizer: TextTokenizer,
    *,
    stop: Callable[[], bool],
    advance: Callable[[int], None],
) -> None:
    """Tokenise one part of the plan and write its files, or no file if it is stopped or fails.

    Args:
        folder: the `parts` folder.
        plan: plan of the corpus.
        part: number of the part.
        data: the [data] table.
        tokenizer: tokenizer of the model.
        stop: returns True to stop; called before each block.
        advance: called after each block with its number of documents.

    Raises:
        InputError: a bad document with `on_bad_document = "error"`, or a file that changed.
        Stopped: `stop` returned True.
    """
    skipped: Counter[str] = Counter()
    heldout: dict[str, HeldoutDocument] = {}
    kept: list[npt.NDArray[np.uint32]] = []
    lines: list[int] = []
    files: list[str] = []
    heldout_copies = text_bytes = total_tokens = 0
    limit = data.sequence_length if data.packing == "truncate" else None
    # The next block is read, parsed and hashed while this one is tokenised: the Rust side releases the GIL.
    with ThreadPoolExecutor(1, "read") as reader:
        blocks = _blocks(documents(plan.files, plan.parts[part], data, skipped))
        ahead = reader.submit(next, blocks, None)
        while (block := ahead.result()) is not None:
            if stop():
                raise Stopped
            ahead = reader.submit(next, blocks, None)
            for document in block:
                if document.doc_hash in heldout:
                    heldout_copies += 1
                elif document.doc_hash in plan.heldout:
                    heldout[document.doc_hash] = cast(HeldoutDocument, asdict(document))
            training = [document for document in block if document.doc_hash not in plan.heldout]
            for document, ids in zip(training, tokenizer.encode_batch([d.text for d in training]), strict=True):
                total_tokens += 1 + len(ids)
                text_bytes += len(document.text.encode())
                kept.append(np.array([tokenizer.bos_id, *ids][:limit], dtype="<u4"))
                lines.append(document.line)
                files.append(document.file)
            advance(len(block))
    lengths = [len(tokens) for tokens in kept]
    payload = (np.concatenate(kept) if kept else np.empty(0, "<u4")).tobytes()
    index = np.array([lengths, lines], dtype="<u4").tobytes()
    name = plan.name(part)
    records.write_bytes(folder / f"{name}.bin", payload)
    records.write_bytes(folder / f"{name}.index", index)
    facts: PartFacts = {
        "schema": SCHEMA,
        "part": part,
        "documents": len(lengths),
        "tokens": sum(lengths),
        "tokens_cut": total_tokens - sum(lengths),
        "text_bytes": text_bytes,
        "skipped": dict(sorted(skipped.items())),
        "heldout_copies": heldout_copies,
        "heldout": list(heldout.values()),
        "tokenizer": tokenizer.hash,
        "sha256": {"bin": hashlib.sha256(payload).hexdigest(), "index": hashlib.sha256(index).hexdigest()},
        "sources": [(file, len(list(group))) for file, group in itertools.groupby(files)],
    }
    records.write_json(folder / f"{name}.json", facts)


def read_part(folder: Path, name: str) -> PartFacts:
    """Return the facts of one part, after checking the sizes of its files.

    Raises:
        FileNotFoundError: the part was not written yet.
        ArtefactError: a file is missing, truncated, changed, or not written by hpc-ewc.
    """
    path = folder / f"{name}.json"
    facts = records.read_json(path)
    if facts.get("schema") != SCHEMA or not all(isinstance(facts.get(key), int) for key in ("tokens", "documents")):
        raise ArtefactError(f"{path}: corrupt or not written by hpc-ewc; delete it and resubmit")
    check_sizes(folder, name, facts["tokens"], facts["documents"])
    return cast(PartFacts, facts)


def check_sizes(folder: Path, name: str, tokens: int, documents: int) -> None:
    """Raise an ArtefactError if the .bin or the .index of a part is missing or has the wrong size."""
    for path, size in ((folder / f"{name}.bin", 4 * tokens), (folder / f"{name}.index", 8 * documents)):
        found = path.stat().st_size if path.exists() else None
        if found != size:
            what = "missing" if found is None else f"{found} bytes"
            raise ArtefactError(
                f"{path}: {what}, expected {size} bytes: truncated or not written by hpc-ewc; "
                f"delete done.json of this tokens folder and {name}.json, and resubmit"
            )


def read_index(folder: Path, name: str) -> npt.NDArray[np.int64]:
    """Return the length in tokens and the line in its file of each document of a part: [2, documents] int64."""
    return np.fromfile(folder / f"{name}.index", dtype="<u4").astype(np.int64).reshape(2, -1)


def is_complete(folder: Path, name: str) -> bool:
    """Return whether a part exists with files of the right sizes. A damaged part counts as missing: it is rewritten."""
    try:
        read_part(folder, name)
    except (FileNotFoundError, ArtefactError):
        return False
    return True


def _blocks(found: Iterable[Document]) -> Iterator[list[Document]]:
    """Yield the documents in blocks of about BLOCK_BYTES."""
    block: list[Document] = []
    size = 0
    for document in found:
        block.append(document)
        size += len(document.text)
        if size >= BLOCK_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block
