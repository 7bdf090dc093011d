"""Whether a folder's tokenizer is its model's: ids that the embedding does not have are found before any job runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hpc_ewc.errors import InputError

SPECIAL = ("bos", "eos", "pad")


def check_tokenizer(folder: Path, config: Any) -> None:
    """Refuse a tokenizer whose ids reach outside the model's vocabulary, or whose special tokens are others.

    A few added tokens beyond the vocabulary are allowed when they are no text: Gemma 3's image placeholder is one.
    A folder without tokenizer.json passes; the token shards are checked against the model as they are read.

    Raises:
        InputError: they do not belong together.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        return
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception
        raise InputError(f"{file}: cannot be read: {error}") from None
    size = tokenizer.get_vocab_size(with_added_tokens=False)
    if size > config.vocab_size:
        raise InputError(
            f"{file}: has {size} tokens, the model's vocabulary {config.vocab_size}; this tokenizer is not the model's"
        )
    named = _special_tokens(folder / "tokenizer_config.json")
    for name in SPECIAL:
        expected = getattr(config, f"{name}_token_id", None)
        token = named.get(f"{name}_token")
        found = tokenizer.token_to_id(token) if token is not None else None
        if found is not None and found >= config.vocab_size:
            raise InputError(f"{file}: {name} token {token!r} is id {found}, the vocabulary is {config.vocab_size}")
        # eos may be a list, and instruction-tuned models end turns with a token of their own
        if name == "bos" and isinstance(expected, int) and found is not None and found != expected:
            raise InputError(
                f"{file}: BOS {token!r} is id {found}, the model's config.json says {expected}; "
                "this tokenizer is not the model's"
            )


def _special_tokens(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    config = json.loads(file.read_text(encoding="utf-8"))
    return {
        f"{name}_token": value["content"] if isinstance(value, dict) else value
        for name in SPECIAL
        if (value := config.get(f"{name}_token")) is not None
    }
