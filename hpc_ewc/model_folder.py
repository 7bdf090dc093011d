"""Is this folder a whole Hugging Face model, with a tokenizer that fits? Told from its files, without loading it.

A login node looks before jobs are submitted; a job looks again at what it loads (evaluate/checkpoint.py).
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from hpc_ewc import records
from hpc_ewc.errors import ArtefactError, InputError

INDEX = "model.safetensors.index.json"
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
FAMILIES = ("gemma2", "gemma3_text")
"""`model_type` of what can be trained, and forecast: those of model/gemma.py, which a login node cannot import."""
HEADER_BYTES = 100_000_000
"""safetensors' own limit: a larger number is no length of a header."""


def check_model(folder: Path) -> None:
    """Raise InputError, with what is wrong and the likely reason, unless `folder` is a whole model."""
    config, weights = check_files(folder)
    rows = _embedded(folder, weights) or config.get("vocab_size")
    tokens = _vocabulary(folder)
    if isinstance(rows, int) and tokens > rows:
        raise InputError(f"{folder}: its tokenizer has {tokens} tokens, the model embeds {rows}: two models' files")


def check_trainable(folder: Path) -> None:
    """Raise InputError unless this is a whole model of a family that can be trained; its tokenizer is not read."""
    config, _ = check_files(folder)
    kind = config.get("model_type")
    if kind not in FAMILIES:
        hint = "; of a Gemma 3 with images, export the text model first" if kind == "gemma3" else ""
        raise InputError(f"{folder}: model_type is {kind!r}; allowed are {', '.join(FAMILIES)}{hint}")


def check_files(folder: Path) -> tuple[dict[str, Any], list[Path]]:
    """Configuration and weight files of a model, whose files are all there and whole; its tokenizer is not read.

    Raises:
        InputError: something is missing, cut off or not what its name says.
    """
    config = _read_config(folder)
    weights = check_weights(folder)
    check_tokenizer(folder)
    return config, weights


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    if not (folder / "config.json").is_file():
        below = sorted(str(path.parent) for path in folder.glob("**/exports/*/config.json"))[:3]
        hint = f"; checkpoints below it: {', '.join(below)}" if below else ""
        raise InputError(f"{folder}: no config.json, so not a Hugging Face model{hint}")
    if folder.parent.name == "exports" and folder.name.isdigit() and not (folder / "hpc_ewc.json").is_file():
        raise InputError(f"{folder}: no hpc_ewc.json, which an export gets last: half-exported; submit its run again")
    try:
        return records.read_json(folder / "config.json")
    except ArtefactError as error:
        raise InputError(str(error)) from None


def check_weights(folder: Path) -> list[Path]:
    """The weight files, each as long as its header says.

    Raises:
        InputError: there are none, some that the index names are missing, or one is cut off.
    """
    files = sorted(folder.glob("*.safetensors"))
    if (folder / INDEX).is_file():
        try:
            named = set(map(str, records.read_json(folder / INDEX)["weight_map"].values()))
        except (KeyError, AttributeError):
            raise InputError(f"{folder / INDEX}: not an index of weight files: no 'weight_map'") from None
        except ArtefactError as error:
            raise InputError(str(error)) from None
        absent = sorted(name for name in named if not (folder / name).is_file())
        if absent:
            raise InputError(
                f"{folder}: {', '.join(absent[:3])}{' …' * (len(absent) > 3)}: {len(absent)} of {len(named)} weight "
                "files missing; half-exported or half-copied"
            )
        files = sorted(folder / name for name in named)
    if not files:
        raise InputError(
            f"{folder}: no *.safetensors; half-exported, or of another format: save it with save_pretrained"
        )
    for path in files:
        read_header(path)
    return files


def read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: dtype, shape and data_offsets by tensor.

    Raises:
        InputError: not safetensors, or another length than the header says.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else HEADER_BYTES
        text = file.read(length) if length < HEADER_BYTES else b""
    try:
        header: dict[str, Any] = json.loads(text)
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        ends = [int(entry["data_offsets"][1]) for entry in tensors]
        if not all(isinstance(size, int) for entry in tensors for size in entry["shape"]):
            raise TypeError("a shape that is none")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise InputError(f"{path}: not a safetensors file, or cut off in its header ({size} bytes)") from None
    whole = 8 + length + max(ends, default=0)
    if size != whole:
        raise InputError(f"{path}: {size} bytes, its header says {whole}: half-copied; copy or fetch it again")
    return header


def check_tokenizer(folder: Path) -> None:
    """Raise InputError unless there are files of a tokenizer."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise InputError(f"{folder}: no tokenizer.json or tokenizer.model; copy the base model's tokenizer into it")


def _embedded(folder: Path, weights: list[Path]) -> int | None:
    """Rows of the embedding; None where no tensor has one of the usual names."""
    for path in weights:
        for name, entry in read_header(path).items():
            if name.endswith(EMBEDDINGS) and entry["shape"]:
                return int(entry["shape"][0])
    return None


def _vocabulary(folder: Path) -> int:
    """One more than the largest id that text can get, by tokenizer.json; 0 where it does not say.

    An added special token may lie beyond the embedding: Gemma 3's text models have one for images, which no text gets.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return 0
    try:
        facts = records.read_json(path)
        ids = [int(token["id"]) for token in facts.get("added_tokens") or () if not token.get("special")]
        vocabulary = (facts.get("model") or {}).get("vocab") or {}
        ids += [len(vocabulary) - 1] if isinstance(vocabulary, list) else map(int, vocabulary.values())
    except ArtefactError as error:
        raise InputError(f"{folder}: its tokenizer cannot be read: {error}") from None
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError(
            f"{path}: not a tokenizer as save_pretrained writes it; copy the base model's tokenizer into the folder"
        ) from None
    return max(ids, default=-1) + 1
