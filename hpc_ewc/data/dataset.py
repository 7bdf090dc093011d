"""Tokenised samples, read from the memory-mapped parts of a tokens folder."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpc_ewc import records
from hpc_ewc.data.files import place
from hpc_ewc.data.parts import check_sizes, read_index, read_part
from hpc_ewc.errors import ArtefactError
from hpc_ewc.rundir import StageDir

OPEN_PARTS = 256
"""Most memory maps open at once: each takes a file descriptor, and a process may have 1,024."""


class TokenDataset:
    """Samples of `sequence_length` tokens.

    "concatenate": the documents of all parts form one stream, and sample i is its tokens [i·T, (i+1)·T). A sample may
    contain several documents, each with BOS first, and cross from one part into the next; the last tokens, fewer than
    T, are dropped. "truncate": sample i is the first T tokens of document i, padded on the right.

    Every sample begins with BOS. If a sample begins inside a document, BOS replaces its first token, which no token of
    the sample predicts: without BOS, Gemma's predictions are useless (docs/data.md), and training would change that.
    """

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self.sequence_length = int(facts["sequence_length"])
        self.packing = str(facts["packing"])
        self.bos_id = int(facts["bos_id"])
        self.pad_id = int(facts["pad_id"])
        self.vocab_size = int(facts["vocab_size"])
        self.tokenizer_hash = str(facts["tokenizer_hash"])
        self.tokens = int(facts["tokens"])
        self._samples = int(facts["samples"])
        self._folder = folder
        self._names = [str(name) for name, _, _ in facts["parts"]]
        for name, tokens, documents in facts["parts"]:
            check_sizes(folder, name, tokens, documents)
        # Boundaries in the token stream: of parts, and of samples ("concatenate") or documents ("truncate").
        self._part_bounds: list[int] = _bounds([tokens for _, tokens, _ in facts["parts"]]).tolist()
        if self.packing == "truncate":
            lengths = [read_index(folder, name)[0] for name in self._names]
            self._document_bounds = _bounds(np.concatenate([np.empty(0, np.int64), *lengths]))
        self._map = lru_cache(OPEN_PARTS)(self._open)

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, i: int) -> npt.NDArray[np.int64]:
        """Return sample i: [sequence_length] int64, padded with `pad_id` after its `length`."""
        sample: npt.NDArray[np.int64] = self.batch([i])[0][0]
        return sample

    def length(self, i: int) -> int:
        """Return the number of tokens of sample i that are not padding."""
        return int(self.lengths([i])[0])

    def lengths(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the `length` of each sample, [B] int64."""
        begins, ends = self._ranges(indices)
        return ends - begins

    def batch(
        self, indices: Sequence[int] | npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return samples [B, sequence_length] int64 and their lengths [B] int64."""
        begins, ends = self._ranges(indices)
        samples = np.full((len(begins), self.sequence_length), self.pad_id, dtype=np.int64)
        for sample, begin, end in zip(samples, begins.tolist(), ends.tolist(), strict=True):
            self._copy(begin, sample[: end - begin])
        samples[:, 0] = self.bos_id
        return samples, ends - begins

    def describe(self, i: int) -> str:
        """Return the lines that sample i comes from, for an error message: `corpus.jsonl:17-19`."""
        begins, ends = self._ranges([i])
        begin, end = int(begins[0]), int(ends[0])
        places = []
        for name, part_begin, part_end in zip(self._names, self._part_bounds, self._part_bounds[1:], strict=False):
            if not (begin < part_end and part_begin < end):
                continue
            lengths, lines = read_index(self._folder, name)
            inside = [max(begin, part_begin), min(end, part_end) - 1]
            first, last = np.searchsorted(part_begin + np.cumsum(lengths), inside, side="right")
            files = [file for file, count in read_part(self._folder, name)["sources"] for _ in range(count)]
            for file, group in groupby(range(first, last + 1), key=files.__getitem__):
                documents = list(group)
                to = f"-{lines[documents[-1]]}" if len(documents) > 1 else ""
                places.append(place(file, int(lines[documents[0]])) + to)
        return ", ".join(places)

    def _ranges(
        self, indices: Sequence[int] | npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the start and end of each sample in the token stream."""
        samples = np.asarray(indices, dtype=np.int64)
        for i in samples[(samples < 0) | (samples >= self._samples)]:
            raise IndexError(f"sample {i} of {self._samples}")
        if self.packing == "concatenate":
            return samples * self.sequence_length, (samples + 1) * self.sequence_length
        return self._document_bounds[samples], self._document_bounds[samples + 1]

    def _copy(self, begin: int, out: npt.NDArray[np.int64]) -> None:
        """Fill `out` with the tokens of the stream from `begin` on."""
        end = begin + len(out)
        part = bisect_right(self._part_bounds, begin) - 1
        while begin < end:
            part_begin, part_end = self._part_bounds[part : part + 2]
            if part_begin < part_end:  # an empty file cannot be mapped
                tokens = self._map(part)[begin - part_begin : end - part_begin]
                out[len(out) - (end - begin) :][: len(tokens)] = tokens
                begin += len(tokens)
            part += 1

    def _open(self, part: int) -> npt.NDArray[np.uint32]:
        return np.memmap(self._folder / f"{self._names[part]}.bin", dtype="<u4", mode="r")


def _bounds(lengths: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the start of each of consecutive ranges, and the end of the last."""
    return np.cumsum(np.concatenate([[0], lengths]), dtype=np.int64)


def read_tokens(folder: Path | str) -> TokenDataset:
    """Return the samples of a finished tokens folder.

    Raises:
        ArtefactError: the stage has not finished, or a file is missing, truncated or not written by hpc-ewc.
    """
    stage = StageDir(Path(folder).absolute())
    try:
        done = records.read_checked(stage.done, "done")
        records.read_done(stage.done, done["key"])
    except FileNotFoundError:
        raise ArtefactError(f"{stage.path}: no done.json; the tokens stage has not finished there") from None
    try:
        return TokenDataset(stage.parts, done["summary"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtefactError(f"{stage.done}: not written by a tokens stage: {error!r}") from None
