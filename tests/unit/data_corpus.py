"""Shared by the data tests: a tiny tokenizer, corpora in every format, a tokens folder as `submit` makes it."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import zstandard
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from hpc_ewc.config import DataConfig, Experiment, ModelConfig, render_toml
from hpc_ewc.records import SCHEMA, write_json, write_text
from hpc_ewc.stage import Stage

SENTENCE = "žemė vėjas šaltas ežeras ąžuolas upė the river runs cold under old trees and every stone is wet"
WORDS = SENTENCE.split()


def tiny_tokenizer() -> Tokenizer:
    """Return a byte-fallback BPE tokenizer like Gemma's, with separate tokens for line feeds."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    split = pre_tokenizers.Split("\n", "isolated")
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, metaspace])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "\n", "A", "B", "C", "D", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([SENTENCE, "Question: Answer:"], trainer)
    # Only the first four of these are control tokens.
    facts = json.loads(tokenizer.to_str())
    facts["added_tokens"] = facts["added_tokens"][:4]
    return Tokenizer.from_str(json.dumps(facts))


def write_model(folder: Path, **changes: Any) -> Path:
    """Write the model files from which a tokenizer is loaded."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"vocab_size": tokenizer.get_vocab_size(), "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    write_json(folder / "config.json", config | changes)
    write_json(folder / "tokenizer_config.json", {"bos_token": "<bos>", "pad_token": "<pad>", "eos_token": "<eos>"})
    return folder


def make_texts(count: int, seed: int = 0) -> list[str]:
    """Return short, distinct documents; a few contain text that naive code would split or read as control tokens."""
    dice = random.Random(seed)
    texts = [f"{i} " + " ".join(dice.choices(WORDS, k=dice.randint(3, 40))) for i in range(count)]
    for i, odd in enumerate(["ą\u2028b", "a <bos> b <eos>", "two\nlines", "\u0085next", "🜚 ẞ"]):
        if i < count:
            texts[i] += f" {odd}"
    return texts


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    return write_compressed(path, "".join(f"{line}\n" for line in lines).encode())


def write_compressed(path: Path, content: bytes) -> Path:
    if path.suffix == ".gz":
        content = gzip.compress(content)
    elif path.suffix == ".zst":
        # several frames, as written by parallel compressors
        half = len(content) // 2
        content = b"".join(zstandard.ZstdCompressor().compress(part) for part in (content[:half], content[half:]))
    path.write_bytes(content)
    return path


def write_parquet(path: Path, columns: dict[str, list[Any]], row_group_size: int = 7) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=row_group_size)
    return path


def make_data(**changes: Any) -> DataConfig:
    given = {"source": "files", "files": ("x.jsonl",), "fraction": 1.0, "heldout_documents": 0, "sequence_length": 16}
    return DataConfig(**(given | changes))


def write_stage(folder: Path, model: Path, files: Sequence[Path], data: DataConfig) -> Path:
    """Make a tokens folder as `submit` does."""
    experiment = Experiment(ModelConfig(path=str(model)), data)
    write_text(folder / "config.toml", render_toml(experiment))
    inputs = {"model": str(model), "files": [str(path) for path in files]}
    facts = {"schema": SCHEMA, "stage": "tokens", "run": "", "key": "0123456789ab", "inputs": inputs}
    write_json(folder / "stage.json", facts | {"coordinates": {}, "expected": []})
    return folder


def make_stage(folder: Path, model: Path, files: Sequence[Path], data: DataConfig, element: str = "0") -> Stage:
    return Stage(write_stage(folder, model, files, data), element)
