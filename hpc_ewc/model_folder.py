"""Whether a folder holds a complete Hugging Face model whose tokenizer fits it, judged from its files alone.

The login node checks before it submits jobs; a job checks again what it loads (evaluate/checkpoint.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hpc_ewc import records
from hpc_ewc.errors import ArtefactError, InputError

INDEX = "model.safetensors.index.json"
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
FAMILIES = ("gemma2", "gemma3_text")
"""`model_type` of the models that can be trained: those that model/build.py can build."""


def check_model(folder: Path) -> None:
    """Check that `folder` is a complete model and that its tokenizer has no token beyond the embedding.

    Raises:
        InputError: it is not; the message gives the likely reason.
    """
    config, weights = check_files(folder)
    rows = next(filter(None, map(_read_embedding_rows, weights)), config.get("vocab_size"))
    tokens = _count_tokens(folder)
    if isinstance(rows, int) and tokens > rows:
        raise InputError(
            f"{folder}: its tokenizer has {tokens} tokens, the model embeds {rows}: the files of two different models"
        )


def check_trainable(folder: Path) -> None:
    """Raise InputError unless `folder` is a complete model of a trainable family; tokenizer content is not read."""
    check_files(folder)
    read_family(folder)


def read_family(folder: Path) -> str:
    """Return `model_type` of the folder's config.json, one of `FAMILIES`.

    Raises:
        InputError: no config.json there, or another kind of model.
    """
    kind = _read_config(folder).get("model_type")
    if kind not in FAMILIES:
        hint = "; of a Gemma 3 with images, export the text model first" if kind == "gemma3" else ""
        raise InputError(f"{folder}: model_type is {kind!r}; allowed are {', '.join(FAMILIES)}{hint}")
    return str(kind)


def check_files(folder: Path) -> tuple[dict[str, Any], list[Path]]:
    """The configuration and the weight files of a complete model; the content of its tokenizer is not read.

    Raises:
        InputError: a file is missing, cut off or not what its name says.
    """
    config = _read_config(folder)
    weights = check_weights(folder)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise InputError(f"{folder}: no tokenizer.json or tokenizer.model; copy the base model's tokenizer into it")
    return config, weights


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    if not (folder / "config.json").is_file():
        below = sorted(str(path.parent) for path in folder.glob("**/exports/*/config.json"))[:3]
        hint = f"; checkpoints below it: {', '.join(below)}" if below else ""
        raise InputError(f"{folder}: no config.json, so not a Hugging Face model{hint}")
    if folder.parent.name == "exports" and folder.name.isdigit() and not (folder / "hpc_ewc.json").is_file():
        raise InputError(f"{folder}: no hpc_ewc.json, which is written last: incomplete export; resubmit its run")
    try:
        return records.read_json(folder / "config.json")
    except ArtefactError as error:
        raise InputError(str(error)) from None


def check_weights(folder: Path) -> list[Path]:
    """The weight files of a model; safetensors checks that each has the length that its header says.

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
        missing = sorted(name for name in named if not (folder / name).is_file())
        if missing:
            raise InputError(
                f"{folder}: {len(missing)} of {len(named)} weight files missing, such as {', '.join(missing[:3])}; "
                "an incomplete export or copy"
            )
        files = sorted(folder / name for name in named)
    if not files:
        raise InputError(
            f"{folder}: no *.safetensors; an incomplete export, or another format: save it with save_pretrained"
        )
    for path in files:
        _read_embedding_rows(path)
    return files


def _read_embedding_rows(path: Path) -> int | None:
    """Rows of the embedding, None if it is not in this file; safetensors compares the header with the file's size."""
    try:
        with safe_open(str(path), framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                if name.endswith(EMBEDDINGS) and (shape := file.get_slice(name).get_shape()):
                    return int(shape[0])
    except (SafetensorError, OSError) as error:
        size = path.stat().st_size
        raise InputError(
            f"{path}: not a complete safetensors file ({size} bytes): {error}; copy or fetch it again"
        ) from None
    return None


def _count_tokens(folder: Path) -> int:
    """One more than the largest id that text can get, by tokenizer.json; 0 where it does not say.

    An added special token may lie beyond the embedding: Gemma 3's text models have one for images, which no text gets.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return 0
    try:
        content = records.read_json(path)
        ids = [int(token["id"]) for token in content.get("added_tokens") or () if not token.get("special")]
        vocabulary = (content.get("model") or {}).get("vocab") or {}
        ids += [len(vocabulary) - 1] if isinstance(vocabulary, list) else map(int, vocabulary.values())
    except ArtefactError as error:
        raise InputError(f"{folder}: its tokenizer cannot be read: {error}") from None
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError(
            f"{path}: not a tokenizer as save_pretrained writes it; copy the base model's tokenizer into the folder"
        ) from None
    return max(ids, default=-1) + 1
