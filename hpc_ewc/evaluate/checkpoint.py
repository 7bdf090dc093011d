"""Is this folder a whole model with a tokenizer that fits it? Then load it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hpc_ewc import records
from hpc_ewc.errors import ArtefactError, ConfigError, InputError
from hpc_ewc.model.attention import choose_attention
from hpc_ewc.model_folder import check_weights
from hpc_ewc.rundir import StageDir


@dataclass(frozen=True)
class Checkpoint:
    """A model to be scored, and what its records say of it."""

    folder: Path
    run: str
    step: int
    fraction: float
    model_hash: str
    base_hash: str
    """`model_hash` of what it was trained from; its own for an untrained model."""
    identity: str
    """For `cell_key`: the key of its training, or of its path."""
    coordinates: dict[str, Any] = field(default_factory=dict)


def find_export(train: StageDir, fraction: float) -> Checkpoint:
    """The export of a training at a fraction of it, found by its `hpc_ewc.json` and whole.

    Raises:
        ArtefactError: there is none, or its files are not those that were exported.
    """
    there = []
    for path in sorted(train.exports.glob("*/hpc_ewc.json")):
        facts = records.read_json(path)
        there.append(float(facts.get("fraction", -1.0)))
        if there[-1] == fraction:
            return open_export(path.parent)
    without = sorted(path.name for path in train.exports.glob("[0-9]*") if not (path / "hpc_ewc.json").is_file())
    half = f"; without hpc_ewc.json, so half-written: {', '.join(without)}" if without else ""
    known = ", ".join(map(repr, there)) or "none"
    raise ArtefactError(
        f"{train.exports}: no export at fraction {fraction!r}; exported are {known}{half}; "
        "submit the experiment again to finish the training"
    )


def open_export(folder: Path) -> Checkpoint:
    """The export in a folder, wherever it was copied to: its `hpc_ewc.json` says what it is.

    Raises:
        ArtefactError: that file is not ours, or the others are not those that were exported.
    """
    facts = records.read_json(folder / "hpc_ewc.json")
    missing = [name for name in ("run", "step", "train_key", "model_hash", "base_hash") if name not in facts]
    if missing:
        raise ArtefactError(f"{folder / 'hpc_ewc.json'}: lacks {', '.join(missing)}; corrupt or not written by hpc-ewc")
    found = records.model_hash(folder)
    if found != facts["model_hash"]:
        raise ArtefactError(
            f"{folder}: its files hash to {found[:12]}, hpc_ewc.json says {facts['model_hash'][:12]}; half-copied or "
            "changed: remove the folder and submit the experiment again"
        )
    return Checkpoint(
        folder=folder,
        run=facts["run"],
        step=int(facts["step"]),
        fraction=float(facts["fraction"]),
        model_hash=found,
        base_hash=facts["base_hash"],
        identity=facts["train_key"],
        coordinates=facts.get("coordinates", {}),
    )


def find_model(folder: Path, run: str, identity: str, base: Path | None = None) -> Checkpoint:
    """A model that this project did not train (`base` among them), as step 0 of itself.

    Args:
        folder: of the model.
        run: its name among the evaluated ones.
        identity: for `cell_key`.
        base: folder of what it was trained from, if that is known.

    Raises:
        InputError: no such folder, or no model in it.
    """
    if not (folder / "config.json").is_file():
        what = "no config.json, so not a Hugging Face model" if folder.is_dir() else "no such folder"
        raise InputError(f"{folder}: {what}; give model.path a Hugging Face folder or a hub id")
    found = records.model_hash(folder)
    return Checkpoint(folder, run, 0, 0.0, found, records.model_hash(base) if base else found, identity)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer, which puts BOS before a text, once, and nothing after it.

    Raises:
        InputError: it cannot be loaded, has no BOS, does not add it, or adds more than it.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, …
        raise InputError(f"{folder}: its tokenizer cannot be loaded: {_first_line(error)}") from error
    bos = tokenizer.bos_token_id
    if bos is None:
        raise InputError(f"{folder}: its tokenizer has no BOS token; Gemma scores text after BOS alone: set bos_token")
    bare = tokenizer.encode("a", add_special_tokens=False)
    if tokenizer.encode("a", add_special_tokens=True) != [bos, *bare]:
        made = tokenizer.convert_ids_to_tokens(tokenizer.encode("a", add_special_tokens=True))
        raise InputError(
            f"{folder}: its tokenizer makes {made} of 'a', not {tokenizer.bos_token!r} and the text; give "
            "tokenizer.json a TemplateProcessing post-processor that adds BOS, once, and nothing else"
        )
    return tokenizer


def load_model(folder: Path, *, dtype: str, attention: str, device: torch.device, tokenizer: Any) -> Any:
    """The model, ready to be scored.

    Raises:
        InputError: a weight file is missing or cut off, or the tokenizer has tokens that the model has no embedding of.
    """
    check_weights(folder)
    kernel = attention_kernel(attention, folder, device, dtype)
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=getattr(torch, dtype), attn_implementation=kernel, output_loading_info=True
        )
    except Exception as error:  # safetensors, transformers and torch each raise their own
        raise InputError(f"{folder}: the model cannot be loaded: {_first_line(error)}") from error
    absent = sorted(found["missing_keys"])
    if absent:  # transformers draws them at random and only warns
        raise InputError(
            f"{folder}: the checkpoint lacks {', '.join(absent[:3])}{' …' * (len(absent) > 3)}; half-exported"
        )
    vocabulary = model.get_input_embeddings().num_embeddings
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    largest = max(set(tokenizer.get_vocab().values()) - special | {tokenizer.bos_token_id})
    if largest >= vocabulary:  # a special token beyond it is none that text gets: Gemma 3 has one for images
        raise InputError(
            f"{folder}: its tokenizer has {largest + 1} tokens, the model embeds {vocabulary}: two models' files"
        )
    bos = model.config.bos_token_id
    if bos is not None and bos != tokenizer.bos_token_id:
        raise InputError(
            f"{folder}: BOS is {tokenizer.bos_token_id} to its tokenizer, {bos} to its config: two models' files"
        )
    return model.to(device).eval()


def attention_kernel(attention: str, folder: Path, device: torch.device, dtype: str) -> str:
    """The kernel to score with. `auto`: FlashAttention 2 where it can run with the model's softcap, else eager.

    Not sdpa, which knows no softcap; not flex_attention, which compiles anew for each length of a batch.
    """
    if attention != "auto":
        return attention
    if device.type == "cuda" and dtype == "bfloat16":
        with suppress(ConfigError):
            return choose_attention("flash_attention_2", folder, device)
    return "eager"


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
