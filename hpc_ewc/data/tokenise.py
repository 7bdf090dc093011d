"""The tokens stage: any number of workers tokenise a corpus; the bytes do not depend on their number.

Worker I of N writes those of the parts I, I+N, … that are missing. A worker that then finds all parts complete writes
`heldout.jsonl`, `manifest.json` and, last, `done.json`.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any, cast

from hpc_ewc import records
from hpc_ewc.config import DataConfig
from hpc_ewc.data.parts import is_complete, read_part, write_part
from hpc_ewc.data.plan import Plan, build_plan, load_plan, save_plan
from hpc_ewc.data.processes import POLL_S, Stopped, available_cores, begin_child, start_pool
from hpc_ewc.data.tokenizer import TextTokenizer, load_tokenizer
from hpc_ewc.errors import ArtefactError, InputError
from hpc_ewc.rundir import StageDir
from hpc_ewc.schemas import HeldoutDocument
from hpc_ewc.stage import Stage, installed_versions

COUNTED = ("documents", "tokens", "tokens_cut", "text_bytes")
PACKAGES = ("hpc-ewc", "tokenizers", "pyarrow", "numpy")
"""Packages on which the bytes of the tokens depend."""
PARALLEL_FROM_BYTES = 32 << 20
"""For a smaller corpus, starting processes takes longer than tokenising it with the tokenizer's own threads."""


def tokenise(stage: Stage, *, part: int = 0, of: int = 1) -> bool:
    """Write this worker's share of the parts, and finish the stage if all parts are complete.

    Args:
        stage: the tokens stage.
        part: number of this worker, in [0, of).
        of: number of workers.

    Returns:
        Whether the stage is done. False: this worker was stopped, or parts of other workers are missing.

    Raises:
        InputError: the corpus or the tokenizer cannot be used.
        ArtefactError: a file in the folder is damaged.
    """
    if stage.is_done():
        return True
    try:
        plan = find_plan(stage)
        tokenizer = load_tokenizer(str(stage.inputs["model"]), stage.config.model.revision)
        own = range(part, len(plan.parts), of)
        missing = [i for i in own if not is_complete(stage.dir.parts, plan.name(i))]
        progress = _Progress(stage, plan, own, missing)
        _write_parts(stage, plan, missing, tokenizer, progress.advance)
        progress.finish()
    except Stopped:
        return False
    if not all(is_complete(stage.dir.parts, plan.name(i)) for i in range(len(plan.parts))):
        return False
    finish(stage, plan, tokenizer)
    return True


def find_plan(stage: Stage) -> Plan:
    """Return the plan in the stage's folder; make and write it if there is none."""
    data, files = stage.config.data, list(stage.inputs.get("files") or [])
    if not files:  # not resolved by `submit`
        from hpc_ewc.data.hub import resolve

        files = resolve(data.source, data.subset, "train")
    try:
        return load_plan(stage.dir.plan, files)
    except FileNotFoundError:
        plan = build_plan(files, data, stop=stage.stop_requested)
        save_plan(stage.dir.plan, plan)
        return plan


# ---------------------------------------------------------------------------------------------- parts


class _Progress:
    """Reports the documents that this worker has done, including earlier attempts."""

    def __init__(self, stage: Stage, plan: Plan, own: Sequence[int], missing: Sequence[int]) -> None:
        counts = {i: sum(span.count for span in plan.parts[i]) for i in own}
        self._stage = stage
        self._total = sum(counts.values())
        self._done_before = self._total - sum(counts[i] for i in missing)
        self._done_now, self._began = 0, time.monotonic()
        self.advance(0)

    def finish(self) -> None:
        """Report that all parts of this worker are complete; only now are skipped records counted."""
        self._stage.progress(self._total, self._total, "document")

    def advance(self, count: int) -> None:
        """Report `count` more documents."""
        self._done_now += count
        done, rate = self._done_before + self._done_now, self._done_now / max(time.monotonic() - self._began, 1e-9)
        fields = {"rate": rate, "eta_s": (self._total - done) / rate} if self._done_now else {}
        self._stage.progress(done, self._total, "document", **fields)


def _write_parts(
    stage: Stage, plan: Plan, missing: Sequence[int], tokenizer: TextTokenizer, advance: Callable[[int], None]
) -> None:
    """Write the missing parts in this process, or in one process per core."""
    cores = min(available_cores(), len(missing))
    size = sum(span.bytes for i in missing for span in plan.parts[i])
    if cores > 1 and size >= PARALLEL_FROM_BYTES:
        _write_in_processes(stage, plan, missing, cores, advance)
        return
    data, stop = stage.config.data, stage.stop_requested
    for i in missing:
        write_part(stage.dir.parts, plan, i, data, tokenizer, stop=stop, advance=advance)


def _write_in_processes(
    stage: Stage, plan: Plan, missing: Sequence[int], processes: int, advance: Callable[[int], None]
) -> None:
    """Write each part in a process: threads do not scale past about ten, since making arrays of ids holds the GIL."""
    # No locks: a process that is killed while it holds a lock would hang the parent. Each number has one writer.
    context = multiprocessing.get_context("spawn")
    stop, done = context.RawValue("b", 0), context.RawArray("q", len(plan.parts))
    threads = max(1, available_cores() // processes)
    model, revision = str(stage.inputs["model"]), stage.config.model.revision
    task = (threads, stop, done, str(stage.dir.path), stage.config.data, model, revision)
    with start_pool(processes, stage.stop_requested, _begin, *task) as pool:
        running: set[Future[None]] = {pool.submit(_write, i) for i in missing}
        reported = 0
        try:
            while running:
                finished, running = wait(running, POLL_S, FIRST_COMPLETED)
                for future in finished:
                    future.result()
                if stage.stop_requested():
                    raise Stopped
                reported, before = sum(done), reported
                advance(reported - before)
        finally:
            stop.value = 1


_CHILD: dict[str, Any] = {}
"""The arguments of `write_part` in a process of the pool, set at its start."""


def _begin(threads: int, stop: Any, done: Any, folder: str, data: DataConfig, model: str, revision: str | None) -> None:
    """Prepare a new process: load the tokenizer, with its share of the cores, and the plan."""
    begin_child()
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    stage = StageDir(Path(folder))
    tokenizer, plan = load_tokenizer(model, revision), load_plan(stage.plan)
    _CHILD.update(stop=stop, done=done, parts=stage.parts, plan=plan, data=data, tokenizer=tokenizer)


def _write(part: int) -> None:
    def advance(count: int) -> None:
        _CHILD["done"][part] += count

    arguments = (_CHILD["parts"], _CHILD["plan"], part, _CHILD["data"], _CHILD["tokenizer"])
    write_part(*arguments, stop=lambda: bool(_CHILD["stop"].value), advance=advance)


# ---------------------------------------------------------------------------------------------- finish


def finish(stage: Stage, plan: Plan, tokenizer: TextTokenizer) -> None:
    """Write `heldout.jsonl`, the manifest and `done.json`; all parts must be complete.

    Raises:
        InputError: there are too few tokens for one sample.
        ArtefactError: a part was made with another tokenizer.
    """
    data, names = stage.config.data, [plan.name(i) for i in range(len(plan.parts))]
    counts: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    heldout: dict[str, HeldoutDocument] = {}
    parts: list[list[Any]] = []
    for name in names:
        facts = read_part(stage.dir.parts, name)
        if facts["tokenizer"] != tokenizer.hash:
            raise ArtefactError(
                f"{stage.dir.parts / name}.json: was made with another tokenizer than that of {stage.inputs['model']}; "
                f"delete the folder {stage.dir.path} and resubmit"
            )
        parts.append([name, facts["tokens"], facts["documents"]])
        counts.update({key: cast(dict[str, Any], facts)[key] for key in (*COUNTED, "heldout_copies")})
        skipped.update(facts["skipped"])
        for row in facts["heldout"]:
            counts["heldout_copies"] += row["doc_hash"] in heldout
            heldout.setdefault(row["doc_hash"], row)
    samples = counts["documents"] if data.packing == "truncate" else counts["tokens"] // data.sequence_length
    if not samples:
        raise InputError(
            f"the corpus has {counts['tokens']} tokens in {counts['documents']} documents ({sum(skipped.values())} "
            f"skipped: {dict(skipped) or 'none'}), less than one sample of {data.sequence_length}; "
            "lower data.sequence_length, raise data.fraction, or check the skipped documents"
        )
    rows = (records.canonical_json(row) for row in heldout.values())
    records.write_text(stage.dir.heldout, "".join(f"{row}\n" for row in rows))
    summary: dict[str, Any] = {
        "samples": samples,
        "sequence_length": data.sequence_length,
        "packing": data.packing,
        **{key: counts[key] for key in COUNTED},
        "tokens_left_over": counts["tokens"] % data.sequence_length if data.packing == "concatenate" else 0,
        "records": plan.records,
        "used_records": plan.used_records,
        "skipped": dict(sorted(skipped.items())),
        "heldout_documents": len(heldout),
        "heldout_copies": counts["heldout_copies"],
        "bos_id": tokenizer.bos_id,
        "pad_id": tokenizer.pad_id,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_hash": tokenizer.hash,
        "parts": parts,
    }
    keys = ("source", "subset", "text_column", "fraction", "heldout_documents", "sequence_length", "packing")
    origin = {
        "key": stage.key,
        "files": list(zip(plan.files, plan.sizes, strict=True)),
        "config": {key: getattr(data, key) for key in (*keys, "on_bad_document")} | {"model": stage.config.model.path},
        "versions": installed_versions(PACKAGES),
    }
    stage.write_manifest(summary | origin)
    outputs = [stage.dir.parts / f"{name}.{end}" for name in names for end in ("bin", "index", "json")]
    stage.finish([*outputs, stage.dir.plan, stage.dir.heldout, stage.dir.manifest_json], **summary)
