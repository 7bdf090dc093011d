"""A sharded model as a Hugging Face folder that anything can load, and that explains itself.

The folder appears whole, by rename; `hpc_ewc.json` is written last inside it. Its bytes do not depend on the number
of ranks: tensors stand in the model's order, gathered one at a time, so no rank holds more than the largest.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from hpc_ewc import records
from hpc_ewc.errors import StageError
from hpc_ewc.model.collective import raise_together
from hpc_ewc.model.load import Origin, check_tied
from hpc_ewc.model.model_card import render_card

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


def export_model(model: Any, folder: Path, facts: Mapping[str, Any], *, file_bytes: int = FILE_BYTES) -> None:
    """Write `model`, made by `load_model`, to `folder`, unless it is there whole. Every rank calls it.

    Weights are in the dtype of compute, so the folder gives the logits that were trained; tokenizer, configuration
    and generation settings are the base model's. `facts` goes into hpc_ewc.json, with `model_hash` added, and onto
    the model card.

    Args:
        model: sharded or plain.
        folder: of the export, such as exports/00000180.
        facts: run, step, fraction, tokens, coordinates, train_key, base_hash.
        file_bytes: of one weights file, at most (a tensor is not cut).

    Raises:
        StageError: it could not be written; nothing is left at `folder`.
    """
    origin: Origin = model.origin
    check_tied(model)
    if _rank_zero_says((folder / FACTS_FILE).is_file()):
        return
    writer = _Writer(folder, file_bytes) if _rank() == 0 else None
    for name, parameter in model.named_parameters():
        tensor = parameter.detach().to(origin.dtype)
        if isinstance(tensor, DTensor):
            tensor = tensor.full_tensor()
        if writer is not None:
            writer.add(name, tensor)
    error = None if writer is None else writer.finish(origin, model.config, facts)
    raise_together(error)


class _Writer:
    """Rank 0's side. An error is kept until `finish`, since the other ranks are in a collective meanwhile."""

    def __init__(self, folder: Path, file_bytes: int) -> None:
        self.folder = folder
        self.beside = folder.with_name(f".{folder.name}.{socket.gethostname()}.{os.getpid()}")
        self.file_bytes = file_bytes
        self.held: list[tuple[str, torch.Tensor]] = []
        self.parts: list[list[str]] = []
        self.total = 0
        self.error: BaseException | None = None
        self._try(lambda: self.beside.mkdir(parents=True))

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take one whole tensor; the file that is full is written."""
        if self.error is not None:
            return
        held = sum(t.nbytes for _, t in self.held)
        if self.held and held + tensor.nbytes > self.file_bytes:
            self._try(self._flush_part)
        self.held.append((name, tensor.cpu().contiguous()))

    def finish(self, origin: Origin, config: Any, facts: Mapping[str, Any]) -> BaseException | None:
        """Write the rest and rename; what went wrong, if anything."""
        self._try(self._flush_part)
        self._try(self._name_parts)
        self._try(lambda: self._write_settings(origin, config))
        self._try(lambda: self._write_facts(facts))
        self._try(self._rename)
        if self.error is None:
            return None
        shutil.rmtree(self.beside, ignore_errors=True)
        return StageError(f"{self.folder}: the model could not be exported: {self.error}; free space and start again")

    def _try(self, action: Any) -> None:
        if self.error is None:
            try:
                action()
            except OSError as error:
                self.error = error

    def _flush_part(self) -> None:
        if self.held:
            with (self.beside / f"part-{len(self.parts)}").open("wb") as file:
                _write_safetensors(file, self.held)
                file.flush()
                os.fsync(file.fileno())
            self.parts.append([name for name, _ in self.held])
            self.total += sum(t.nbytes for _, t in self.held)
            self.held = []

    def _name_parts(self) -> None:
        n = len(self.parts)
        names = [f"model-{i:05}-of-{n:05}.safetensors" for i in range(1, n + 1)] if n > 1 else ["model.safetensors"]
        for i, name in enumerate(names):
            (self.beside / f"part-{i}").rename(self.beside / name)
        if n > 1:
            weight_map = {tensor: file for file, part in zip(names, self.parts, strict=True) for tensor in part}
            index = {"metadata": {"total_size": self.total}, "weight_map": weight_map}
            records.write_json(self.beside / "model.safetensors.index.json", index)

    def _write_settings(self, origin: Origin, config: Any) -> None:
        settings = json.loads((origin.folder / "config.json").read_text(encoding="utf-8"))
        settings.pop("torch_dtype", None)  # its name before transformers 5
        settings["dtype"] = str(origin.dtype).removeprefix("torch.")
        records.write_json(self.beside / "config.json", settings)
        generation = origin.folder / "generation_config.json"
        if generation.is_file():
            records.write_bytes(self.beside / generation.name, generation.read_bytes())
        else:
            ids = {key: getattr(config, key, None) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
            records.write_json(self.beside / generation.name, {"_from_model_config": True, **ids})
        for name in COPIED:
            if (origin.folder / name).is_file():
                records.write_bytes(self.beside / name, (origin.folder / name).read_bytes())

    def _write_facts(self, facts: Mapping[str, Any]) -> None:
        facts = {"schema": records.SCHEMA, **facts, "model_hash": records.model_hash(self.beside)}
        records.write_text(self.beside / "README.md", render_card(facts))
        records.write_json(self.beside / FACTS_FILE, facts)

    def _rename(self) -> None:
        if self.folder.exists():  # without hpc_ewc.json: not ours to keep, and a rename needs the place empty
            shutil.rmtree(self.folder)
        self.beside.rename(self.folder)
        records.flush_folder(self.folder.parent)


def _write_safetensors(file: IO[bytes], tensors: list[tuple[str, torch.Tensor]]) -> None:
    """The safetensors format: length of the header, header (JSON, padded to 8 bytes), bytes of the tensors."""
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


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _rank_zero_says(answer: bool) -> bool:
    """Rank 0's answer on every rank: its view of a shared file system is the one that counts."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return answer
    answers = [answer]
    dist.broadcast_object_list(answers, src=0)
    return answers[0]
