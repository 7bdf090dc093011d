"""One part of a tokenised corpus: `<i>.bin`, its tokens, `<i>.index`, its documents, and `<i>.json`, what they are.

The .bin is a plain array of little-endian uint32: the documents of the part one after another, each begun by BOS, in
"truncate" each cut to `sequence_length`. The .index, of the same numbers, has the length of each document and then the
line of each in its file. The .json counts everything, also what was left out and why, and holds the held-out documents;
it is written last, so a part is whole when the three are there.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpc_ewc import records
from hpc_ewc.config import DataConfig
from hpc_ewc.data.plan import Document, Plan, documents
from hpc_ewc.data.processes import Stopped
from hpc_ewc.data.tokenizer import TextTokenizer
from hpc_ewc.errors import ArtefactError

SCHEMA = 1
BLOCK_BYTES = 1 << 20
"""Of text, tokenised at once: some hundred documents, so that all threads have work."""


def write_part(
    folder: Path,
    plan: Plan,
    part: int,
    data: DataConfig,
    tokenizer: TextTokenizer,
    *,
    stop: Callable[[], bool] = lambda: False,
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Tokenise one part of the plan; nothing is left of it when it is stopped or fails.

    Args:
        folder: `parts/`.
        plan: of the corpus.
        part: its number.
        data: of the experiment.
        tokenizer: of the model.
        stop: asked between blocks.
        advance: told the number of documents of each finished block.

    Raises:
        InputError: a bad document, when these are errors; a file that changed.
        Stopped: `stop` said so.
    """
    skipped: Counter[str] = Counter()
    heldout: list[dict[str, Any]] = []
    copies = 0
    kept: list[npt.NDArray[np.uint32]] = []
    lengths: list[int] = []
    lines: list[int] = []
    files: list[str] = []
    text_bytes = total_tokens = 0
    limit = data.sequence_length if data.packing == "truncate" else None
    heldout_here: set[str] = set()
    # The next block is read, parsed and hashed while this one is tokenised: the Rust side lets go of the GIL.
    with ThreadPoolExecutor(1, "read") as reader:
        blocks = _blocks(documents(plan.files, plan.parts[part], data, skipped))
        ahead = reader.submit(next, blocks, None)
        while (block := ahead.result()) is not None:
            if stop():
                raise Stopped
            ahead = reader.submit(next, blocks, None)
            training = []
            for document in block:
                if document.hash not in plan.heldout:
                    training.append(document)
                elif document.hash not in heldout_here:
                    heldout_here.add(document.hash)
                    source = {"file": document.file, "line": document.line}
                    heldout.append({"text": document.text, "doc_hash": document.hash, **source})
                else:
                    copies += 1
            for document, ids in zip(training, tokenizer.encode_batch([d.text for d in training]), strict=True):
                total_tokens += len(ids) + 1
                text_bytes += len(document.text.encode())
                ids = ids if limit is None else ids[: limit - 1]
                kept.append(np.array([tokenizer.bos_id, *ids], dtype="<u4"))
                lengths.append(len(ids) + 1)
                lines.append(document.line)
                files.append(document.file)
            advance(len(block))
    payload = (np.concatenate(kept) if kept else np.empty(0, "<u4")).tobytes()
    index = np.array([lengths, lines], dtype="<u4").tobytes()
    name = plan.name(part)
    records.write_bytes(folder / f"{name}.bin", payload)
    records.write_bytes(folder / f"{name}.index", index)
    facts = {
        "schema": SCHEMA,
        "part": part,
        "documents": len(lengths),
        "tokens": sum(lengths),
        "tokens_cut": total_tokens - sum(lengths),
        "text_bytes": text_bytes,
        "skipped": dict(sorted(skipped.items())),
        "heldout_copies": copies,
        "heldout": heldout,
        "tokenizer": tokenizer.hash,
        "sha256": {"bin": hashlib.sha256(payload).hexdigest(), "index": hashlib.sha256(index).hexdigest()},
        "sources": [[file, len(list(group))] for file, group in itertools.groupby(files)],
    }
    records.write_json(folder / f"{name}.json", facts)


def read_part(folder: Path, name: str) -> dict[str, Any]:
    """The facts of one part, once its files have the sizes they say.

    Raises:
        FileNotFoundError: it was not made yet.
        ArtefactError: half-written, changed, or not ours.
    """
    path = folder / f"{name}.json"
    facts = records.read_json(path)
    if facts.get("schema") != SCHEMA or not all(isinstance(facts.get(key), int) for key in ("tokens", "documents")):
        raise ArtefactError(f"{path}: corrupt or not written by hpc-ewc; delete it and resubmit")
    check_sizes(folder, name, facts["tokens"], facts["documents"])
    return facts


def check_sizes(folder: Path, name: str, tokens: int, documents: int) -> None:
    """ArtefactError where the .bin or the .index of a part has not as many numbers as it must."""
    for path, size in ((folder / f"{name}.bin", 4 * tokens), (folder / f"{name}.index", 8 * documents)):
        found = path.stat().st_size if path.exists() else None
        if found != size:
            what = "missing" if found is None else f"{found} bytes"
            raise ArtefactError(
                f"{path}: {what}, it must have {size} bytes: truncated or not written by hpc-ewc; "
                f"remove done.json of this tokens folder and {name}.json, and submit again"
            )


def read_index(folder: Path, name: str) -> npt.NDArray[np.int64]:
    """[2, documents] int64: length in tokens, and line in its file, of each document of a part."""
    return np.fromfile(folder / f"{name}.index", dtype="<u4").astype(np.int64).reshape(2, -1)


def is_whole(folder: Path, name: str) -> bool:
    """The part is there, and nothing is wrong with it at first sight. A damaged one counts as missing: it is remade."""
    try:
        read_part(folder, name)
    except (FileNotFoundError, ArtefactError):
        return False
    return True


def _blocks(found: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents by the block: as many as make up BLOCK_BYTES."""
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
