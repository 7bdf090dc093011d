"""A sharded model as a self-describing Hugging Face folder that other tools can load.

The folder appears complete, by rename; `hpc_ewc.json` is written last inside it. Its bytes do not depend on the number
of ranks: tensors are in the model's order, and gathered one at a time, so no rank holds more than the largest.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from hpc_ewc import records
from hpc_ewc.errors import StageError
from hpc_ewc.model.collective import raise_together
from hpc_ewc.model.load import Origin, check_tied
from hpc_ewc.model.model_card import render_model_card
from hpc_ewc.schemas import ExportFacts

FACTS_FILE = "hpc_ewc.json"
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
FILE_BYTES = 5 * 10**9
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16"}

NamedTensors = Iterator[tuple[str, torch.Tensor]]


def export_model(model: Any, folder: Path, facts: ExportFacts, *, file_bytes: int = FILE_BYTES) -> None:
    """Writes `model`, made by `load_model`, to `folder`, unless a complete export is there.

    Weights are in the dtype of compute, so the folder gives the logits that were trained; tokenizer, configuration
    and generation settings are the base model's. Every rank calls it; an all-gather for each parameter.

    Args:
        model: sharded or plain.
        folder: of the export, such as exports/00000180.
        facts: for hpc_ewc.json, to which `model_hash` is added, and for the model card.
        file_bytes: largest size of a weights file, unless one tensor is larger.

    Raises:
        StageError: on every rank: it could not be written; nothing is left at `folder`.
    """
    origin: Origin = model.origin
    check_tied(model)
    if _of_rank_zero((folder / FACTS_FILE).is_file()):
        return
    tensors = _gather_tensors(model, origin.dtype)
    error: StageError | None = None
    if not dist.is_initialized() or dist.get_rank() == 0:
        temporary = folder.with_name(f".{folder.name}.{socket.gethostname()}.{os.getpid()}")
        try:
            temporary.mkdir(parents=True)
            _write_weights(temporary, tensors, file_bytes)
            _write_settings(temporary, origin, model.config)
            _write_facts(temporary, facts)
            if folder.exists():  # without hpc_ewc.json: incomplete, and a rename needs an empty place
                shutil.rmtree(folder)
            temporary.rename(folder)
            records.flush_folder(folder.parent)
        except OSError as caught:
            shutil.rmtree(temporary, ignore_errors=True)
            error = StageError(f"{folder}: the model could not be exported: {caught}; free space and resubmit")
    for _ in tensors:  # the gathers are collectives: each rank takes part in all, also if it does not or cannot write
        pass
    raise_together(error)


def _gather_tensors(model: Any, dtype: torch.dtype) -> NamedTensors:
    for name, parameter in model.named_parameters():
        tensor = parameter.detach().to(dtype)
        yield name, tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _write_weights(folder: Path, tensors: NamedTensors, file_bytes: int) -> None:
    """Writes model.safetensors, or several files and their index. The number in their names is known at the end."""
    total, parts = 0, []
    for number, part in enumerate(_split(tensors, file_bytes)):
        with (folder / f"part-{number}").open("wb") as file:
            _write_safetensors(file, part)
            file.flush()
            os.fsync(file.fileno())
        total += sum(tensor.nbytes for _, tensor in part)
        parts.append([name for name, _ in part])
    n = len(parts)
    names = [f"model-{i:05}-of-{n:05}.safetensors" for i in range(1, n + 1)] if n > 1 else ["model.safetensors"]
    for number, name in enumerate(names):
        (folder / f"part-{number}").rename(folder / name)
    if n > 1:
        weight_map = {tensor: file for file, part in zip(names, parts, strict=True) for tensor in part}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        records.write_json(folder / "model.safetensors.index.json", index)


def _split(tensors: NamedTensors, file_bytes: int) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """Yields the tensors of one file at a time, on the CPU."""
    part: list[tuple[str, torch.Tensor]] = []
    for name, tensor in tensors:
        if part and sum(t.nbytes for _, t in part) + tensor.nbytes > file_bytes:
            yield part
            part = []
        part.append((name, tensor.cpu().contiguous()))
    if part:
        yield part


def _write_safetensors(file: IO[bytes], tensors: list[tuple[str, torch.Tensor]]) -> None:
    """Writes the safetensors format, in the given order: length of the header, header padded to 8 bytes, tensors.

    safetensors' own writer would sort by name, which changes the bytes and so the hash of every export.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors:
        end = offset + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for _, tensor in tensors:
        file.write(tensor.view(torch.uint8).numpy().data)


def _write_settings(folder: Path, origin: Origin, config: Any) -> None:
    settings = json.loads((origin.folder / "config.json").read_text(encoding="utf-8"))
    settings.pop("torch_dtype", None)  # its name before transformers 5
    settings["dtype"] = str(origin.dtype).removeprefix("torch.")
    records.write_json(folder / "config.json", settings)
    generation = origin.folder / "generation_config.json"
    if generation.is_file():
        records.write_bytes(folder / generation.name, generation.read_bytes())
    else:
        ids = {key: getattr(config, key, None) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        records.write_json(folder / generation.name, {"_from_model_config": True, **ids})
    for name in COPIED:
        if (origin.folder / name).is_file():
            records.write_bytes(folder / name, (origin.folder / name).read_bytes())


def _write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    facts = {"schema": records.SCHEMA, **facts, "model_hash": records.model_hash(folder)}
    records.write_text(folder / "README.md", render_model_card(facts))
    records.write_json(folder / FACTS_FILE, facts)


def _of_rank_zero(answer: bool) -> bool:
    """Returns rank 0's answer on every rank, as views of a shared file system may differ. One object broadcast."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return answer
    answers = [answer]
    dist.broadcast_object_list(answers, src=0)
    return answers[0]
