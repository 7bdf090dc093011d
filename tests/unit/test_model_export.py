"""An export is a folder in Hugging Face format, written completely or not at all."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from hpc_ewc import records
from hpc_ewc.errors import StageError
from hpc_ewc.model.export import export_model
from hpc_ewc.model.load import load_model
from tests.distributed.training_folder import build_model

FACTS: dict[str, Any] = {
    "run": "strength=100-0123456789ab",
    "step": 12,
    "fraction": 1.0,
    "tokens": 3456,
    "coordinates": {"ewc.strength": 100.0},
    "train_key": "0123456789ab",
    "base_hash": "b" * 64,
    "strength": 100.0,
}


@pytest.fixture
def model(tmp_path: Path) -> Any:
    build_model(tmp_path / "model")
    return load_model(tmp_path / "model", dtype="float32")


def test_from_pretrained_gives_the_same_logits_one_tied_tensor_and_the_tokenizer(tmp_path: Path, model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    export_model(model, tmp_path / "out", FACTS)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    ids = torch.randint(4, 300, (2, 20))
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("the river").input_ids[0] == tokenizer.bos_token_id == loaded.config.bos_token_id
    assert GenerationConfig.from_pretrained(tmp_path / "out").bos_token_id == tokenizer.bos_token_id


def test_an_export_describes_its_origin(tmp_path: Path, model: Any) -> None:
    export_model(model, tmp_path / "out", FACTS)
    facts = records.read_json(tmp_path / "out" / "hpc_ewc.json")
    assert facts == {"schema": 1, **FACTS, "model_hash": records.model_hash(tmp_path / "out")}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| EWC strength λ | 100.0 |" in card
    assert "| grid point | ewc.strength = 100.0 |" in card
    assert not list(tmp_path.glob(".out*"))


def test_bf16_compute_gives_bf16_files_in_several_parts(tmp_path: Path) -> None:
    build_model(tmp_path / "model", dtype=torch.bfloat16)
    model = load_model(tmp_path / "model", dtype="bfloat16")
    export_model(model, tmp_path / "out", FACTS, file_bytes=12_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == files
    assert len(files) > 2
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for mine, other in zip(model.parameters(), loaded.parameters(), strict=True):
        assert other.dtype == torch.bfloat16
        assert torch.equal(mine, other)


def test_a_complete_export_is_kept_and_an_incomplete_one_is_replaced(tmp_path: Path, model: Any) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_bytes(b"half")
    export_model(model, tmp_path / "out", FACTS)
    before = (tmp_path / "out" / "model.safetensors").stat()
    assert before.st_size > 1000
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    export_model(model, tmp_path / "out", FACTS)
    assert (tmp_path / "out" / "model.safetensors").stat().st_ino == before.st_ino


def test_a_full_disk_gives_one_clear_error_and_leaves_no_files(
    tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StageError, match="could not be exported: .*No space left on device; free space"):
        export_model(model, tmp_path / "out", FACTS)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
