"""Tokenised samples, read from the memory-mapped parts of a tokens folder."""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Sequence
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
"""Memory maps held open at once: each takes a file descriptor, of which a process may have 1,024."""


class TokenDataset:
    """Samples of `sequence_length` tokens.

    "concatenate": the documents of all parts are one stream, and sample i is its tokens [i·T, (i+1)·T). A sample may
    hold several documents, each begun by BOS, and cross from one part into the next; the last tokens, fewer than T,
    are left over. "truncate": sample i is the first T tokens of document i, padded on the right.

    Every sample begins with BOS. A cut inside a document puts it in the place of the first token, which no token of
    the sample predicts: a Gemma that reads no BOS is lost (docs/data.md), and would be trained out of being so.
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
        # Where each part ends in the stream of all tokens; and, as "truncate" needs it, where each document ends.
        self._part_ends = np.cumsum([tokens for _, tokens, _ in facts["parts"]], dtype=np.int64)
        lengths = [read_index(folder, name)[0] for name in self._names] if self.packing == "truncate" else []
        self._document_ends = np.cumsum(np.concatenate([np.empty(0, np.int64), *lengths]))
        self._maps: OrderedDict[int, npt.NDArray[np.uint32]] = OrderedDict()

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, i: int) -> npt.NDArray[np.int64]:
        """Sample i: [sequence_length] int64, padded with `pad_id` after its `length`."""
        sample = np.full(self.sequence_length, self.pad_id, dtype=np.int64)
        begin, end = self._range(i)
        self._copy(begin, sample[: end - begin])
        sample[0] = self.bos_id
        return sample

    def length(self, i: int) -> int:
        """Tokens of sample i that are no padding."""
        begin, end = self._range(i)
        return end - begin

    def batch(
        self, indices: Sequence[int] | npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Samples [B, sequence_length] int64 and their lengths [B] int64."""
        samples = np.full((len(indices), self.sequence_length), self.pad_id, dtype=np.int64)
        lengths = np.empty(len(indices), dtype=np.int64)
        for row, i in enumerate(indices):
            begin, end = self._range(int(i))
            lengths[row] = end - begin
            self._copy(begin, samples[row, : end - begin])
        samples[:, 0] = self.bos_id
        return samples, lengths

    def lengths(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """`length` of each, [B] int64."""
        if self.packing == "concatenate":
            return np.full(len(indices), self.sequence_length, dtype=np.int64)
        begins = np.where(indices > 0, self._document_ends[indices - 1], 0)
        return np.asarray(self._document_ends[indices] - begins, dtype=np.int64)

    def describe(self, i: int) -> str:
        """Where sample i comes from, for an error message: `corpus.jsonl:17-19`."""
        begin, end = self._range(i)
        places = []
        for part, name in enumerate(self._names):
            part_end = int(self._part_ends[part])
            part_begin = int(self._part_ends[part - 1]) if part else 0
            if begin < part_end and part_begin < end:
                places += self._places(name, begin - part_begin, end - part_begin)
        return ", ".join(places)

    def _places(self, name: str, begin: int, end: int) -> list[str]:
        """Which lines of which files tokens [begin, end) of a part come from."""
        lengths, lines = read_index(self._folder, name)
        ends = np.cumsum(lengths)
        first, last = np.searchsorted(ends, [max(begin, 0), min(end, int(ends[-1])) - 1], side="right")
        places, seen = [], 0
        for file, count in read_part(self._folder, name)["sources"]:
            low, high = max(int(first), seen), min(int(last), seen + count - 1)
            if low <= high:
                places.append(place(file, int(lines[low])) + (f"-{lines[high]}" if low < high else ""))
            seen += count
        return places

    def _range(self, i: int) -> tuple[int, int]:
        """Sample i in the stream of all tokens."""
        if not 0 <= i < self._samples:
            raise IndexError(f"sample {i} of {self._samples}")
        if self.packing == "concatenate":
            return i * self.sequence_length, (i + 1) * self.sequence_length
        return (int(self._document_ends[i - 1]) if i else 0), int(self._document_ends[i])

    def _copy(self, begin: int, out: npt.NDArray[np.int64]) -> None:
        """The tokens of the stream from `begin` into `out`."""
        part = bisect.bisect_right(self._part_ends, begin)
        filled = 0
        while filled < len(out):
            start = int(self._part_ends[part - 1]) if part else 0
            tokens = self._map(part)[begin + filled - start :][: len(out) - filled]
            out[filled : filled + len(tokens)] = tokens
            filled += len(tokens)
            part += 1

    def _map(self, part: int) -> npt.NDArray[np.uint32]:
        found = self._maps.get(part)
        if found is not None:
            self._maps.move_to_end(part)
            return found
        if self._part_ends[part] == (self._part_ends[part - 1] if part else 0):
            return np.empty(0, dtype=np.uint32)  # an empty file cannot be mapped
        found = np.memmap(self._folder / f"{self._names[part]}.bin", dtype="<u4", mode="r")
        self._maps[part] = found
        if len(self._maps) > OPEN_PARTS:
            self._maps.popitem(last=False)
        return found


def read_tokens(folder: Path | str) -> TokenDataset:
    """The samples of a finished tokens folder.

    Raises:
        ArtefactError: not finished, or a file is missing, truncated or not written by hpc-ewc.
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
        raise ArtefactError(f"{stage.done}: is of no tokens stage: {error!r}") from None
