"""What the Fisher is measured on, as batches of padded examples for each rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_ewc.config import FisherConfig
from hpc_ewc.data.files import (
    BadText,
    decode,
    kind_of,
    lines_of,
    open_bytes,
    open_parquet,
    parse_row,
    parse_text,
    place,
)
from hpc_ewc.data.loader import IGNORED
from hpc_ewc.data.prompts import Example, build_example
from hpc_ewc.data.tokenizer import TextTokenizer, as_text_tokenizer
from hpc_ewc.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


class QuestionBatches:
    """Iterates over this rank's batches; `total` says how many examples there are, over all ranks.

    A batch: input_ids, attention_mask, labels [B, T] int64, padded on the right (labels stand under their tokens, -100
    not scored), and `examples` [B] int64, the global index of each row. Example g is rank g % world_size's, and each
    rank takes its own in order. So after k batches on every rank the examples [start, start + k · batch_size ·
    world_size) are done, and a run goes on from there with any number of ranks.
    """

    def __init__(
        self,
        rows: Sequence[tuple[str, Mapping[str, Any]]],
        config: FisherConfig,
        tokenizer: TextTokenizer,
        rank: int,
        world_size: int,
        start: int,
    ) -> None:
        self.total = len(rows)
        self._rows = rows
        self._config = config
        self._tokenizer = tokenizer
        self._mine = range(start + (rank - start) % world_size, self.total, world_size)

    def __len__(self) -> int:
        """Batches of this rank; ranks differ by at most one."""
        return -(-len(self._mine) // self._config.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        size = self._config.batch_size
        for begin in range(0, len(self._mine), size):
            examples = self._mine[begin : begin + size]
            yield _collate([self.example(g) for g in examples], list(examples), self._tokenizer.pad_id)

    def example(self, g: int) -> Example:
        """Example g as tokens; InputError, with file and line, where its row is not what the prompt needs."""
        where, row = self._rows[g]
        try:
            return build_example(row, self._config, self._tokenizer)
        except BadText as bad:
            raise InputError(f"{where}: {bad}") from None

    def describe(self, g: int) -> str:
        """Where example g comes from, for an error message."""
        return self._rows[g][0]


def question_batches(
    config: FisherConfig,
    files: Sequence[str | Path] | None,
    tokenizer: Any,
    *,
    rank: int,
    world_size: int,
    start: int = 0,
) -> QuestionBatches:
    """This rank's batches of the Fisher's examples, the same on every call.

    Args:
        config: [fisher] of the experiment.
        files: absolute paths; None reads the hub's data set that `config` names, from the cache or over the network.
        tokenizer: of the model; ours, or a fast one of transformers.
        rank: of this process.
        world_size: ranks.
        start: global index of the first example not done yet.

    Raises:
        InputError: no example, a file that cannot be read, a broken row.
    """
    assert 0 <= rank < world_size and start >= 0
    if files is None:
        from hpc_ewc.data.hub import resolve

        files = resolve(config.source, config.subset, config.split)
    # read to the last one that is asked for and no further: the files may lie behind a network
    rows = list(islice((found for file in files for found in read_rows(str(file))), config.max_examples))
    if not rows:
        raise InputError(f"the Fisher has no example: {', '.join(map(str, files)) or 'no file'}; set fisher.files")
    return QuestionBatches(rows, config, as_text_tokenizer(tokenizer), rank, world_size, start)


def read_rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it is, the row) of each record of a file; a .txt has rows of `text`.

    Raises:
        InputError: the file cannot be read, or a record is broken.
    """
    kind = kind_of(path)
    if kind == ".parquet":
        with open_parquet(path) as parquet:
            number = 0
            for batch in parquet.iter_batches(1024):
                for row in batch.to_pylist():
                    number += 1
                    yield place(path, number), row
        return
    with open_bytes(path) as file:
        for record, _, _ in lines_of(path, file):
            try:
                row = parse_row(decode(record.raw)) if kind == ".jsonl" else {"text": parse_text(path, record, "text")}
            except BadText as bad:
                raise InputError(f"{place(path, record.line)}: {bad}") from None
            yield place(path, record.line), row


def _collate(examples: Sequence[Example], indices: Sequence[int], pad_id: int) -> dict[str, Tensor]:
    import torch

    shape = (len(examples), max(len(example.ids) for example in examples))
    ids = np.full(shape, pad_id, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    for row, example in enumerate(examples):
        end = len(example.ids)
        ids[row, :end] = example.ids
        mask[row, :end] = 1
        labels[row, example.first_scored : end] = example.ids[example.first_scored :]
    arrays = {"input_ids": ids, "attention_mask": mask, "labels": labels, "examples": np.array(indices)}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
