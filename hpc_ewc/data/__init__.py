"""Corpus → documents → token shards → batches; questions for the Fisher."""

from __future__ import annotations

from hpc_ewc.data.dataset import TokenDataset, read_tokens
from hpc_ewc.data.loader import StepBatch, StepLoader
from hpc_ewc.data.order import batch_indices
from hpc_ewc.data.questions import question_batches
from hpc_ewc.data.tokenizer import TextTokenizer, load_tokenizer

__all__ = [
    "StepBatch",
    "StepLoader",
    "TextTokenizer",
    "TokenDataset",
    "batch_indices",
    "load_tokenizer",
    "question_batches",
    "read_tokens",
]
