"""A model's tokenizer, which turns text into token ids and never adds a special token.

It uses the model's `tokenizers` file (tokenizer.json) directly. The callers put BOS before a document, not the file's
post-processor, so BOS occurs exactly once for every tokenizer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from hpc_ewc.errors import ArtefactError, InputError
from hpc_ewc.hub import explain
from hpc_ewc.records import canonical_json, read_json

FILES = ("tokenizer.json", "tokenizer_config.json", "config.json")


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer and the special ids that the data needs."""

    backend: Tokenizer
    bos_id: int
    pad_id: int
    """The padding token, otherwise EOS, otherwise 0. Padding is never scored."""
    vocab_size: int
    """Number of rows of the model's embedding; every id is smaller."""
    hash: str
    """Hash of tokenizer.json and the ids; artefacts with the same hash have the same tokens."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without special tokens such as BOS."""
        ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, computed on all cores of the process (RAYON_NUM_THREADS)."""
        return [one.ids for one in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def load_tokenizer(model: str | Path, revision: str | None = None) -> TextTokenizer:
    """Return the tokenizer of a Hugging Face folder or hub id.

    Raises:
        InputError: there is no tokenizer.json or config.json, no BOS, or an id has no row in the model's embedding.
    """
    paths = {name: _find(model, name, revision) for name in FILES}
    if paths["tokenizer.json"] is None:
        raise InputError(
            f"{model}: no tokenizer.json; write one with AutoTokenizer.from_pretrained({str(model)!r})"
            ".save_pretrained(<the model's folder>)"
        )
    try:
        backend = Tokenizer.from_file(str(paths["tokenizer.json"]))
    except Exception as error:  # the Rust side raises a plain Exception
        raise InputError(f"{paths['tokenizer.json']}: not a tokenizer: {error}") from None
    settings = _json(paths["tokenizer_config.json"])
    config = _json(paths["config.json"])
    config = config.get("text_config", config)  # nested in Gemma 3 models with images
    if "vocab_size" not in config:
        raise InputError(f"{model}: no config.json with 'vocab_size'; not the folder of a Hugging Face model")
    bos, pad, eos = (_special(backend, settings, config, name) for name in ("bos", "pad", "eos"))
    if bos is None:
        raise InputError(
            f"{model}: the tokenizer has no BOS token, which begins every document; "
            "set bos_token in tokenizer_config.json"
        )
    size, content = int(config["vocab_size"]), Path(paths["tokenizer.json"]).read_bytes()
    return build_tokenizer(backend, content, bos_id=bos, pad_id=_first(pad, eos), vocab_size=size, name=str(model))


def build_tokenizer(
    backend: Tokenizer, content: bytes, *, bos_id: int, pad_id: int, vocab_size: int, name: str
) -> TextTokenizer:
    """Return a tokenizer, after checking that all its ids fit the model; changes `backend`. `content` is hashed.

    Special tokens in a text are encoded as ordinary letters: a web page that contains "<eos>" must not end a document.
    So an added special token without a row in the embedding (Gemma 3 text models have one, for images) is no mismatch.

    Raises:
        InputError: an id of text, BOS or padding has no row in the model's embedding.
    """
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    special = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
    usable = {i: word for word, i in backend.get_vocab(with_added_tokens=True).items() if i not in special}
    for i in (bos_id, pad_id, max(usable, default=0)):
        if not 0 <= i < vocab_size:
            word = usable.get(i, "BOS" if i == bos_id else "padding")
            raise InputError(
                f"{name}: the tokenizer does not match the model: id {i} ({word!r}) has no row in the "
                f"embedding of {vocab_size}; use the tokenizer that came with the model"
            )
    facts = {"file": hashlib.sha256(content).hexdigest(), "bos": bos_id, "pad": pad_id}
    digest = hashlib.sha256(canonical_json(facts).encode()).hexdigest()[:32]
    return TextTokenizer(backend, bos_id, pad_id, vocab_size, digest)


def as_text_tokenizer(tokenizer: Any) -> TextTokenizer:
    """Return a TextTokenizer unchanged, or one made from a fast tokenizer of transformers.

    Raises:
        InputError: the tokenizer is not a fast one, or has no BOS.
    """
    if isinstance(tokenizer, TextTokenizer):
        return tokenizer
    name = getattr(tokenizer, "name_or_path", type(tokenizer).__name__)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(f"{name}: not a fast tokenizer; one with a tokenizer.json is needed")
    if tokenizer.bos_token_id is None:
        raise InputError(f"{name}: the tokenizer has no BOS token, which begins every example")
    pad = _first(tokenizer.pad_token_id, tokenizer.eos_token_id)
    size = max(len(tokenizer), tokenizer.bos_token_id + 1, pad + 1)
    content = backend.to_str()
    copy = Tokenizer.from_str(content)  # the caller may use the original
    return build_tokenizer(
        copy, content.encode(), bos_id=tokenizer.bos_token_id, pad_id=pad, vocab_size=size, name=str(name)
    )


def _find(model: str | Path, name: str, revision: str | None) -> Path | None:
    """Return a file of the model: from its folder, the hub's cache, or the hub (not with HF_HUB_OFFLINE=1)."""
    folder = Path(model)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    if folder.is_absolute() or str(model).startswith(("./", "../")):
        raise InputError(f"{model}: no such folder")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(str(model), name, revision=revision))
    except LocalEntryNotFoundError as error:
        raise InputError(f"{model}: {name}: {explain(error, 'model', str(model))}") from None
    except EntryNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{model}: {name}: {explain(error, 'model', str(model))}") from None


def _json(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return read_json(path)
    except ArtefactError as error:
        raise InputError(str(error)) from None


def _first(*ids: int | None) -> int:
    return next((i for i in ids if i is not None), 0)


def _special(backend: Tokenizer, settings: dict[str, Any], config: dict[str, Any], name: str) -> int | None:
    """Return the id of a special token, from its text in tokenizer_config.json or its id in config.json."""
    token = settings.get(f"{name}_token")
    if isinstance(token, dict):
        token = token.get("content")
    number: int | None = backend.token_to_id(token) if isinstance(token, str) else None
    if number is None:
        numbers = config.get(f"{name}_token_id")
        number = numbers[0] if isinstance(numbers, list) and numbers else numbers if isinstance(numbers, int) else None
    return number
