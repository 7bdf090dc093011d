"""The examples for the Fisher, as padded batches for each rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


@dataclass(frozen=True)
class QuestionBatches:
    """Iterate over the batches of this rank.

    A batch has input_ids, attention_mask, labels [B, T] int64, padded on the right (labels are aligned with their
    tokens; -100 is not scored), and `examples` [B] int64, the global index of each row. Example g belongs to rank
    g % world_size, and each rank processes its examples in order. So after k batches on every rank, the examples
    [start, start + k · batch_size · world_size) are done, and a run resumes from there with any number of ranks.
    """

    rows: Sequence[tuple[str, Mapping[str, Any]]]
    """Position and content of each row."""
    config: FisherConfig
    tokenizer: TextTokenizer
    rank: int
    world_size: int
    start: int

    @property
    def total(self) -> int:
        """Number of examples over all ranks."""
        return len(self.rows)

    @property
    def _own(self) -> range:
        return range(self.start + (self.rank - self.start) % self.world_size, self.total, self.world_size)

    def __len__(self) -> int:
        """Return the number of batches of this rank; ranks differ by at most one."""
        return -(-len(self._own) // self.config.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        size = self.config.batch_size
        for begin in range(0, len(self._own), size):
            examples = self._own[begin : begin + size]
            yield _collate([self.example(g) for g in examples], list(examples), self.tokenizer.pad_id)

    def example(self, g: int) -> Example:
        """Return the tokens of example g; InputError, naming file and line, if its row does not fit the prompt."""
        where, row = self.rows[g]
        try:
            return build_example(row, self.config, self.tokenizer)
        except BadText as bad:
            raise InputError(f"{where}: {bad}") from None

    def describe(self, g: int) -> str:
        """Return the file and line of example g, for an error message."""
        return self.rows[g][0]


def question_batches(
    config: FisherConfig,
    files: Sequence[str | Path] | None,
    tokenizer: Any,
    *,
    rank: int,
    world_size: int,
    start: int = 0,
) -> QuestionBatches:
    """Return this rank's batches of the Fisher's examples, the same on every call.

    Args:
        config: the [fisher] table.
        files: absolute paths; None uses the hub data set that `config` names, from the cache or over the network.
        tokenizer: tokenizer of the model: a TextTokenizer, or a fast one of transformers.
        rank: rank of this process.
        world_size: number of ranks.
        start: global index of the first example that is not done yet.

    Raises:
        InputError: there is no example, a file cannot be read, or a row is broken.
    """
    assert 0 <= rank < world_size and start >= 0
    if files is None:
        from hpc_ewc.data.hub import resolve

        files = resolve(config.source, config.subset, config.split)
    # read no further than max_examples: the files may be remote
    rows = list(islice((found for file in files for found in read_rows(str(file))), config.max_examples))
    if not rows:
        raise InputError(f"the Fisher has no examples: {', '.join(map(str, files)) or 'no file'}; set fisher.files")
    return QuestionBatches(rows, config, as_text_tokenizer(tokenizer), rank, world_size, start)


def read_rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the position, as in `questions.jsonl:7`, and the row of each record; the rows of a .txt have a `text`.

    Raises:
        InputError: the file cannot be read, or a record is broken.
    """
    kind = kind_of(path)
    if kind == ".parquet":
        with open_parquet(path) as parquet:
            rows = (row for batch in parquet.iter_batches(1024) for row in batch.to_pylist())
            for number, row in enumerate(rows, 1):
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
    from torch.nn.utils.rnn import pad_sequence

    ids = [torch.tensor(example.ids) for example in examples]
    labels = [row.clone() for row in ids]
    for row, example in zip(labels, examples, strict=True):
        row[: example.first_scored] = IGNORED
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_id),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        "examples": torch.tensor(indices),
    }
