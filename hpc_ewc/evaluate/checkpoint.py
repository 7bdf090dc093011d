"""Find a checkpoint, check that its files are complete and belong together, and load its model and tokenizer."""

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
    """A model to score, with the facts that its records repeat."""

    folder: Path
    run: str
    step: int
    fraction: float
    model_hash: str
    base_hash: str
    """`model_hash` of the model it was trained from; its own for one that was not trained here."""
    identity: str
    """Part of `cell_key`: the key of its training, or of its path."""
    coordinates: dict[str, Any] = field(default_factory=dict)


def find_export(train: StageDir, fraction: float) -> Checkpoint:
    """Return the export of a training at a fraction of its steps, after checking its hash.

    Raises:
        ArtefactError: there is no such export, or its files have changed.
    """
    fractions = []
    for path in sorted(train.exports.glob("*/hpc_ewc.json")):
        facts = records.read_json(path)
        fractions.append(float(facts.get("fraction", -1.0)))
        if fractions[-1] == fraction:
            return open_export(path.parent)
    incomplete = sorted(path.name for path in train.exports.glob("[0-9]*") if not (path / "hpc_ewc.json").is_file())
    note = f"; without hpc_ewc.json, so incomplete: {', '.join(incomplete)}" if incomplete else ""
    known = ", ".join(map(repr, fractions)) or "none"
    raise ArtefactError(
        f"{train.exports}: no export at fraction {fraction!r}; exported are {known}{note}; "
        "resubmit the experiment to finish the training"
    )


def open_export(folder: Path) -> Checkpoint:
    """Return the export in a folder, which may be a copy: its `hpc_ewc.json` describes it.

    Raises:
        ArtefactError: `hpc_ewc.json` was not written by hpc-ewc, or other files have changed.
    """
    facts = records.read_json(folder / "hpc_ewc.json")
    missing = [name for name in ("run", "step", "train_key", "model_hash", "base_hash") if name not in facts]
    if missing:
        raise ArtefactError(f"{folder / 'hpc_ewc.json'}: lacks {', '.join(missing)}; corrupt or not written by hpc-ewc")
    found = records.model_hash(folder)
    if found != facts["model_hash"]:
        raise ArtefactError(
            f"{folder}: its files hash to {found[:12]}, hpc_ewc.json says {facts['model_hash'][:12]}; incompletely "
            "copied or changed: delete the folder and resubmit the experiment"
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
    """Return a model that was not trained here (the base model too), as a checkpoint at step 0.

    Args:
        folder: the model's folder.
        run: name of the evaluated run.
        identity: part of `cell_key`.
        base: folder of the model it was trained from, if that is known.

    Raises:
        InputError: the folder does not exist or contains no model.
    """
    if not (folder / "config.json").is_file():
        problem = "no config.json, so not a Hugging Face model" if folder.is_dir() else "no such folder"
        raise InputError(f"{folder}: {problem}; set model.path to a Hugging Face folder or a hub id")
    found = records.model_hash(folder)
    return Checkpoint(folder, run, 0, 0.0, found, records.model_hash(base) if base else found, identity)


def load_tokenizer(folder: Path) -> Any:
    """Return a checkpoint's tokenizer, after checking that it adds BOS once before a text, and nothing else.

    Raises:
        InputError: it cannot be loaded, has no BOS, does not add it, or adds more.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, …
        raise InputError(f"{folder}: its tokenizer cannot be loaded: {_first_line(error)}") from error
    bos = tokenizer.bos_token_id
    if bos is None:
        raise InputError(f"{folder}: its tokenizer has no BOS token, which Gemma needs before any text: set it")
    encoded = tokenizer.encode("a", add_special_tokens=True)
    if encoded != [bos, *tokenizer.encode("a", add_special_tokens=False)]:
        raise InputError(
            f"{folder}: its tokenizer encodes 'a' as {tokenizer.convert_ids_to_tokens(encoded)}, not as "
            f"{tokenizer.bos_token!r} and the text; give tokenizer.json a TemplateProcessing post-processor that adds "
            "BOS once and nothing else"
        )
    return tokenizer


def load_model(folder: Path, *, dtype: str, attention: str, device: torch.device, tokenizer: Any) -> Any:
    """Return a checkpoint's model on `device`, in eval mode.

    Raises:
        InputError: a weight file is missing or truncated, or the tokenizer has tokens without an embedding.
    """
    check_weights(folder)
    kernel = attention_kernel(attention, folder, device, dtype)
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=getattr(torch, dtype), attn_implementation=kernel, output_loading_info=True
        )
    except Exception as error:  # safetensors, transformers and torch each raise their own
        raise InputError(f"{folder}: the model cannot be loaded: {_first_line(error)}") from error
    missing = sorted(loading["missing_keys"])
    if missing:  # transformers initialises these at random and only warns
        raise InputError(
            f"{folder}: the checkpoint lacks {', '.join(missing[:3])}{' …' * (len(missing) > 3)}; incomplete export"
        )
    vocabulary = model.get_input_embeddings().num_embeddings
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    largest = max(set(tokenizer.get_vocab().values()) - special | {tokenizer.bos_token_id})
    if largest >= vocabulary:  # special tokens may exceed it, as text never contains them: Gemma 3 has one for images
        raise InputError(
            f"{folder}: its tokenizer has {largest + 1} tokens, the model embeds {vocabulary}: files of two models"
        )
    bos = model.config.bos_token_id
    if bos is not None and bos != tokenizer.bos_token_id:
        raise InputError(
            f"{folder}: BOS is {tokenizer.bos_token_id} to its tokenizer, {bos} to its config: files of two models"
        )
    return model.to(device).eval()


def attention_kernel(attention: str, folder: Path, device: torch.device, dtype: str) -> str:
    """Return the attention kernel to score with; for `auto` FlashAttention 2 if it supports the model, else eager.

    sdpa has no softcap, and flex_attention recompiles for each batch length.
    """
    if attention != "auto":
        return attention
    if device.type == "cuda" and dtype == "bfloat16":
        with suppress(ConfigError):
            return choose_attention("flash_attention_2", folder, device)
    return "eager"


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
